//! In a process of its own each time: standard error is one for all tests of this one.

use std::io::{BufRead as _, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::logs;

/// Says in the child what it is to do.
const CHILD: &str = "CULVERT_TEST_LOGS";
/// More than any pipe holds.
const LINES: u64 = 20_000;
/// Far more than that takes, and far less than for ever.
const DEADLINE: Duration = Duration::from_secs(20);

/// Whether this process is the one a test has started: it then logs, and says on standard output how many lines were lost.
fn is_child() -> bool {
    let Ok(what) = std::env::var(CHILD) else { return false };
    logs::init("test", logs::Format::Json);
    if what == "long line" {
        tracing::info!("{}", "x".repeat(1 << 20));
    } else {
        (1..LINES).for_each(|n| tracing::info!(n, "a line that somebody may want to read one day"));
        // Its line is one like the others: a thread that panics does not wait for a reader either.
        let panicked = std::thread::spawn(|| panic!("as asked")).join();
        panicked.expect_err("it panics");
    }
    std::io::stdout().write_all(format!("lost={}.\n", super::LOST.get()).as_bytes()).expect("a reader");
    if what != "to a file" {
        // Until the parent has read everything and says so.
        let _ = std::io::stdin().read(&mut [0]);
        tracing::info!("the last line");
    }
    true
}

/// Starts this test again, in a process of its own that logs.
fn start(test: &str, what: &str, stderr: Stdio) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", &format!("stderr::tests::{test}"), "--nocapture"])
        .env(CHILD, what)
        .env_remove(logs::FILTER_VARIABLE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .expect("this program again")
}

/// What a log line says, each of which is one JSON object.
fn parsed(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:.200}"))
}

/// What the child says it has lost, within the deadline; else it is ended and the test fails.
fn lost(child: &mut Child) -> u64 {
    let out: ChildStdout = child.stdout.take().expect("piped");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // To its end: the child may write more.
        let lines = std::io::BufReader::new(out).lines().map_while(Result::ok);
        for line in lines {
            let number = line.split_once("lost=").and_then(|(_, rest)| rest.strip_suffix('.'));
            if let Some(number) = number {
                // Nobody may wait for it any more.
                let _ = sender.send(number.parse().expect("a number"));
            }
        }
    });
    let told = receiver.recv_timeout(DEADLINE);
    if told.is_err() {
        child.kill().expect("end it");
    }
    told.expect("the child waits for its reader")
}

#[test]
fn a_reader_that_has_stopped_costs_lines_and_no_time_and_is_told_how_many_when_it_reads_again() {
    if is_child() {
        return;
    }
    let begun = Instant::now();
    let name = "a_reader_that_has_stopped_costs_lines_and_no_time_and_is_told_how_many_when_it_reads_again";
    let mut child = start(name, "read late", Stdio::piped());
    let lost = lost(&mut child);
    assert!(begun.elapsed() < DEADLINE && lost > LINES / 2 && lost < LINES, "{lost} of {LINES} lost");
    // Now it reads. All that is there, before the child may write again.
    let mut stderr = child.stderr.take().expect("piped");
    let mut there = vec![0; 1 << 20];
    let held = stderr.read(&mut there).expect("what the pipe held");
    let held = String::from_utf8_lossy(&there[..held]).into_owned();
    assert_eq!(held.lines().count() as u64 + lost, LINES, "written and lost are all there were");
    drop(child.stdin.take());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).expect("the rest");
    let rest: Vec<_> = rest.lines().map(parsed).collect();
    assert_eq!((&rest[0]["lost"], &rest[1]["message"]), (&lost.into(), &"the last line".into()), "{rest:?}");
    held.lines().for_each(|line| drop(parsed(line)));
    assert!(child.wait().expect("its end").success());
}

#[test]
fn a_line_that_is_cut_ends_before_the_next_one_begins() {
    if is_child() {
        return;
    }
    let mut child = start("a_line_that_is_cut_ends_before_the_next_one_begins", "long line", Stdio::piped());
    assert_eq!(lost(&mut child), 1);
    let mut stderr = child.stderr.take().expect("piped");
    let mut there = vec![0; 1 << 20];
    let held = stderr.read(&mut there).expect("what the pipe held");
    assert!(held > super::PIECE && !there[..held].contains(&b'\n'), "{held} bytes, the beginning of the line");
    drop(child.stdin.take());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).expect("the rest");
    let lines: Vec<&str> = rest.lines().collect();
    assert_eq!(lines[0], "", "the line that was cut is over");
    assert_eq!((&parsed(lines[1])["lost"], &parsed(lines[2])["message"]), (&1.into(), &"the last line".into()));
    assert!(child.wait().expect("its end").success());
}

#[test]
fn a_file_loses_nothing_not_even_a_panic() {
    if is_child() {
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut child =
        start("a_file_loses_nothing_not_even_a_panic", "to a file", file.reopen().expect("the same file").into());
    assert_eq!(lost(&mut child), 0);
    assert!(child.wait().expect("its end").success());
    let text = std::fs::read_to_string(file.path()).expect("read");
    assert_eq!(text.lines().count() as u64, LINES);
    let last = text.lines().last().map(parsed).expect("a line");
    assert!(
        last["level"] == "ERROR" && last["message"].as_str().is_some_and(|text| text.contains("as asked")),
        "{last}"
    );
}

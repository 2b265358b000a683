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

/// Not a test but the process that the tests look at: logs, then says on standard output how many lines were lost.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let Ok(what) = std::env::var(CHILD) else { return };
    logs::init("test", logs::Format::Text);
    (0..LINES).for_each(|n| tracing::info!(n, "a line that somebody may want to read one day"));
    std::io::stdout().write_all(format!("lost={}.\n", super::LOST.get()).as_bytes()).expect("a reader");
    if what == "read late" {
        // Until the parent has read everything and says so.
        let _ = std::io::stdin().read(&mut [0]);
        tracing::info!("the last line");
    }
}

fn start(what: &str, stderr: Stdio) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "stderr::tests::child", "--ignored", "--nocapture"])
        .env(CHILD, what)
        .env_remove(logs::FILTER_VARIABLE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .expect("this program again")
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
    let begun = Instant::now();
    let mut child = start("read late", Stdio::piped());
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
    let told = format!("{lost} log lines were lost here");
    assert!(rest.contains(&told) && rest.contains("the last line"), "{rest}");
    assert!(child.wait().expect("its end").success());
}

#[test]
fn what_is_read_or_a_file_loses_nothing() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut child = start("to a file", file.reopen().expect("the same file").into());
    assert_eq!(lost(&mut child), 0);
    assert!(child.wait().expect("its end").success());
    let text = std::fs::read_to_string(file.path()).expect("read");
    assert_eq!(text.lines().count() as u64, LINES);
}

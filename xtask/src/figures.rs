//! What tests printed, as tables of pages in `docs/`: the last run of `cargo xtask test --long`, and of `cargo xtask scale`; and how long
//! each of them took, of `cargo xtask test --write-docs`.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::{cargo, phase};

/// A page that ends in a table of figures.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Its file.
    file: &'static str,
    /// Where the table begins; what stands above it is a person's.
    mark: &'static str,
    /// The table's.
    columns: [&'static str; 4],
}

/// Of the long tests.
pub const RELIABILITY: Page = Page {
    file: "docs/reliability.md",
    mark: "<!-- below: written by cargo xtask test --long -->\n",
    columns: ["test", "figure", "seen", ""],
};
/// Of ten thousand pods.
pub const SCALE: Page =
    Page { file: "docs/scale.md", mark: "<!-- below: written by cargo xtask scale -->\n", ..RELIABILITY };
/// Of what the tests take.
pub const TEST_TIMES: Page = Page {
    file: "docs/test-times.md",
    mark: "<!-- below: written by cargo xtask test --write-docs -->\n",
    columns: ["part", "test", "took", ""],
};

/// A figure of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    test: String,
    figure: String,
    value: String,
    note: String,
}

impl Row {
    /// What something else than a test printed.
    pub fn new(test: &str, figure: &str, value: &str, note: &str) -> Self {
        let [test, figure, value, note] = [test, figure, value, note].map(str::to_owned);
        Self { test, figure, value, note }
    }
}

/// What tests printed that ran one after the other.
#[derive(Debug, Default)]
pub struct Printed {
    /// Their figures.
    pub rows: Vec<Row>,
    /// How long each took, in their order.
    pub times: Vec<(String, Duration)>,
}

/// Runs the tests; what they print goes on to the person as it comes.
pub fn run(command: &mut Command) -> anyhow::Result<Printed> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {command:?}"))?;
    let mut output = child.stdout.take().context("a pipe was asked for")?;
    let (mut reader, mut chunk) = (Reader::new(Instant::now()), [0; 4096]);
    loop {
        let count = output.read(&mut chunk).context("read what the tests print")?;
        let Some(printed) = chunk.get(..count).filter(|printed| !printed.is_empty()) else { break };
        let mut person = std::io::stdout().lock();
        let _ = person.write_all(printed).and_then(|()| person.flush()); // nobody may be reading
        reader.read(printed, Instant::now());
    }
    let status = child.wait().context("wait for the tests")?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(reader.printed)
}

/// Finds what the harness prints with `--nocapture`: the tests, their ends, and the figures between.
struct Reader {
    test: String,
    /// When the test before ended.
    since: Instant,
    /// Bytes of a line that has not ended.
    line: Vec<u8>,
    printed: Printed,
}

impl Reader {
    fn new(since: Instant) -> Self {
        Self { test: String::new(), since, line: Vec::new(), printed: Printed::default() }
    }

    fn read(&mut self, bytes: &[u8], now: Instant) {
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.line(&String::from_utf8_lossy(&line), now);
            } else {
                self.line.push(*byte);
            }
        }
    }

    fn line(&mut self, line: &str, now: Instant) {
        if line.starts_with("running ") {
            self.since = now;
        }
        // `test a::b ... ` without an end of line: the test's first line follows it.
        let rest = match line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            Some((test, rest)) => {
                self.test = test.to_owned();
                rest
            }
            None => line,
        };
        if matches!(rest, "ok" | "FAILED") {
            self.printed.times.push((self.test.clone(), now.duration_since(self.since)));
            self.since = now;
        }
        let figure = rest.split_once("figure: ").and_then(|(_, rest)| rest.split_once(" = "));
        if let Some((figure, rest)) = figure {
            let (value, note) = rest.split_once(" (").unwrap_or((rest, ""));
            let note = note.strip_suffix(')').unwrap_or(note);
            let [figure, value, note] = [figure, value, note].map(|text| text.replace('|', "/"));
            self.printed.rows.push(Row { test: self.test.clone(), figure, value, note });
        }
    }
}

impl Printed {
    /// How long each took, the slowest first.
    fn slowest(&self) -> Vec<&(String, Duration)> {
        let mut sorted: Vec<_> = self.times.iter().collect();
        sorted.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        sorted
    }

    /// The same as rows of [`TEST_TIMES`].
    pub fn of_part<'a>(&'a self, part: &'a str) -> impl Iterator<Item = Row> + 'a {
        self.slowest().into_iter().map(move |(test, took)| took_row(part, &format!("`{test}`"), *took))
    }
}

/// A row of [`TEST_TIMES`].
pub fn took_row(part: &str, what: &str, took: Duration) -> Row {
    Row::new(part, what, &format!("{:.1} s", took.as_secs_f64()), "")
}

/// Tells the person which tests took longest.
pub fn tell_slowest(part: &str, printed: &Printed) {
    /// Lines that a person looks at.
    const TOLD: usize = 12;
    let (times, sorted) = (&printed.times, printed.slowest());
    let all: Duration = times.iter().map(|(_, took)| *took).sum();
    phase::say(&format!("{part}: {} in {:.0} s; the slowest:", times.len(), all.as_secs_f64()));
    for (test, took) in sorted.into_iter().take(TOLD) {
        phase::say(&format!("{:6.1} s  {test}", took.as_secs_f64()));
    }
}

/// Writes the table into the page.
pub fn write(page: Page, rows: &[Row]) -> anyhow::Result<()> {
    let Page { file, mark, columns } = page;
    let file = cargo::workspace().join(file);
    let page = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let (head, _) = page.split_once(mark).with_context(|| format!("{} lacks {mark:?}", file.display()))?;
    let date = Command::new("date").args(["-u", "+%F"]).output().context("start date")?;
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    std::fs::write(&file, format!("{head}{mark}{}", table(&date, columns, rows)))
        .with_context(|| format!("write {}", file.display()))?;
    phase::say(&format!("written: {}", file.display()));
    Ok(())
}

fn table(date: &str, [first, second, third, fourth]: [&str; 4], rows: &[Row]) -> String {
    let mut text =
        format!("All of these passed on {date}.\n\n| {first} | {second} | {third} | {fourth} |\n|---|---|---|---|\n");
    let mut last = "";
    for Row { test, figure, value, note } in rows {
        // Each test is named once.
        let named = if test == last { String::new() } else { format!("`{test}`") };
        let _ = writeln!(text, "| {named} | {figure} | {value} | {note} |"); // a String takes everything
        last = test;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_test_that_printed_them() {
        let begun = Instant::now();
        let mut reader = Reader::new(begun);
        let printed = [
            "running 2 tests",
            "test a::first ... figure: up = 5.0 s (two nodes)",
            "noise",
            "figure: failed = 0 requests (of 100 (all))",
            "ok",
            "test b::second ... ok",
            "test c::third ... figure: x|y = 1 ms ()",
        ];
        for (second, line) in (1..).zip(printed) {
            // Cut in two, as a pipe may do it.
            let (bytes, now) = (format!("{line}\n"), begun + Duration::from_secs(second));
            let (one, other) = bytes.as_bytes().split_at(bytes.len() / 2);
            reader.read(one, now);
            reader.read(other, now);
        }
        let row = |test: &str, figure: &str, value: &str, note: &str| Row {
            test: test.to_owned(),
            figure: figure.to_owned(),
            value: value.to_owned(),
            note: note.to_owned(),
        };
        let wanted = [
            row("a::first", "up", "5.0 s", "two nodes"),
            row("a::first", "failed", "0 requests", "of 100 (all)"),
            row("c::third", "x/y", "1 ms", ""),
        ];
        assert_eq!(reader.printed.rows, wanted);
        let times: Vec<_> = reader.printed.times.iter().map(|(test, took)| (test.as_str(), took.as_secs())).collect();
        assert_eq!(times, [("a::first", 4), ("b::second", 1)]);
        let slowest: Vec<Row> = reader.printed.of_part("some").collect();
        assert_eq!(slowest, [row("some", "`a::first`", "4.0 s", ""), row("some", "`b::second`", "1.0 s", "")]);
        let table = table("2026-01-02", RELIABILITY.columns, &reader.printed.rows);
        assert!(table.contains("2026-01-02") && table.contains("| `a::first` | up | 5.0 s | two nodes |"), "{table}");
        assert!(table.contains("|  | failed | 0 requests | of 100 (all) |"), "{table}");
    }
}

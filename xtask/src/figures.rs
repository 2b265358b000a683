//! What tests printed, as tables of pages in `docs/`: the last run of `cargo xtask test --long`, and of `cargo xtask scale`.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::{cargo, phase};

/// A page that ends in a table of figures.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Its file.
    file: &'static str,
    /// Where the table begins; what stands above it is a person's.
    mark: &'static str,
}

/// Of the long tests.
pub const RELIABILITY: Page =
    Page { file: "docs/reliability.md", mark: "<!-- below: written by cargo xtask test --long -->\n" };
/// Of ten thousand pods.
pub const SCALE: Page = Page { file: "docs/scale.md", mark: "<!-- below: written by cargo xtask scale -->\n" };

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

/// Runs the tests; what they print goes on to the person, and its figures are returned.
pub fn run(command: &mut Command) -> anyhow::Result<Vec<Row>> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {command:?}"))?;
    let output = child.stdout.take().context("a pipe was asked for")?;
    let mut reader = Reader::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("read what the tests print")?;
        let _ = writeln!(std::io::stdout(), "{line}"); // nobody may be reading
        reader.line(&line);
    }
    let status = child.wait().context("wait for the tests")?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(reader.rows)
}

/// Finds figures and the tests they are of in what the harness prints with `--nocapture`.
#[derive(Default)]
struct Reader {
    test: String,
    rows: Vec<Row>,
}

impl Reader {
    fn line(&mut self, line: &str) {
        // `test a::b ... ` without an end of line: the test's first line follows it.
        if let Some((test, _)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            self.test = test.to_owned();
        }
        let figure = line.split_once("figure: ").and_then(|(_, rest)| rest.split_once(" = "));
        if let Some((figure, rest)) = figure {
            let (value, note) = rest.split_once(" (").unwrap_or((rest, ""));
            let note = note.strip_suffix(')').unwrap_or(note);
            let [figure, value, note] = [figure, value, note].map(|text| text.replace('|', "/"));
            self.rows.push(Row { test: self.test.clone(), figure, value, note });
        }
    }
}

/// Writes the table into the page.
pub fn write(page: Page, rows: &[Row]) -> anyhow::Result<()> {
    let Page { file, mark } = page;
    let file = cargo::workspace().join(file);
    let page = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let (head, _) = page.split_once(mark).with_context(|| format!("{} lacks {mark:?}", file.display()))?;
    let date = Command::new("date").args(["-u", "+%F"]).output().context("start date")?;
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    std::fs::write(&file, format!("{head}{mark}{}", table(&date, rows)))
        .with_context(|| format!("write {}", file.display()))?;
    phase::say(&format!("written: {}", file.display()));
    Ok(())
}

fn table(date: &str, rows: &[Row]) -> String {
    let mut text = format!("All of these passed on {date}.\n\n| test | figure | seen | |\n|---|---|---|---|\n");
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
        let mut reader = Reader::default();
        let printed = [
            "running 2 tests",
            "test a::first ... figure: up = 5.0 s (two nodes)",
            "noise",
            "figure: failed = 0 requests (of 100 (all))",
            "ok",
            "test b::second ... ok",
            "test c::third ... figure: x|y = 1 ms ()",
        ];
        printed.iter().for_each(|line| reader.line(line));
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
        assert_eq!(reader.rows, wanted);
        let table = table("2026-01-02", &reader.rows);
        assert!(table.contains("2026-01-02") && table.contains("| `a::first` | up | 5.0 s | two nodes |"), "{table}");
        assert!(table.contains("|  | failed | 0 requests | of 100 (all) |"), "{table}");
    }
}

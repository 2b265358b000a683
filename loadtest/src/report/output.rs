//! Where the report goes: options shared by `run` and `report`, and the only code here that touches files.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::report::{baseline, html, json, markdown, table};
use crate::result::Outcome;

/// What to write.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Output {
    /// The rows and nothing else: `[{scenario, path, plane, metric, unit, median, min, max, runs}]`.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Rows, machine, command, notes and wall time as one object; what `report` reads.
    #[arg(long, value_name = "FILE")]
    pub json_full: Option<PathBuf>,
    /// One page with plots, nothing from outside.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// The page for docs/; what stands between its markers of notes is kept.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// JSON of an earlier run: flags what is worse beyond the spread, and ends with code 3.
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
}

/// What a run came to, and what is printed of it.
#[derive(Debug)]
pub struct Written {
    /// For standard output.
    pub shown: String,
    /// 0, or [`baseline::WORSE`].
    pub code: u8,
}

impl Output {
    /// Writes every file asked for. The baseline is read first, so a run may replace the file it is compared with.
    pub fn write(&self, outcome: &Outcome) -> Result<Written> {
        let earlier = self.baseline.as_deref().map(read).transpose()?;
        let mut written = Written { shown: table::render(outcome), code: 0 };
        if let Some(path) = &self.json {
            save(path, &json::rows(outcome)?)?;
        }
        if let Some(path) = &self.json_full {
            save(path, &json::full(outcome)?)?;
        }
        if let Some(path) = &self.html {
            save(path, &html::render(outcome)?)?;
        }
        if let Some(path) = &self.markdown {
            let before = path.exists().then(|| text(path)).transpose()?;
            save(path, &markdown::render(outcome, before.as_deref()))?;
        }
        if let Some(earlier) = earlier {
            let compared = baseline::compare(&earlier.rows, &outcome.rows)?;
            written.shown.push_str(&baseline::render(&compared));
            if compared.iter().any(|one| one.flagged) {
                written.code = baseline::WORSE;
            }
        }
        Ok(written)
    }
}

/// Writes what is asked for and prints the table: the end of `run`, and all of `report`.
pub fn show(outcome: &Outcome, output: &Output) -> Result<ExitCode> {
    let written = output.write(outcome)?;
    std::io::stdout().write_all(written.shown.as_bytes()).context("print the report")?;
    Ok(ExitCode::from(written.code))
}

/// The reports of an earlier run.
pub fn again(file: &Path, output: &Output) -> Result<ExitCode> {
    show(&read(file)?, output)
}

/// Reads what `--json` or `--json-full` wrote.
pub fn read(path: &Path) -> Result<Outcome> {
    json::read(&text(path)?).with_context(|| format!("parse {}", path.display()))
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn save(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

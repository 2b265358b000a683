//! Answers as text: the same values as columns for people or as JSON for programs; times as a person wants them.

use std::io::Write as _;

use k8s_openapi::jiff::Timestamp;
use mesh_daemon::table::{self, Column};
use serde_json::Value;

use crate::args::Output;

/// What a verb made of its question.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// Whether what was found is well.
    pub well: bool,
    /// Whoever did not answer, for standard error. With one of them the exit status is 3.
    pub silent: Vec<String>,
}

impl Answer {
    /// A good end with this to say.
    pub fn well(text: String) -> Self {
        Self { text, well: true, silent: Vec::new() }
    }
}

/// The rows in the form that was asked for.
pub fn rows(output: Output, columns: &[Column], rows: &[Value]) -> String {
    match output {
        Output::Json => json(&Value::Array(rows.to_vec())),
        Output::Table if rows.is_empty() => String::new(),
        Output::Table => table::render(columns, rows),
    }
}

/// How far a verb has come, on standard error: whether or not anybody reads that.
pub fn tell(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A value for programs.
pub fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A span of time in two units at most.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Time until this Unix time, or `expired`.
pub fn until(at: u64, now: u64) -> String {
    at.checked_sub(now).filter(|left| *left > 0).map_or_else(|| "expired".to_owned(), span)
}

/// Now, as Unix time.
pub fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_and_the_past_is_expired() {
        let table = [(5, "5s"), (125, "2m05s"), (7_260, "2h01m"), (180_000, "2d02h")];
        for (seconds, text) in table {
            assert_eq!(span(seconds), text);
        }
        assert_eq!(until(100, 40), "1m00s");
        assert_eq!(until(100, 100), "expired");
        assert_eq!(until(100, 4000), "expired");
    }
}

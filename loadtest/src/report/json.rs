//! The report for programs: `--json` is the rows and nothing else, `--json-full` the whole [`Outcome`].

use anyhow::{Context as _, Result};

use crate::result::{Outcome, Row};

/// Exactly `[{scenario, path, plane, metric, unit, median, min, max, runs}]`. Machine, command and notes are in [`full`].
pub fn rows(outcome: &Outcome) -> Result<String> {
    Ok(serde_json::to_string_pretty(&outcome.rows)? + "\n")
}

/// Rows, machine, command, notes and wall time: what the other reports are made of.
pub fn full(outcome: &Outcome) -> Result<String> {
    Ok(serde_json::to_string_pretty(outcome)? + "\n")
}

/// Reads either.
pub fn read(text: &str) -> Result<Outcome> {
    match text.trim_start().starts_with('[') {
        true => Ok(Outcome {
            rows: serde_json::from_str::<Vec<Row>>(text).context("rows of --json")?,
            ..Outcome::default()
        }),
        false => serde_json::from_str(text).context("an object of --json-full"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::report::testing;

    #[test]
    fn rows_have_exactly_the_promised_fields() {
        let value: serde_json::Value = serde_json::from_str(&rows(&testing::outcome()).expect("json")).expect("json");
        let promised = ["scenario", "path", "plane", "metric", "unit", "median", "min", "max", "runs"];
        let list = value.as_array().expect("a list of rows");
        assert_eq!(list.len(), testing::outcome().rows.len());
        for row in list {
            let names: BTreeSet<&str> = row.as_object().expect("an object").keys().map(String::as_str).collect();
            assert_eq!(names, BTreeSet::from(promised));
        }
    }

    #[test]
    fn what_was_written_is_read_back() {
        let outcome = testing::outcome();
        assert_eq!(read(&full(&outcome).expect("json")).expect("full"), outcome);
        assert_eq!(read(&rows(&outcome).expect("json")).expect("rows").rows, outcome.rows);
        assert!(read("{\"rows\": 3}").is_err());
    }
}

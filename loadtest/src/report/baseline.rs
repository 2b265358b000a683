//! Has anything become slower than in an earlier run?
//!
//! The rule. Compared are the mesh's `p50`, `rate` and `throughput` as ratios to direct TCP of the same run (so that a slower
//! machine is not taken for a slower mesh) and its `proxy_cpu` per operation as it is. A figure is flagged when both hold:
//! its range of runs lies wholly on the worse side of the baseline's, and its median is worse by more than [`TOLERANCE`].
//! Two ranges of 5 runs lie apart on that side by chance once in 252 cases, two of 3 runs once in 20, hence the second
//! condition. Tails (`p99`) are not compared: on two shared cores they move by more than the mesh does. A figure with fewer than
//! [`RUNS`] runs on either side is left out, and an empty comparison is an error, not a pass.

use anyhow::{Result, ensure};

use crate::report::{Line, lines, more_is_better, number, times};
use crate::result::Row;

/// Share by which a median must be worse. Medians of clean runs were up to 10 % apart on a shared machine (a guess above that);
/// 20 µs in a copy loop adds a third to the p50 of an exchange.
pub const TOLERANCE: f64 = 0.15;
/// Fewest runs that have a spread.
pub const RUNS: usize = 3;
/// Exit code of a run that is worse than its baseline.
pub const WORSE: u8 = 3;

/// The figures that are compared as ratios to direct.
const RATIOS: [&str; 3] = ["p50", "rate", "throughput"];
/// The figure that is compared as it is.
const COST: &str = "proxy_cpu";

/// A figure in both runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// `scenario path metric of plane`
    pub what: String,
    /// In the baseline.
    pub was: Range,
    /// Now.
    pub now: Range,
    /// Share by which the median became worse; negative when better.
    pub worse_by: f64,
    /// Worse beyond the spread.
    pub flagged: bool,
}

/// A median and its spread, as a ratio to direct or as a cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    median: f64,
    min: f64,
    max: f64,
    is_ratio: bool,
}

/// Every figure that both runs have.
pub fn compare(baseline: &[Row], now: &[Row]) -> Result<Vec<Compared>> {
    let (was, now) = (lines(baseline), lines(now));
    let mut compared = Vec::new();
    for line in &now {
        let key = |line: &Line<'_>| (line.scenario.to_owned(), line.path.to_owned(), line.metric.to_owned());
        let Some(before) = was.iter().find(|before| key(before) == key(line) && before.unit == line.unit) else {
            continue;
        };
        for row in line.rows.iter().filter(|row| row.plane == "mesh") {
            let (Some(was), Some(now)) = (range(before, &row.plane), range(line, &row.plane)) else { continue };
            compared.push(judge(line, row, was, now));
        }
    }
    ensure!(!compared.is_empty(), "the two runs have no figure in common with at least {RUNS} runs and a plane none");
    Ok(compared)
}

fn judge(line: &Line<'_>, row: &Row, was: Range, now: Range) -> Compared {
    let (worse_by, apart) = match more_is_better(line.unit) {
        true => (was.median / now.median - 1.0, now.max < was.min),
        false => (now.median / was.median - 1.0, now.min > was.max),
    };
    Compared {
        what: format!("{} {} {} of {}", line.scenario, line.path, line.metric, row.plane),
        was,
        now,
        worse_by,
        flagged: apart && worse_by > TOLERANCE,
    }
}

fn range(line: &Line<'_>, plane: &str) -> Option<Range> {
    let row = line.of(plane).filter(|row| row.runs >= RUNS)?;
    let (unit, is_ratio) = if line.metric == COST {
        (1.0, false)
    } else if RATIOS.contains(&line.metric) {
        (line.of(super::DIRECT).filter(|direct| direct.runs >= RUNS)?.median, true)
    } else {
        return None;
    };
    let range = Range { median: row.median / unit, min: row.min / unit, max: row.max / unit, is_ratio };
    (range.median.is_finite() && range.median > 0.0).then_some(range)
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = if self.is_ratio { times } else { number };
        write!(f, "{} ({}–{})", show(self.median), show(self.min), show(self.max))
    }
}

/// What a person reads: the flagged ones, then one line for the rest.
pub fn render(compared: &[Compared]) -> String {
    let flagged: Vec<&Compared> = compared.iter().filter(|one| one.flagged).collect();
    let mut text = String::new();
    for one in &flagged {
        text.push_str(&format!(
            "WORSE by {:.0} %: {}: was {}, is {}\n",
            one.worse_by * 100.0,
            one.what,
            one.was,
            one.now
        ));
    }
    text.push_str(&format!(
        "baseline: {} of {} figures worse beyond the spread and {:.0} %\n",
        flagged.len(),
        compared.len(),
        TOLERANCE * 100.0
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::row;

    const PATH: &str = "same-node-v4-one-core";

    fn run(direct: [f64; 3], p50: [f64; 3], cpu: [f64; 3]) -> Vec<Row> {
        vec![
            row("exchange-64B-1", PATH, "none", "p50", "us", direct),
            row("exchange-64B-1", PATH, "mesh", "p50", "us", p50),
            row("exchange-64B-1", PATH, "mesh", "proxy_cpu", "us/op", cpu),
        ]
    }

    fn flagged(now: &[Row]) -> Vec<String> {
        let baseline = run([49.0, 50.0, 54.0], [96.0, 100.0, 107.0], [38.0, 40.0, 42.0]);
        let compared = compare(&baseline, now).expect("figures in common");
        compared.into_iter().filter(|one| one.flagged).map(|one| one.what).collect()
    }

    #[test]
    fn twenty_microseconds_more_are_flagged() {
        let slow = run([49.0, 50.0, 54.0], [116.0, 120.0, 127.0], [58.0, 60.0, 62.0]);
        let p50 = format!("exchange-64B-1 {PATH} p50 of mesh");
        assert_eq!(flagged(&slow), [p50, format!("exchange-64B-1 {PATH} proxy_cpu of mesh")]);
    }

    #[test]
    fn noise_within_the_spread_is_not_flagged() {
        assert_eq!(flagged(&run([50.0, 52.0, 53.0], [103.0, 108.0, 131.0], [40.0, 41.0, 47.0])), [""; 0]);
    }

    #[test]
    fn a_median_beyond_the_tolerance_whose_range_still_overlaps_is_not_flagged() {
        assert_eq!(flagged(&run([49.0, 50.0, 54.0], [101.0, 130.0, 140.0], [38.0, 40.0, 42.0])), [""; 0]);
    }

    #[test]
    fn a_slower_machine_is_not_a_slower_mesh() {
        assert_eq!(flagged(&run([70.0, 75.0, 80.0], [145.0, 150.0, 160.0], [38.0, 40.0, 42.0])), [""; 0]);
    }

    #[test]
    fn a_lower_rate_is_worse_and_a_higher_one_is_not() {
        let run = |mesh: [f64; 3]| {
            vec![
                row("connect-16", PATH, "none", "rate", "1/s", [9_900.0, 10_000.0, 10_100.0]),
                row("connect-16", PATH, "mesh", "rate", "1/s", mesh),
            ]
        };
        let was = run([3_900.0, 4_000.0, 4_100.0]);
        assert!(compare(&was, &run([2_900.0, 3_000.0, 3_100.0])).expect("in common")[0].flagged);
        assert!(!compare(&was, &run([4_900.0, 5_000.0, 5_100.0])).expect("in common")[0].flagged);
    }

    #[test]
    fn nothing_in_common_is_an_error_and_not_a_pass() {
        assert!(compare(&[], &run([1.0; 3], [2.0; 3], [3.0; 3])).is_err());
    }
}

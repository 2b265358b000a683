//! What a run found: one row per scenario, path, plane and metric; the machine and the commands beside them.

use serde::{Deserialize, Serialize};

/// One figure: the median of some runs, with their spread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was done, `exchange-64B-1`.
    pub scenario: String,
    /// Between whom and how: `cross-node-v4-one-core`, `same-node-v6-two-cores`; `node` for what has no path.
    pub path: String,
    /// `none`, `mesh`, `envoy`, or a variant of one (`mesh-quiet`: telemetry off).
    pub plane: String,
    /// What was measured: `p50`, `p99`, `rate`, `throughput`, `proxy_cpu`, ...
    pub metric: String,
    /// `us`, `1/s`, `Gbit/s`, `us/op`, `s/GB`, `KiB`, `ms`, `count`.
    pub unit: String,
    /// Median of the runs.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// How many runs.
    pub runs: usize,
}

/// Everything a report is made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The machine, the versions, the placement: name and text, in the order to print.
    pub machine: Vec<(String, String)>,
    /// The command that reproduces it.
    pub command: String,
    /// The figures.
    pub rows: Vec<Row>,
    /// What a reader must know: a scenario that was left out and why, samples that were dropped.
    pub notes: Vec<String>,
    /// Wall time in seconds.
    pub seconds: f64,
}

impl Row {
    /// Of the values of several runs; `None` when there are none or one is not a number.
    pub fn of(scenario: &str, path: &str, plane: &str, metric: &str, unit: &str, values: &[f64]) -> Option<Row> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        if !min.is_finite() || !max.is_finite() {
            return None;
        }
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Row {
            scenario: scenario.to_owned(),
            path: path.to_owned(),
            plane: plane.to_owned(),
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            median,
            min,
            max,
            runs: sorted.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_median_and_spread_and_nothing_is_no_row() {
        let row = Row::of("s", "p", "mesh", "p50", "us", &[3.0, 1.0, 2.0, 10.0]).expect("values");
        assert_eq!((row.median, row.min, row.max, row.runs), (2.5, 1.0, 10.0, 4));
        assert_eq!(Row::of("s", "p", "mesh", "p50", "us", &[]), None);
        assert_eq!(Row::of("s", "p", "mesh", "p50", "us", &[1.0, f64::NAN]), None);
    }
}

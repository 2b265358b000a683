//! What a run found, for people and for programs: table, JSON, page with plots, `docs/performance.md`, comparison with a baseline.
//!
//! Everything here is a pure function of an [`Outcome`](crate::result::Outcome); only [`output`] writes files. Figures of one scenario, path and metric
//! stand side by side as one [`Line`], with their ratio to the plane `none`.

pub mod baseline;
pub mod html;
pub mod json;
pub mod limits;
pub mod markdown;
pub mod output;
pub mod peer;
mod plot;
pub mod table;
#[cfg(test)]
pub mod testing;
mod worse;

use crate::result::Row;

/// The plane that ratios are taken against: the same pods and links without capture.
pub const DIRECT: &str = "none";

/// One scenario, path and metric over all planes.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// Scenario.
    pub scenario: &'a str,
    /// Path.
    pub path: &'a str,
    /// Metric.
    pub metric: &'a str,
    /// Unit.
    pub unit: &'a str,
    /// One row per plane, `none` first, in the order of [`planes`].
    pub rows: Vec<&'a Row>,
}

impl<'a> Line<'a> {
    /// The figure of this plane.
    pub fn of(&self, plane: &str) -> Option<&'a Row> {
        self.rows.iter().copied().find(|row| row.plane == plane)
    }

    /// This plane's median over that of [`DIRECT`]; `None` where either is missing or direct is 0 (its proxy CPU is).
    pub fn ratio(&self, plane: &str) -> Option<f64> {
        ratio(self.of(plane)?.median, self.of(DIRECT)?.median)
    }
}

/// A quotient that is a number.
pub(crate) fn ratio(over: f64, under: f64) -> Option<f64> {
    (under != 0.0).then(|| over / under).filter(|ratio| ratio.is_finite())
}

/// Rows side by side, in the order in which they were measured.
pub fn lines(rows: &[Row]) -> Vec<Line<'_>> {
    let order = planes(rows);
    let mut lines: Vec<Line<'_>> = Vec::new();
    for row in rows {
        let same = |line: &&mut Line<'_>| {
            (line.scenario, line.path, line.metric, line.unit)
                == (row.scenario.as_str(), row.path.as_str(), row.metric.as_str(), row.unit.as_str())
        };
        match lines.iter_mut().find(same) {
            Some(line) => line.rows.push(row),
            None => lines.push(Line {
                scenario: &row.scenario,
                path: &row.path,
                metric: &row.metric,
                unit: &row.unit,
                rows: vec![row],
            }),
        }
    }
    for line in &mut lines {
        line.rows.sort_by_key(|row| order.iter().position(|plane| *plane == row.plane));
    }
    lines
}

/// The planes that were measured: `none`, `mesh` and its variants, then the others by name.
pub fn planes(rows: &[Row]) -> Vec<&str> {
    let mut planes: Vec<&str> = rows.iter().map(|row| row.plane.as_str()).collect();
    planes.sort_by_key(|plane| (*plane != DIRECT, !plane.starts_with("mesh"), *plane));
    planes.dedup();
    planes
}

/// Each value once, in the order of first sight.
pub(crate) fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// Whether a larger figure is the better one: counts per time are, times and costs are not.
pub fn more_is_better(unit: &str) -> bool {
    unit.ends_with("/s")
}

/// A number with three digits that count, thousands separated.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 99.95 || v == 0.0 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (sign, text) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    let (whole, rest) = text.split_once('.').map_or((text, None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match rest {
        Some(rest) => format!("{sign}{grouped}.{rest}"),
        None => format!("{sign}{grouped}"),
    }
}

/// `median (min–max)`; the spread only where there is more than one run.
pub fn figure(row: &Row) -> String {
    match row.runs {
        0 | 1 => number(row.median),
        _ => format!("{} ({}–{})", number(row.median), number(row.min), number(row.max)),
    }
}

/// `2.05x`
pub fn times(ratio: f64) -> String {
    format!("{ratio:.2}x")
}

/// What a scenario is about; the order in which the report tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Round trips.
    Latency,
    /// Bytes per second.
    Throughput,
    /// Connections and TLS set-ups per second.
    Connections,
    /// Memory by connection, pod and workload.
    Memory,
    /// Start, policy, pods, certificates.
    Times,
}

impl Group {
    /// All, in order.
    pub const ALL: [Group; 5] = [Group::Latency, Group::Throughput, Group::Connections, Group::Memory, Group::Times];

    /// Of a figure: memory by its unit, the rest by what its scenario does.
    pub fn of(scenario: &str, unit: &str) -> Group {
        let begins = |names: &[&str]| names.iter().any(|name| scenario.starts_with(name));
        match unit {
            "KiB" | "MiB" | "B" => Group::Memory,
            _ if begins(&["exchange"]) => Group::Latency,
            _ if begins(&["bulk"]) => Group::Throughput,
            _ if begins(&["connect", "identities", "short"]) => Group::Connections,
            _ => Group::Times,
        }
    }

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Group::Latency => "Latency",
            Group::Throughput => "Throughput",
            Group::Connections => "New connections",
            Group::Memory => "Memory",
            Group::Times => "Times",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_one_thing_stand_side_by_side_with_direct_first() {
        let outcome = testing::outcome();
        let lines = lines(&outcome.rows);
        let line = lines.iter().find(|line| line.metric == "p50" && line.path.starts_with("same")).expect("p50");
        assert_eq!(line.rows.iter().map(|row| row.plane.as_str()).collect::<Vec<_>>(), ["none", "mesh", "envoy"]);
        assert_eq!(line.ratio("mesh"), Some(2.0));
        assert_eq!(line.ratio("quiet"), None);
    }

    #[test]
    fn a_number_shows_three_digits_that_count() {
        let shown: Vec<String> = [0.0, 0.1234, 1.234, 12.34, 123.4, 1_234_567.0, -1234.0].map(number).into();
        assert_eq!(shown, ["0", "0.123", "1.23", "12.3", "123", "1,234,567", "-1,234"]);
    }

    #[test]
    fn a_cost_that_direct_does_not_have_is_no_ratio() {
        assert_eq!(ratio(3.0, 0.0), None);
        assert_eq!(ratio(3.0, f64::NAN), None);
    }
}

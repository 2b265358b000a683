//! The limits that the figures are held against, all of them in this one file.
//!
//! A limit names one figure, or the ratio of two, and a bound. It is reached, not reached, or not measured in this run: what is
//! missing never counts as reached.

use crate::report::{DIRECT, Line, number, ratio, times};

/// One limit.
#[derive(Debug)]
pub struct Limit {
    /// As a person says it.
    pub name: &'static str,
    /// Scenario, whole.
    pub scenario: &'static str,
    /// Paths begin so.
    pub path: &'static str,
    /// And contain this layout.
    pub layout: &'static str,
    /// Whose figure: plane and metric.
    pub of: (&'static str, &'static str),
    /// Taken over this one of the same scenario and path: plane and metric.
    pub over: Option<(&'static str, &'static str)>,
    /// What it must hold.
    pub bound: Bound,
    /// An aim is printed, not promised.
    pub aim: bool,
}

/// In the metric's unit, or as a ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// No more than.
    AtMost(f64),
    /// No less than.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Bound::AtMost(bound) => value <= bound,
            Bound::AtLeast(bound) => value >= bound,
        }
    }
}

const MESH: &str = "mesh";
const QUIET: &str = "mesh-quiet";

const fn to_direct(
    name: &'static str,
    scenario: &'static str,
    (path, layout): (&'static str, &'static str),
    metric: &'static str,
    bound: Bound,
) -> Limit {
    Limit { name, scenario, path, layout, of: (MESH, metric), over: Some((DIRECT, metric)), bound, aim: false }
}

const fn plain(
    name: &'static str,
    scenario: &'static str,
    path: &'static str,
    metric: &'static str,
    bound: Bound,
) -> Limit {
    Limit { name, scenario, path, layout: "", of: (MESH, metric), over: None, bound, aim: false }
}

const fn telemetry(name: &'static str, scenario: &'static str, most: f64) -> Limit {
    let over = Some((QUIET, "proxy_cpu"));
    Limit { name, scenario, path: "", layout: "", of: (MESH, "proxy_cpu"), over, bound: Bound::AtMost(most), aim: true }
}

const fn flat(name: &'static str, metric: &'static str) -> Limit {
    let over = Some((MESH, "rate_first"));
    let bound = Bound::AtLeast(0.8);
    Limit { name, scenario: "short-90000", path: "", layout: "", of: (MESH, metric), over, bound, aim: false }
}

/// Which figures are bound, and by what.
pub const LIMITS: &[Limit] = &[
    to_direct("same-node exchange, p50", "exchange-64B-1", ("same-node", "one-core"), "p50", Bound::AtMost(2.2)),
    to_direct("same-node exchange, p50", "exchange-1KiB-1", ("same-node", "one-core"), "p50", Bound::AtMost(2.2)),
    to_direct("cross-node exchange, p50", "exchange-64B-1", ("cross-node", "one-core"), "p50", Bound::AtMost(3.5)),
    to_direct("cross-node exchange, p50", "exchange-1KiB-1", ("cross-node", "one-core"), "p50", Bound::AtMost(3.5)),
    to_direct("cross-node bulk per stream", "bulk-up-1", ("cross-node", ""), "throughput", Bound::AtLeast(0.35)),
    to_direct("cross-node bulk per stream", "bulk-down-1", ("cross-node", ""), "throughput", Bound::AtLeast(0.35)),
    to_direct("new connections", "connect-1", ("", ""), "rate", Bound::AtLeast(0.3)),
    to_direct("new connections", "connect-16", ("", ""), "rate", Bound::AtLeast(0.3)),
    plain("110 certificates, ms", "certificates-110", "node", "ready", Bound::AtMost(500.0)),
    plain("5,000 denied connections cut, ms", "cut-5000", "", "cut", Bound::AtMost(200.0)),
    plain("a pod, KiB", "pods-100", "node", "per_pod", Bound::AtMost(40.0)),
    plain("a pod, KiB", "pods-250", "node", "per_pod", Bound::AtMost(40.0)),
    plain("idle connection and side, KiB", "idle-10000", "cross-node", "per_connection", Bound::AtMost(8.0)),
    plain(
        "idle connection, server's side, KiB",
        "idle-10000",
        "cross-node",
        "per_connection_server",
        Bound::AtMost(8.0),
    ),
    // Both sides are one process here: one figure for both.
    plain("idle connection and side, KiB", "idle-8000", "same-node", "per_connection", Bound::AtMost(8.0)),
    // "Flat" is a judgement: neither the last ninth of the connections nor the slowest below 0.8 of the first. A collapse is a
    // factor of ten.
    flat("short connections stay as fast, last to first", "rate_last"),
    flat("short connections stay as fast, least to first", "rate_least"),
    Limit {
        name: "neighbour's p99 beside short connections",
        scenario: "short-40000",
        path: "",
        layout: "",
        of: (MESH, "neighbour_p99"),
        over: Some((MESH, "neighbour_p99_alone")),
        bound: Bound::AtMost(2.0),
        aim: false,
    },
    telemetry("telemetry's CPU per exchange", "exchange-1KiB-1", 1.03),
    telemetry("telemetry's CPU per connection", "connect-16", 1.10),
];

/// What became of a limit on one path.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// [`Limit::name`]
    pub name: &'static str,
    /// Scenario.
    pub scenario: &'static str,
    /// The path it was measured on; `None` when it was not.
    pub path: Option<String>,
    /// The bound, `≤ 2.20x`.
    pub bound: String,
    /// The figure, `2.05x`, and whether it holds.
    pub seen: Option<(String, bool)>,
    /// [`Limit::aim`]
    pub aim: bool,
}

impl Judged {
    /// In words.
    pub fn verdict(&self) -> &'static str {
        match (&self.seen, self.aim) {
            (None, _) => "not measured",
            (Some((_, true)), _) => "reached",
            (Some((_, false)), false) => "**not reached**",
            (Some((_, false)), true) => "not reached (an aim)",
        }
    }
}

/// Every limit against these figures; one entry per path that it was measured on.
pub fn judge(lines: &[Line<'_>]) -> Vec<Judged> {
    LIMITS.iter().flat_map(|limit| judge_one(limit, lines)).collect()
}

fn judge_one(limit: &Limit, lines: &[Line<'_>]) -> Vec<Judged> {
    let show = |value: f64| if limit.over.is_some() { times(value) } else { number(value) };
    let bound = match limit.bound {
        Bound::AtMost(most) => format!("≤ {}", show(most)),
        Bound::AtLeast(least) => format!("≥ {}", show(least)),
    };
    let here = |line: &&Line<'_>| {
        line.scenario == limit.scenario && line.path.starts_with(limit.path) && line.path.contains(limit.layout)
    };
    let median = |path: &str, (plane, metric): (&str, &str)| {
        let mut there = lines.iter().filter(here).filter(|line| line.path == path && line.metric == metric);
        there.find_map(|line| line.of(plane)).map(|row| row.median)
    };
    let judged = |path: Option<String>, seen: Option<(String, bool)>| Judged {
        name: limit.name,
        scenario: limit.scenario,
        path,
        bound: bound.clone(),
        seen,
        aim: limit.aim,
    };
    let paths = super::distinct(lines.iter().filter(here).map(|line| line.path));
    let measured: Vec<Judged> = paths
        .into_iter()
        .filter_map(|path| {
            let of = median(path, limit.of)?;
            let value = match limit.over {
                Some(over) => ratio(of, median(path, over)?)?,
                None => of,
            };
            Some(judged(Some(path.to_owned()), Some((show(value), limit.bound.holds(value)))))
        })
        .collect();
    if measured.is_empty() { vec![judged(None, None)] } else { measured }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{lines, testing};

    fn verdict(name: &str, scenario: &str) -> (Option<String>, &'static str) {
        let outcome = testing::outcome();
        let judged = judge(&lines(&outcome.rows));
        let one = judged.iter().find(|one| one.name == name && one.scenario == scenario).expect("a limit of this name");
        (one.seen.clone().map(|(seen, _)| seen), one.verdict())
    }

    #[test]
    fn a_ratio_within_its_bound_is_reached_and_one_beyond_is_not() {
        assert_eq!(verdict("same-node exchange, p50", "exchange-1KiB-1"), (Some("2.00x".into()), "reached"));
        assert_eq!(verdict("cross-node exchange, p50", "exchange-1KiB-1"), (Some("4.00x".into()), "**not reached**"));
        assert_eq!(verdict("110 certificates, ms", "certificates-110"), (Some("320".into()), "reached"));
    }

    #[test]
    fn what_was_not_measured_is_never_reached() {
        assert_eq!(verdict("same-node exchange, p50", "exchange-64B-1"), (None, "not measured"));
        assert_eq!(verdict("telemetry's CPU per exchange", "exchange-1KiB-1"), (None, "not measured"));
    }
}

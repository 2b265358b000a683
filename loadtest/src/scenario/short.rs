//! Very many short connections from one pod: beside a neighbour that must not suffer, and in one go, which must not slow down.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::context::Client;
use super::{Context, Figure, Paths, Planes, Scenario, Sized, traffic};
use crate::path::Place;
use crate::plane::ECHO;
use crate::traffic::{Latency, Report, Work};

/// 40,000 in 60 s.
const RATE: f64 = 40_000.0 / 60.0;
/// Bytes each way.
const SIZE: usize = 1024;
/// Connections at a time, at most.
const AT_ONCE: usize = 16;
/// The neighbour's exchanges per second: few enough to be none of the load, enough for a p99.
const NEIGHBOUR: f64 = 500.0;

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    vec![beside_a_neighbour(), in_a_row()]
}

fn beside_a_neighbour() -> Scenario {
    let lasts = Sized { whole: Duration::from_secs(60), quick: Duration::from_secs(6) };
    Scenario {
        name: "short-40000".into(),
        about: "40,000 short connections from one pod in 60 s (quick: that rate for 6 s), a neighbour's exchanges alone and beside them, in \
                windows"
            .into(),
        paths: Paths::One(Place::CrossNode),
        planes: Planes::Kinds,
        rounds: Sized { whole: 1, quick: 1 },
        takes: Sized { whole: Duration::from_secs(88), quick: Duration::from_secs(10) },
        sample: Box::new(move |cx| {
            let lasts = lasts.of(cx.quick);
            // Half of what it is alone is measured before and half after: what the machine does meanwhile is in both.
            let (half, window) = cx.sized((3, Duration::from_secs(4)), (1, Duration::from_secs(1)));
            cx.pin()?;
            let mut alone = windows(neighbours(cx, half, window)?, cx)?;
            let count = 2 * half;
            // A little less than all of the time, so that the last one ends while there is something to be beside of.
            let beside = neighbours(cx, count, lasts * 19 / 20 / count)?;
            let work = Work::Connect { size: SIZE, at_once: AT_ONCE, lasts, rate: Some(RATE), limit: None, block: None };
            let (measured, beside) = traffic::beside(cx, ECHO, work, || windows(beside, cx))?;
            alone.extend(windows(neighbours(cx, half, window)?, cx)?);
            let mut figures = measured.operations();
            figures.push(Figure::new("connections", "count", measured.report.done as f64));
            for (latencies, suffix) in [(alone, "_alone"), (beside, "")] {
                for latency in latencies {
                    figures.push(Figure::new(format!("neighbour_p50{suffix}"), "us", latency.p50));
                    figures.push(Figure::new(format!("neighbour_p99{suffix}"), "us", latency.p99));
                }
            }
            Ok(figures)
        }),
    }
}

/// So many neighbours that each exchange for so long once they are told to begin. Their connections stand.
fn neighbours(cx: &Context<'_>, count: u32, lasts: Duration) -> Result<Vec<Client>> {
    let work = || Work::Exchange { size: 64, connections: 2, lasts, rate: Some(NEIGHBOUR) };
    (0..count).map(|_| cx.client(&cx.plane.pods().neighbour, ECHO, work())).collect()
}

/// One after another. One's failure is that of the sample.
fn windows(neighbours: Vec<Client>, cx: &Context<'_>) -> Result<Vec<Latency>> {
    let one = |client: Client| {
        client.begin()?;
        times(&client.report(cx.left()?)?)
    };
    neighbours.into_iter().map(one).collect()
}

fn times(report: &Report) -> Result<Latency> {
    ensure!(report.failed == 0, "the neighbour's exchanges failed: {:?}", report.error);
    report.latency.context("a neighbour without exchanges")
}

fn in_a_row() -> Scenario {
    let count = Sized { whole: 90_000_u64, quick: 9_000 };
    // A sidecar is not done by then: its rate is that of the time it had.
    let longest = Sized { whole: Duration::from_secs(60), quick: Duration::from_secs(8) };
    Scenario {
        name: "short-90000".into(),
        about: "90,000 short connections in a row, 16 at a time (quick: 9,000): the rates of the first ninth, of the last and of the slowest".into(),
        paths: Paths::Main,
        planes: Planes::Kinds,
        rounds: Sized { whole: 1, quick: 1 },
        takes: Sized { whole: Duration::from_secs(25), quick: Duration::from_secs(2) },
        sample: Box::new(move |cx| {
            let (count, lasts) = (count.of(cx.quick), longest.of(cx.quick));
            let (limit, block) = (Some(count), Some(count / 9));
            let work = Work::Connect { size: SIZE, at_once: AT_ONCE, lasts, rate: None, limit, block };
            let measured = traffic::run(cx, ECHO, work)?;
            let mut figures = measured.operations();
            figures.push(Figure::new("connections", "count", measured.report.done as f64));
            let blocks = &measured.report.blocks;
            let (first, last) = (blocks.first().context("not even a ninth of them in time")?, blocks.last());
            let least = blocks.iter().copied().fold(f64::INFINITY, f64::min);
            figures.push(Figure::new("rate_first", "1/s", *first));
            figures.extend(last.map(|last| Figure::new("rate_last", "1/s", *last)));
            figures.push(Figure::new("rate_least", "1/s", least));
            Ok(figures)
        }),
    }
}

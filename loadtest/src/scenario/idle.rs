//! Connections that are open and silent: what each costs its proxies and the kernel, and what stays when they have been closed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::Pid;

use super::held::Holders;
use super::{Context, Figure, Paths, Planes, Scenario, Sized};
use crate::measure::memory;
use crate::path::{Place, Side};

/// How long memory has to come back after the last connection was closed: jemalloc gives pages back over 10 s by default, and the
/// peer was looked at after 12.
const BACK: Duration = Duration::from_secs(15);
/// How long sockets that an earlier scenario closed have to go: the kernel keeps them for a moment, seconds when it is busy.
const REST: Duration = Duration::from_secs(5);
/// What the kernel's memory for sockets may fall by between two looks at rest.
const STILL: u64 = 64 * 1024;
/// How often memory is looked at meanwhile; each look walks the processes' mappings.
const LOOK: Duration = Duration::from_millis(500);

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    vec![scenario(10_000, Place::CrossNode), scenario(8_000, Place::SameNode)]
}

fn scenario(count: usize, place: Place) -> Scenario {
    Scenario {
        name: format!("idle-{count}"),
        about: format!(
            "{count} open connections without a byte: memory of each, and what stays after them (quick: a fifth of them, and not what stays); fewer where a process may have too few descriptors"
        ),
        paths: Paths::One(place),
        planes: Planes::Kinds,
        rounds: Sized { whole: 1, quick: 1 },
        takes: Sized { whole: Duration::from_secs(28), quick: Duration::from_secs(6) },
        sample: Box::new(move |cx| measure(cx, cx.sized(count, count / 5))),
    }
}

fn measure(cx: &Context<'_>, count: usize) -> Result<Vec<Figure>> {
    cx.plane.fresh()?;
    let holders = Holders::new(cx, count)?;
    holders.pin()?;
    let figures = hold(cx, &holders);
    holders.away()?;
    figures
}

fn hold(cx: &Context<'_>, holders: &Holders<'_>) -> Result<Vec<Figure>> {
    let count = holders.count();
    let sides: Vec<(&str, Vec<Pid>)> = [("", Side::Client), ("_server", Side::Server)]
        .into_iter()
        .map(|(suffix, side)| Ok((suffix, holders.proxies(side)?)))
        .filter(|side| !side.as_ref().is_ok_and(|(_, pids)| pids.is_empty()))
        .collect::<Result<_>>()?;
    let used = || sides.iter().map(|(_, pids)| memory::pss(pids)).collect::<Result<Vec<u64>>>();
    // The wait for the kernel's first: what the proxies give back meanwhile is not what connections cost.
    let kernel_before = sockets_at_rest(cx)?;
    let before = used()?;
    let held = holders.open()?;
    let (open, kernel_open) = (used()?, memory::sockets()?);
    held.end()?;
    let report = held.report(cx.left()?)?;
    ensure!(report.done == count as u64 && report.cut.is_none(), "{} of {count} stayed open", report.done);
    let mut figures = vec![
        Figure::new("connections", "count", count as f64),
        Figure::new("open_rate", "1/s", report.done as f64 / report.seconds),
        Figure::new("kernel_per_connection", "KiB", kib(kernel_open, kernel_before) / count as f64),
    ];
    if sides.is_empty() {
        return Ok(figures);
    }
    // To wait for it on two paths and two planes is a minute: too much for `--quick`.
    let after = if cx.quick { None } else { Some(least_within(cx, used)?) };
    for (number, (suffix, _)) in sides.iter().enumerate() {
        let each = kib(open[number], before[number]) / count as f64;
        figures.push(Figure::new(format!("per_connection{suffix}"), "KiB", each));
        let stays = after.as_ref().map(|after| kib(after[number], before[number]));
        figures.extend(stays.map(|stays| Figure::new(format!("stays{suffix}"), "KiB", stays)));
    }
    Ok(figures)
}

/// The kernel's memory for sockets once it no longer falls: what others gave back meanwhile would be missing from ours.
fn sockets_at_rest(cx: &Context<'_>) -> Result<u64> {
    let end = Instant::now() + REST.min(cx.left()?);
    let mut before = memory::sockets()?;
    loop {
        std::thread::park_timeout(LOOK);
        let now = memory::sockets()?;
        if now + STILL >= before || Instant::now() >= end {
            return Ok(now);
        }
        before = now;
    }
}

/// The least there was until [`BACK`] had passed. Not "until it no longer falls": an allocator gives nothing back at first.
fn least_within(cx: &Context<'_>, used: impl Fn() -> Result<Vec<u64>>) -> Result<Vec<u64>> {
    let end = Instant::now() + BACK.min(cx.left()?);
    let mut least = used()?;
    while Instant::now() < end {
        std::thread::park_timeout(LOOK);
        let now = used()?;
        if now.iter().sum::<u64>() < least.iter().sum::<u64>() {
            least = now;
        }
    }
    Ok(least)
}

fn kib(now: u64, before: u64) -> f64 {
    (now as f64 - before as f64) / 1024.0
}

//! The first connections of pods that have never spoken: each has an identity of its own, so each needs a TLS set-up of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::PodHandle;

use super::context::Client;
use super::pods::at_once;
use super::{Context, Figure, Paths, Planes, Scenario, Sized};
use crate::measure::{cores, cpu};
use crate::path::{Place, Side};
use crate::plane::ECHO;
use crate::traffic::{Report, Work};

/// Service accounts, each of one pod: as many as a full node has pods.
const IDENTITIES: Sized<usize> = Sized { whole: 100, quick: 16 };
/// How often all of them begin anew, with proxies that know nothing of each other.
const TIMES: Sized<usize> = Sized { whole: 3, quick: 1 };

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    vec![Scenario {
        name: "identities".into(),
        about: "pods of 100 service accounts (quick: 16) open their first connection at once: set-ups of mutual TLS per second"
            .into(),
        paths: Paths::One(Place::CrossNode),
        planes: Planes::Kinds,
        rounds: Sized { whole: 1, quick: 1 },
        takes: Sized { whole: Duration::from_secs(30), quick: Duration::from_secs(5) },
        sample: Box::new(|cx| {
            let pods = newcomers(cx, IDENTITIES.of(cx.quick))?;
            let mut figures = Vec::new();
            let measured = (0..TIMES.of(cx.quick)).try_for_each(|_| {
                figures.extend(first_connections(cx, &pods)?);
                Ok(())
            });
            away(cx, pods)?;
            measured.map(|()| figures)
        }),
    }]
}

/// Makes the pods, several at a time.
fn newcomers(cx: &Context<'_>, count: usize) -> Result<Vec<PodHandle>> {
    let (left, made) = (AtomicUsize::new(count), Mutex::new(Vec::new()));
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
    let (plane, deadline) = (cx.plane, cx.deadline);
    let done = at_once(|| {
        while take() {
            ensure!(Instant::now() < deadline, "the scenario's time is over");
            let pod = plane.add_client(&format!("newcomer-{}", NEXT.fetch_add(1, Ordering::Relaxed)))?;
            made.lock().unwrap_or_else(PoisonError::into_inner).push(pod);
        }
        Ok(())
    });
    let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = done {
        let _ = away(cx, made); // the first error is the one to tell
        return Err(error);
    }
    Ok(made)
}

fn away(cx: &Context<'_>, pods: Vec<PodHandle>) -> Result<()> {
    let (pods, plane) = (Mutex::new(pods), cx.plane);
    at_once(|| {
        loop {
            let Some(pod) = pods.lock().unwrap_or_else(PoisonError::into_inner).pop() else { return Ok(()) };
            plane.remove(&pod)?;
        }
    })
}

fn first_connections(cx: &Context<'_>, pods: &[PodHandle]) -> Result<Vec<Figure>> {
    // No tunnel and no session from the time before.
    cx.plane.fresh()?;
    cx.wait_for_certificates(pods.len())?;
    cx.pin()?;
    let callers: Vec<&PodHandle> = pods.iter().collect();
    for pid in cx.plane.proxies_of(&callers, &[], Side::Client)? {
        cores::pin(&pid, cx.path.layout.core(Side::Client))?;
    }
    let mut pids = Vec::new();
    for node in [1, 2] {
        pids.extend(cx.plane.processes(node)?.into_iter().map(|(_, pid)| pid));
    }
    let clients = pods.iter().map(|pod| cx.client(pod, ECHO, Work::First { size: 64 })).collect::<Result<Vec<_>>>()?;
    let left = cx.left()?;
    let spent = cx.watched(|| {
        let before = cpu::used(&pids)?;
        clients.iter().try_for_each(Client::begin)?;
        clients.iter().try_for_each(|client| client.answered(left))?;
        Ok(cpu::used(&pids)?.saturating_sub(before))
    })?;
    clients.iter().try_for_each(Client::end)?;
    let reports: Vec<Report> = clients.into_iter().map(|client| client.report(left)).collect::<Result<_>>()?;
    figures(&reports, (!pids.is_empty()).then_some(spent))
}

fn figures(reports: &[Report], proxies: Option<Duration>) -> Result<Vec<Figure>> {
    let mut times: Vec<f64> = reports.iter().filter_map(|report| Some(report.latency.as_ref()?.p50)).collect();
    ensure!(times.len() == reports.len(), "{} of {} first connections were answered", times.len(), reports.len());
    times.sort_by(f64::total_cmp);
    let spans = || reports.iter().filter_map(|report| report.span);
    let begun = spans().map(|(begun, _)| begun).min().context("no first connection was begun")?;
    let answered = spans().map(|(_, answered)| answered).max().context("no first connection was answered")?;
    let all = Duration::from_nanos(answered.saturating_sub(begun)).as_secs_f64();
    let mut figures = vec![
        Figure::new("rate", "1/s", times.len() as f64 / all),
        Figure::new("all", "ms", all * 1e3),
        Figure::new("p50", "us", times[times.len() / 2]),
        Figure::new("max", "us", times[times.len() - 1]),
        Figure::new("setups", "count", times.len() as f64),
    ];
    figures
        .extend(proxies.map(|spent| Figure::new("proxy_cpu", "us/op", spent.as_secs_f64() * 1e6 / times.len() as f64)));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_time_from_the_first_begun_to_the_last_answered() {
        let report = |begun: u64, answered: u64| Report {
            latency: Some(crate::traffic::Latency::default()),
            span: Some((begun, answered)),
            ..Report::default()
        };
        let second = 1_000_000_000;
        let figures = figures(&[report(second, 2 * second), report(0, second)], None).expect("two answers");
        let rate = figures.iter().find(|figure| figure.metric == "rate").expect("a rate");
        assert_eq!(rate.value, 1.0, "two in two seconds");
        assert!(super::figures(&[Report::default()], None).is_err(), "one without an answer");
    }
}

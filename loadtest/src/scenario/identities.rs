//! The first connection of pods that have never spoken: each has an identity of its own, so each needs a TLS set-up of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::PodHandle;

use super::{Context, Figure, Paths, Planes, Scenario, Sized};
use crate::measure::cpu;
use crate::path::Place;
use crate::plane::ECHO;
use crate::traffic::{Report, Work};

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    vec![Scenario {
        name: "identities".into(),
        about: "pods of as many service accounts open their first connection at once: 16 (quick: 6)".into(),
        paths: Paths::One(Place::CrossNode),
        planes: Planes::Kinds,
        rounds: Sized { whole: 2, quick: 1 },
        takes: Sized { whole: Duration::from_secs(11), quick: Duration::from_secs(5) },
        sample: Box::new(|cx| {
            let pods: Vec<PodHandle> = (0..cx.sized(16, 6))
                .map(|_| cx.plane.add_client(&format!("newcomer-{}", NEXT.fetch_add(1, Ordering::Relaxed))))
                .collect::<Result<_>>()?;
            let measured = first_connections(cx, &pods);
            pods.iter().try_for_each(|pod| cx.plane.remove_client(pod))?;
            measured
        }),
    }]
}

fn first_connections(cx: &Context<'_>, pods: &[PodHandle]) -> Result<Vec<Figure>> {
    cx.wait_for_certificates(pods.len())?;
    cx.pin()?;
    let mut pids = Vec::new();
    for node in [1, 2] {
        pids.extend(cx.plane.processes(node)?.into_iter().map(|(_, pid)| pid));
    }
    let clients = pods.iter().map(|pod| cx.client(pod, ECHO, Work::First { size: 64 })).collect::<Result<Vec<_>>>()?;
    let left = cx.left()?;
    let (reports, spent) = cx.watched(|| {
        let before = cpu::used(&pids)?;
        clients.iter().try_for_each(|client| client.begin())?;
        let reports: Vec<Report> = clients.into_iter().map(|client| client.report(left)).collect::<Result<_>>()?;
        Ok((reports, cpu::used(&pids)?.saturating_sub(before)))
    })?;
    let mut times: Vec<f64> = reports.iter().filter_map(|report| Some(report.latency.as_ref()?.p50)).collect();
    ensure!(times.len() == pods.len(), "{} of {} first connections were answered", times.len(), pods.len());
    times.sort_by(f64::total_cmp);
    let mut figures = vec![
        Figure::new("p50", "us", times[times.len() / 2]),
        Figure::new("max", "us", times[times.len() - 1]),
        Figure::new("setups", "count", times.len() as f64),
    ];
    if !pids.is_empty() {
        figures.push(Figure::new("proxy_cpu", "us/op", spent.as_secs_f64() * 1e6 / times.len() as f64));
    }
    Ok(figures)
}

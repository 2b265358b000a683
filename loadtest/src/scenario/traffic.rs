//! One run of one client and what the proxies spent on it: what every scenario of plain traffic is made of.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Context, Figure};
use crate::measure::cpu;
use crate::path::Side;
use crate::traffic::{Report, Work};

/// A client's report and the proxies' time.
pub(super) struct Measured {
    pub(super) report: Report,
    /// Of both sides' proxies, from the client's start signal to its end; `None` in a plane without.
    pub(super) proxies: Option<Duration>,
}

/// Runs `work` from the plane's client to `port` of the path.
pub(super) fn run(cx: &Context<'_>, port: u16, work: Work) -> Result<Measured> {
    beside(cx, port, work, || Ok(())).map(|(measured, ())| measured)
}

/// The same, with what is done while it runs.
pub(super) fn beside<T>(
    cx: &Context<'_>,
    port: u16,
    work: Work,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(Measured, T)> {
    cx.pin()?;
    let place = cx.path.place;
    let mut pids = cx.plane.proxies(place, Side::Client)?;
    pids.extend(cx.plane.proxies(place, Side::Server)?);
    let client = cx.client(&cx.plane.pods().client, port, work)?;
    let (report, done, spent) = cx.watched(|| {
        let before = cpu::used(&pids)?;
        client.begin()?;
        let done = meanwhile()?;
        let report = client.report(cx.left()?)?;
        Ok((report, done, cpu::used(&pids)?.saturating_sub(before)))
    })?;
    let why = report.error.as_deref().unwrap_or_default();
    ensure!(report.done > 0, "nothing succeeded, {} failed: {why}", report.failed);
    Ok((Measured { report, proxies: (!pids.is_empty()).then_some(spent) }, done))
}

impl Measured {
    /// Rate and times of operations, and what each cost the proxies. Failures are a figure when there are any.
    pub(super) fn operations(&self) -> Vec<Figure> {
        let Measured { report, proxies } = self;
        let mut figures = vec![Figure::new("rate", "1/s", report.done as f64 / report.seconds)];
        if let Some(latency) = &report.latency {
            figures.push(Figure::new("p50", "us", latency.p50));
            figures.push(Figure::new("p99", "us", latency.p99));
        }
        if let Some(proxies) = proxies {
            figures.push(Figure::new("proxy_cpu", "us/op", proxies.as_secs_f64() * 1e6 / report.done as f64));
        }
        if report.failed > 0 {
            figures.push(Figure::new("failed", "count", report.failed as f64));
        }
        figures
    }
}

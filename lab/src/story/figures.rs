//! What it costs: latency added, memory for pods, time of our part of ADD.

use anyhow::{Context, Result, ensure};
use lab::pod::{ECHO, HTTP};
use lab::{App, Pod, PodHandle};
use serde_json::Value;

use super::teller::Teller;
use super::{Cast, at};
use crate::verbs::table;

pub(super) fn tell(teller: &mut Teller, cast: &Cast, count: usize) {
    pods(teller, cast, count);
    latency(teller, cast);
}

fn latency(teller: &mut Teller, cast: &Cast) {
    let Cast { cart, near, far, stranger, other, .. } = cast;
    teller.step("added latency", |teller| {
        let mut rows = table(&["way", "round trip p50", "p99", "new connection p50", "p99"]);
        for (name, from, to) in
            [("direct", stranger, other), ("mesh, other node", cart, far), ("mesh, same node", cart, near)]
        {
            let seen = measure(from, to)?;
            let us = |of: &str, which: &str| seen[of][which].as_f64().unwrap_or_default();
            let short = name.replace(", ", "_").replace(' ', "_");
            teller.figure(&format!("latency_{short}_p50_us"), us("round_trip_us", "p50"));
            teller.figure(&format!("connect_{short}_p50_us"), us("connection_us", "p50"));
            let cell = |of: &str, which: &str| format!("{:.0} µs", us(of, which));
            rows.add_row(vec![
                name.to_owned(),
                cell("round_trip_us", "p50"),
                cell("round_trip_us", "p99"),
                cell("connection_us", "p50"),
                cell("connection_us", "p99"),
            ]);
        }
        Ok(((), rows.to_string()))
    });
}

fn measure(from: &PodHandle, to: &PodHandle) -> Result<Value> {
    let seen = from.run_client(&["latency", &at(to.ips()[0], ECHO)])?;
    ensure!(seen["ok"] == 1, "{seen}");
    Ok(seen)
}

/// Proportional memory of keeper and worker of node 1, in bytes.
fn proxy_memory(cast: &Cast) -> Result<u64> {
    let mesh = cast.lab.mesh();
    let processes = [mesh.keeper(1).id(), mesh.worker(1).id(), mesh.worker_child(1)?];
    processes.iter().map(|p| p.pss().with_context(|| format!("memory of process {}", p.pid))).sum()
}

fn pods(teller: &mut Teller, cast: &Cast, count: usize) {
    if count == 0 {
        return;
    }
    let lab = &cast.lab;
    teller.step(&format!("{count} more pods on node 1"), |teller| {
        let watcher = || lab.mesh().watcher(1).id().pss().context("memory of pod-watcher");
        let (before, watcher_before) = (proxy_memory(cast)?, watcher()?);
        let mut made = Vec::new();
        let mut ours = Vec::new();
        for n in 0..count {
            let pod = lab.add_pod(Pod::new("shop", &format!("many-{n}")).app(App::serve(&[("echo", ECHO), ("http", HTTP)])))?;
            ours.push(pod.added().time_of("culvert-cni").unwrap_or_default().as_secs_f64() * 1e3);
            made.push(pod);
        }
        let (after, watcher_after) = (proxy_memory(cast)?, watcher()?);
        let fds = lab.mesh().keeper(1).id().fds().unwrap_or(0) + lab.mesh().worker_child(1)?.fds().unwrap_or(0);
        for pod in &made {
            lab.remove_pod(pod)?;
        }
        ours.sort_by(f64::total_cmp);
        let at = |q: usize| ours[(ours.len() * q / 100).min(ours.len() - 1)];
        // Signed: what earlier traffic took may be given back meanwhile.
        let each = |before: u64, after: u64| (after as f64 - before as f64) / count as f64 / 1e3;
        let (proxy_each, watcher_each) = (each(before, after), each(watcher_before, watcher_after));
        teller.figure("add_ours_p50_ms", at(50));
        teller.figure("add_ours_p99_ms", at(99));
        teller.figure("proxy_memory_before_mb", before as f64 / 1e6);
        teller.figure("proxy_memory_after_mb", after as f64 / 1e6);
        teller.figure("proxy_memory_per_pod_kb", proxy_each);
        teller.figure("watcher_memory_per_pod_kb", watcher_each);
        teller.figure("proxy_descriptors", fds as f64);
        let detail = format!(
            "our part of ADD p50 {:.1} ms, p99 {:.1} ms (starting the plugin's process included)\n\
             keeper and worker {:.1} MB → {:.1} MB, {proxy_each:.0} kB per pod; pod-watcher {watcher_each:.0} kB per pod; \
             {fds} descriptors",
            at(50), at(99), before as f64 / 1e6, after as f64 / 1e6
        );
        Ok(((), detail))
    });
}

//! Ten or a hundred thousand workloads of other nodes: how long until a node's worker knows them, and what each costs it.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Lab, wait};
use serde_json::json;

use super::{Context, Figure, Paths, Planes, Scenario, Sized};
use crate::measure::memory;
use crate::plane::NAMESPACE;

/// Longest until all are known or forgotten.
const KNOWN: Duration = Duration::from_secs(240);
/// Of so many pods one file is made: files above 8 MiB are refused.
const A_FILE: usize = 10_000;

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    let count = Sized { whole: 10_000, quick: 1_000 };
    let scenario = |name: &str, about: &str, rounds, takes: Sized<Duration>, count: Sized<usize>| Scenario {
        name: name.into(),
        about: about.into(),
        paths: Paths::Node,
        planes: Planes::Mesh,
        rounds,
        takes,
        sample: Box::new(move |cx| measure(cx, count.of(cx.quick))),
    };
    let (short, long, very_long) = (Duration::from_secs(6), Duration::from_secs(25), Duration::from_secs(400));
    vec![
        scenario(
            "workloads-10000",
            "10,000 pods of another node become known (quick: 1,000): until when, and memory of each",
            Sized { whole: 1, quick: 1 },
            Sized { whole: long, quick: short },
            count,
        ),
        // Only where `--rounds` asks for it, as `cargo xtask scale` does.
        scenario(
            "workloads-100000",
            "100,000 pods of another node become known: until when, and memory of each; only with --rounds",
            Sized { whole: 0, quick: 0 },
            Sized { whole: very_long, quick: very_long },
            Sized { whole: 100_000, quick: 100_000 },
        ),
    ]
}

fn measure(cx: &Context<'_>, count: usize) -> Result<Vec<Figure>> {
    cx.plane.fresh()?;
    let lab = cx.plane.lab();
    let (worker, control_plane) = (lab.mesh().worker_child(1)?, lab.mesh().control_plane().id());
    let (mine, theirs, known) = (memory::pss(&[worker])?, memory::pss(&[control_plane])?, settled(cx, lab)?);
    let files: Vec<String> =
        (0..count).step_by(A_FILE).map(|first| manifests(first..count.min(first + A_FILE))).collect();
    let start = Instant::now();
    for (number, text) in files.iter().enumerate() {
        lab.apply(&format!("many-workloads-{number}"), text)?;
    }
    let learned = wait::until_true("the workloads to be known", KNOWN.min(cx.left()?), || {
        records(lab).is_ok_and(|now| now >= known + count as f64)
    });
    let took = start.elapsed();
    let each = |now: u64, before: u64| (now as f64 - before as f64) / 1024.0 / count as f64;
    let figures = vec![
        Figure::new("known", "ms", took.as_secs_f64() * 1e3),
        Figure::new("per_workload", "KiB", each(memory::pss(&[worker])?, mine)),
        Figure::new("per_workload_control_plane", "KiB", each(memory::pss(&[control_plane])?, theirs)),
        Figure::new("workloads", "count", count as f64),
    ];
    for number in 0..files.len() {
        lab.delete(&format!("many-workloads-{number}"))?;
    }
    learned?;
    wait::until_true("the workloads to be forgotten", KNOWN.min(cx.left()?), || {
        records(lab).is_ok_and(|now| now <= known)
    })?;
    Ok(figures)
}

/// The number of records when it has not changed for two seconds: pods of what was measured before may still be going.
fn settled(cx: &Context<'_>, lab: &Lab) -> Result<f64> {
    let (mut last, mut since) = (records(lab)?, Instant::now());
    wait::until_true("the records to come to rest", KNOWN.min(cx.left()?), || {
        if let Ok(now) = records(lab)
            && now != last
        {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(2)
    })?;
    Ok(last)
}

/// Workloads and services the worker of node 1 holds.
fn records(lab: &Lab) -> Result<f64> {
    let text = lab.mesh().worker_metrics(1)?;
    let values = text.lines().filter(|line| line.starts_with("culvert_xds_records{") && line.contains("Address"));
    let values: Vec<f64> = values.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    ensure!(!values.is_empty(), "the worker's metrics do not say how many addresses it holds");
    Ok(values.iter().sum())
}

/// Running pods of a node that is none of the lab's, in the part of the pods' ranges that no lab uses: of IPv4 there are 16,000.
fn manifests(numbers: std::ops::Range<usize>) -> String {
    let mut text = String::new();
    for number in numbers {
        let ip = match number / 250 {
            block @ 0..64 => format!("198.18.{}.{}", 64 + block, 1 + number % 250),
            _ => format!("fd77:0:0:6::{:x}:{:x}", number >> 16, number & 0xffff),
        };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": NAMESPACE, "name": format!("elsewhere-{number}"),
                "uid": format!("00000000-0000-4000-8000-{number:012}"), "labels": { "app": format!("app-{}", number % 100) },
            },
            "spec": {
                "nodeName": "node-elsewhere", "serviceAccountName": format!("account-{}", number % 100),
                "containers": [{ "name": "app", "image": "localhost/app" }],
            },
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "hostIP": "198.19.255.99",
                "conditions": [{ "type": "PodScheduled", "status": "True" }, { "type": "Ready", "status": "True" }],
            },
        });
        let _ = writeln!(text, "---\n{pod}"); // a String takes everything
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn every_workload_has_an_address_of_its_own_inside_the_range() -> Result<()> {
        let text = manifests(0..20_000);
        let mut seen = std::collections::BTreeSet::new();
        for document in text.split("---\n").filter(|document| !document.is_empty()) {
            let pod: serde_json::Value = serde_json::from_str(document).context("JSON is YAML")?;
            let ip: std::net::IpAddr = pod["status"]["podIP"].as_str().context("an address")?.parse()?;
            let inside = match ip {
                std::net::IpAddr::V4(ip) => (64..128).contains(&ip.octets()[2]),
                std::net::IpAddr::V6(ip) => ip.segments()[..4] == [0xfd77, 0, 0, 6],
            };
            ensure!(inside, "{ip} is another's");
            ensure!(seen.insert(ip), "{ip} twice");
        }
        ensure!(seen.len() == 20_000, "{}", seen.len());
        Ok(())
    }
}

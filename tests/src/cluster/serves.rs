//! It is a real Kubernetes: pods on both nodes, Services over both families, exec and logs.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::{Cluster, status};
use lab::wait;
use serde_json::Value;

use crate::support::{Pod, figure, pods, service, up, web};

/// Connections from each pod to the Service: with four pods behind it, that one of them is never chosen has odds of 1 in 10^5.
const CONNECTIONS: u64 = 40;
/// How long a node's kube-proxy may take to know of a pod that is Ready: it syncs once a second.
const ROUTED: Duration = Duration::from_secs(30);

#[test]
fn both_nodes_are_ready_over_both_families_and_all_programs_run() -> Result<()> {
    let cluster = up("kube-ready")?;
    let status = status::of(&cluster);
    ensure!(status.is_well() && status.nodes.len() == 2, "{status}");
    // etcd, API server, controller manager, scheduler; containerd, kubelet and kube-proxy on each node.
    ensure!(status.programs.len() == 10, "{status}");
    for node in cluster.get(&["nodes"])?["items"].as_array().context("nodes")? {
        let addresses = node["status"]["addresses"].as_array().context("addresses")?;
        let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
        let ips: Vec<IpAddr> = internal.filter_map(|address| address["address"].as_str()?.parse().ok()).collect();
        ensure!(ips.iter().any(IpAddr::is_ipv4) && ips.iter().any(IpAddr::is_ipv6), "{node:#}");
    }
    let memory: u64 = status.programs.iter().filter_map(|program| program.memory).sum();
    figure("cluster memory", memory / 1_000_000, "MB", "PSS of all programs, no pods");
    let begun = Instant::now();
    cluster.down()?;
    figure("cluster down", format!("{:.1}", begun.elapsed().as_secs_f64()), "s", "nothing but the programs ran");
    Ok(())
}

#[test]
fn pods_on_both_nodes_talk_through_a_service_over_both_families_and_exec_and_logs_work() -> Result<()> {
    let cluster = up("kube-serves")?;
    web(&cluster)?;
    let (pods, service) = (pods(&cluster)?, service(&cluster)?);
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    ensure!(nodes.len() == 2 && pods.len() == 4, "{pods:?}");
    ensure!(service.iter().any(IpAddr::is_ipv4) && service.iter().any(IpAddr::is_ipv6), "{service:?}");
    for pod in &pods {
        for to in &service {
            every_pod_answers(&cluster, pod, *to, &pods)?;
        }
        let logs = cluster.kubectl(&["logs", &pod.name])?;
        ensure!(logs.contains(&format!("started {}", pod.name)), "{logs}");
    }
    // From the control plane too: what a test or a person there asks of a Service is answered.
    let host = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces/default/pods?limit=1"])?;
    ensure!(host.contains("\"kind\":\"PodList\""), "{host}");
    Ok(())
}

/// From one pod by exec to one address of the Service: all connections succeed, over the family of that address, and each pod on both
/// nodes, the client's own included, was chosen at least once. Waited for: kube-proxy hears of a pod after the API server does.
fn every_pod_answers(cluster: &Cluster, from: &Pod, to: IpAddr, pods: &[Pod]) -> Result<()> {
    let of_family = |ip: &IpAddr| ip.is_ipv4() == to.is_ipv4();
    let all: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.ips.iter().copied()).filter(of_family).collect();
    let mut last = String::new();
    let came = wait::until_true("every pod of the Service to answer", ROUTED, || {
        let round = round(cluster, from, SocketAddr::new(to, 80));
        last = format!("{round:?}");
        round.is_ok_and(|answered| answered == all)
    });
    came.with_context(|| format!("{} to {to}: {last}, not {all:?}", from.name))
}

/// Which pods answered, if all connections did.
fn round(cluster: &Cluster, from: &Pod, to: SocketAddr) -> Result<BTreeSet<IpAddr>> {
    let (to, count) = (to.to_string(), CONNECTIONS.to_string());
    let client = ["culvert-lab", "client", "connect", &to, "--count", &count, "--expect", "0"];
    let printed = cluster.kubectl(&[&["exec", &from.name, "--"], &client[..]].concat())?;
    let report: Value = serde_json::from_str(&printed).with_context(|| printed.clone())?;
    ensure!(report["ok"] == CONNECTIONS, "{report}");
    let texts = report["texts"].as_object().context("answers")?;
    Ok(texts.keys().filter_map(|text| Some(text.split_whitespace().nth(1)?.parse::<SocketAddr>().ok()?.ip())).collect())
}

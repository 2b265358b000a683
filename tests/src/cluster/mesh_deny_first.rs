//! A pod that a DENY policy selects, probed from before it exists: its address is known before, since the node gives them in order.
//! Nothing denied gets in from its first instant on, also without a control plane; without the policy the same probers do.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::NAMESPACE;
use lab::{apps::stats::Stats, wait};

use crate::prober::{Ask, Met, next, while_probed};
use crate::shop::{self, Member, STATS, captured, meshed, start};
use crate::support::{PODS, figure};

/// The addresses after the last that are probed: another pod may take the first.
const AHEAD: u32 = 3;
/// Attempts that each prober must have made at the pod once it runs.
const ATTEMPTS: usize = 200;

const DENY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec:
  selector: {matchLabels: {app: target}}
  action: DENY
  rules: [{}]
";

/// Link addresses are asked for every 10 ms instead of every second: a prober finds a pod as soon as it has a network.
fn eager_neighbours() -> Result<()> {
    for path in ["ipv4", "ipv6"].into_iter().flat_map(|family| {
        ["eth0", "cni0"]
            .map(|interface| PathBuf::from(format!("/proc/sys/net/{family}/neigh/{interface}/retrans_time_ms")))
    }) {
        // A pod has no bridge.
        if path.exists() {
            std::fs::write(&path, "10").with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// A pod's whole life under fire, which ends when its app has seen enough and enough was answered at each of its addresses; what the
/// app saw, and what the probers met.
fn life(
    cluster: &Cluster,
    from: &[&Member],
    name: &str,
    node: usize,
    enough: fn(&Stats, &[usize]) -> bool,
) -> Result<(Stats, Met)> {
    let at = next(cluster, node, AHEAD)?;
    let mut seen = Stats::default();
    let asks: Vec<_> = from.iter().map(|from| move |to: SocketAddr| from.asks(to)).collect();
    let asks: Vec<Ask<'_>> = asks.iter().map(|ask| ask as Ask<'_>).collect();
    let met = while_probed(&asks, &at, |met| {
        let target = start(cluster, "shop", name, node)?;
        ensure!(target.ips.iter().all(|ip| at.contains(ip)), "{name} got {:?}, probed were {at:?}", target.ips);
        let each = |of: fn(&Met) -> &BTreeMap<IpAddr, usize>| {
            let met = met.lock().expect("no panic while held");
            target.ips.iter().map(|ip| of(&met).get(ip).copied().unwrap_or_default()).collect::<Vec<_>>()
        };
        let attempts = || each(|met| &met.attempts);
        let before = attempts();
        wait::until_true("attempts at the pod", PODS, || {
            attempts().iter().zip(&before).all(|(now, before)| *now >= before + ATTEMPTS)
        })?;
        // A probe of kubelet's is answered by the proxy, so Ready says nothing of the app.
        let stats = shop::process_of(cluster, name)?.root(STATS);
        wait::until_true("what the app should see", PODS, || {
            seen = Stats::read(&stats);
            enough(&seen, &each(|met| &met.answered))
        })
        .with_context(|| format!("{name} saw {seen:?}"))?;
        cluster.kubectl(&["delete", "pod", "-n", "shop", name, "--timeout=60s"]).map(drop)
    })?;
    let note = format!("{name} on node {node}: {} connections and {} bytes at the app", seen.connections, seen.bytes);
    figure("probed from before it was there", met.attempts(), "attempts", &note);
    Ok((seen, met))
}

/// Without a policy: the probers get in over either family, whoever of them and kubelet's probe is the first.
fn some_got_in(cluster: &Cluster, from: &[&Member], name: &str, node: usize) -> Result<()> {
    life(cluster, from, name, node, |seen, answered| seen.bytes > 0 && answered.iter().all(|times| *times > 0))
        .map(drop)
        .context("without a policy")
}

fn nothing_got_in(cluster: &Cluster, from: &[&Member], name: &str, node: usize) -> Result<()> {
    // The node's own probe connects and says nothing.
    let (seen, met) = life(cluster, from, name, node, |seen, _| seen.connections > 0)?;
    ensure!(seen.bytes == 0 && met.answered() == 0, "{name}: the app saw {seen:?}, the probers met {met:?}");
    Ok(())
}

fn control_plane(cluster: &Cluster, replicas: &str) -> Result<()> {
    let (deployment, replicas) = ("deployment/culvert-control-plane", format!("--replicas={replicas}"));
    cluster.kubectl(&["scale", "-n", NAMESPACE, deployment, &replicas])?;
    cluster.kubectl(&["rollout", "status", "-n", NAMESPACE, deployment, "--timeout=120s"])?;
    let selector = "app.kubernetes.io/component=control-plane";
    wait::until_true("so many replicas", PODS, || {
        let names = cluster.kubectl(&["get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "name"]);
        names.is_ok_and(|names| replicas.ends_with(&names.lines().count().to_string()))
    })
}

#[test]
fn nothing_denied_reaches_a_pod_from_its_first_instant_on_with_and_without_a_control_plane() -> Result<()> {
    let (cluster, _) = meshed("kube-deny", true)?;
    let (outsider, guest) = (start(&cluster, "outside", "outsider", 1)?, start(&cluster, "shop", "guest", 2)?);
    captured(&cluster, &[&guest], true)?;
    let probers = [&outsider, &guest];
    probers.iter().try_for_each(|prober| prober.inside(eager_neighbours))?;
    cluster.lab().nodes().iter().try_for_each(|node| node.in_netns(eager_neighbours))?;

    some_got_in(&cluster, &probers, "target-0", 1)?;

    cluster.apply(DENY)?;
    let victim = start(&cluster, "shop", "target-x", 1)?;
    probers.iter().try_for_each(|prober| shop::until(prober, &victim, false))?;
    for node in 1..=2 {
        nothing_got_in(&cluster, &probers, &format!("target-{node}"), node)?;
    }
    control_plane(&cluster, "0")?;
    for node in 1..=2 {
        nothing_got_in(&cluster, &probers, &format!("target-{}", 2 + node), node)?;
    }
    control_plane(&cluster, "2")?;
    cluster.kubectl(&["delete", "authorizationpolicy", "-n", "shop", "nobody"])?;
    probers.iter().try_for_each(|prober| shop::until(prober, &victim, true))?;
    some_got_in(&cluster, &probers, "target-5", 2)
}

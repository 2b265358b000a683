//! A pod that a DENY policy selects, probed from before it exists: its address is known before, since the node gives them in order.
//! Nothing denied gets in from its first instant on, also without a control plane; without the policy the same probers do.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::NAMESPACE;
use lab::{apps::stats::Stats, wait};

use crate::shop::{self, ECHO, Member, STATS, captured, meshed, start};
use crate::support::{PODS, figure};

/// Where `host-local` keeps what it gave last, per range: the next one goes to the next pod.
const LAST: &str = "/var/lib/cni/networks/culvert-lab/last_reserved_ip";
/// The addresses after the last that are probed: another pod may take the first.
const AHEAD: u32 = 3;
/// Between two attempts of one prober at one address and family.
const PACE: Duration = Duration::from_millis(5);
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

/// The next addresses of a node's pods.
fn next(cluster: &Cluster, node: usize) -> Result<Vec<IpAddr>> {
    let mut all = Vec::new();
    for range in 0..2 {
        let path = cluster.lab().node(node).init().root(format!("{LAST}.{range}"));
        let last: IpAddr =
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().parse()?;
        all.extend((1..=AHEAD).map(|n| match last {
            IpAddr::V4(ip) => IpAddr::from((u32::from(ip) + n).to_be_bytes()),
            IpAddr::V6(ip) => IpAddr::from((u128::from(ip) + u128::from(n)).to_be_bytes()),
        }));
    }
    Ok(all)
}

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

/// What the probers met.
#[derive(Clone, Debug, Default)]
struct Met {
    attempts: usize,
    answered: usize,
    /// Attempts by address: the pod's must be among them.
    at: std::collections::BTreeMap<IpAddr, usize>,
}

/// Probes addresses from each of these pods for as long as `work` lasts.
fn while_probed(from: &[&Member], at: &[IpAddr], work: impl FnOnce(&Mutex<Met>) -> Result<()>) -> Result<Met> {
    let (over, met) = (AtomicBool::new(false), Mutex::new(Met::default()));
    let done = std::thread::scope(|scope| {
        let each = from.iter().flat_map(|from| at.iter().map(move |ip| (*from, *ip)));
        let threads: Vec<_> = each
            .map(|(from, ip)| {
                let (over, met) = (&over, &met);
                scope.spawn(move || -> Result<()> {
                    while !over.load(Ordering::Relaxed) {
                        let answered = from.asks(SocketAddr::new(ip, ECHO))?.is_ok();
                        let mut met = met.lock().expect("no panic while held");
                        met.attempts += 1;
                        met.answered += usize::from(answered);
                        *met.at.entry(ip).or_default() += 1;
                        drop(met);
                        std::thread::park_timeout(PACE);
                    }
                    Ok(())
                })
            })
            .collect();
        let done = work(&met);
        over.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().expect("what fails is returned"))?;
        done
    });
    done.map(|()| met.into_inner().expect("no panic while held"))
}

/// A pod's whole life under fire; what its app saw at the end, and what the probers met.
fn life(cluster: &Cluster, from: &[&Member], name: &str, node: usize) -> Result<(Stats, Met)> {
    let at = next(cluster, node)?;
    let mut seen = Stats::default();
    let met = while_probed(from, &at, |met| {
        let target = start(cluster, "shop", name, node)?;
        ensure!(target.ips.iter().all(|ip| at.contains(ip)), "{name} got {:?}, probed were {at:?}", target.ips);
        let now = || {
            let met = met.lock().expect("no panic while held");
            target.ips.iter().map(|ip| met.at.get(ip).copied().unwrap_or_default()).collect::<Vec<_>>()
        };
        let before = now();
        wait::until_true("attempts at the pod", PODS, || {
            now().iter().zip(&before).all(|(now, before)| *now >= before + ATTEMPTS)
        })?;
        seen = Stats::read(&shop::process_of(cluster, name)?.root(STATS));
        cluster.kubectl(&["delete", "pod", "-n", "shop", name, "--timeout=60s"]).map(drop)
    })?;
    let note = format!("{name} on node {node}: {} connections and {} bytes at the app", seen.connections, seen.bytes);
    figure("probed from before it was there", met.attempts, "attempts", &note);
    Ok((seen, met))
}

fn nothing_got_in(cluster: &Cluster, from: &[&Member], name: &str, node: usize) -> Result<()> {
    let (seen, met) = life(cluster, from, name, node)?;
    // The node's own probe connects and says nothing.
    ensure!(seen.bytes == 0 && met.answered == 0, "{name}: the app saw {seen:?}, the probers met {met:?}");
    ensure!(seen.connections > 0, "{name}: not even its node reached it");
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
    probers.iter().try_for_each(|prober| prober.within(eager_neighbours))?;
    cluster.lab().nodes().iter().try_for_each(|node| node.in_netns(eager_neighbours))?;

    let (seen, met) = life(&cluster, &probers, "target-0", 1)?;
    ensure!(seen.bytes > 0 && met.answered > 0, "without a policy nobody got in: {seen:?}, {met:?}");

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
    let (seen, met) = life(&cluster, &probers, "target-5", 2)?;
    ensure!(seen.bytes > 0 && met.answered > 0, "without the policy nobody got in: {seen:?}, {met:?}");
    Ok(())
}

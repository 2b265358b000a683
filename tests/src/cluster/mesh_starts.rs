//! What the mesh adds to the start of a pod, as the container runtime saw it, and sixty pods at once.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::{APPS, Cluster};
use lab::apps::stats::Stats;
use lab::{binaries, wait};
use serde_json::Value;

use crate::prober::next;
use crate::shop::{ECHO, Member, STATS, meshed, process_of, start};
use crate::support::{PODS, figure};
use crate::traffic::lasts;

/// Pods of each kind.
const EACH: usize = 100;
/// Started together, half of each kind: what the machine is busy with meets both alike.
const BATCH: usize = 4;
const AT_ONCE: usize = 60;
/// Addresses of each family and node that are probed: half of the pods start on each, and the scheduler may not halve exactly.
const AHEAD: u32 = 45;
/// Attempts a second at all of a family's: ten at each.
const RATE: &str = "900";
/// How long the pods are probed after the last of them is Ready.
const SETTLED: Duration = Duration::from_secs(3);
/// Nobody may reach the sixty.
const DENIED: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec:
  selector: {matchLabels: {app: many}}
  action: DENY
  rules: [{}]
";

/// A pod that does nothing, on node 1.
fn pod(namespace: &str, name: &str, batch: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{batch: \"{batch}\"}}}}\nspec:\n  nodeName: node-1\n  \
         automountServiceAccountToken: false\n  enableServiceLinks: false\n  terminationGracePeriodSeconds: 0\n  \
         containers: [{{name: app, image: {APPS}, imagePullPolicy: Never, command: [/bin/sh, -c, \"exec sleep 100000\"]}}]\n"
    )
}

/// Starts a batch, waits until all of it runs, and has it deleted.
fn batch(cluster: &Cluster, number: usize) -> Result<()> {
    let both = |n: usize| {
        [pod("shop", &format!("in-{number}-{n}"), number), pod("outside", &format!("out-{number}-{n}"), number)]
    };
    let yaml: String = (0..BATCH / 2).flat_map(both).collect();
    cluster.apply(&yaml)?;
    let selector = format!("batch={number}");
    let running = || {
        let phases = ["get", "pods", "-A", "-l", &selector, "-o", "jsonpath={.items[*].status.phase}"];
        let said = cluster.kubectl(&phases).ok()?;
        (said.split_whitespace().filter(|phase| *phase == "Running").count() == BATCH).then_some(())
    };
    wait::until(&format!("batch {number} to run"), PODS, running)?;
    for namespace in ["shop", "outside"] {
        cluster.kubectl(&["delete", "pods", "-n", namespace, "-l", &selector, "--wait=false"])?;
    }
    Ok(())
}

/// Milliseconds that RunPodSandbox took, by namespace, from containerd's own log.
fn sandboxes(log: &str) -> BTreeMap<String, Vec<f64>> {
    let (mut begun, mut took) = (BTreeMap::new(), BTreeMap::<String, Vec<f64>>::new());
    for line in log.lines() {
        let Some((_, rest)) = line.split_once("RunPodSandbox for &PodSandboxMetadata{") else { continue };
        let Some((of, rest)) = rest.split_once('}') else { continue };
        let Some(at) = line.strip_prefix("time=\"").and_then(|text| seconds(text.split('"').next()?)) else { continue };
        let namespace = of.split(',').find_map(|part| part.strip_prefix("Namespace:")).unwrap_or_default();
        if rest.contains("returns sandbox id") {
            if let Some(from) = begun.remove(of) {
                took.entry(namespace.to_owned()).or_default().push((at - from) * 1e3);
            }
        } else if !rest.contains("failed") {
            begun.insert(of.to_owned(), at);
        }
    }
    took
}

/// Seconds of the hour of an RFC 3339 time.
fn seconds(text: &str) -> Option<f64> {
    let time = text.split_once('T')?.1.split(['Z', '+']).next()?;
    let mut parts = time.split(':').map(str::parse::<f64>);
    let (hours, minutes, seconds) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    Some(hours * 3600.0 + minutes * 60.0 + seconds)
}

#[test]
fn the_mesh_adds_what_is_printed_to_the_start_of_a_pod_and_sixty_at_once_all_start() -> Result<()> {
    let (cluster, _) = meshed("kube-starts", true)?;
    batch(&cluster, 0)?;
    let containerd = || cluster.lab().processes().remove("containerd-1").context("containerd of node 1");
    let before = containerd()?.log().len();
    for number in 1..=2 * EACH / BATCH {
        batch(&cluster, number)?;
    }
    let log = containerd()?.log();
    let mut took = sandboxes(log.get(before..).context("a log that grows")?);
    let mut sorted = |namespace: &str| -> Result<Vec<f64>> {
        let mut all =
            took.remove(namespace).with_context(|| format!("no sandbox of {namespace} in containerd's log"))?;
        ensure!(all.len() == EACH, "{} sandboxes of {namespace}", all.len());
        all.sort_by(f64::total_cmp);
        Ok(all)
    };
    let (enrolled, plain) = (sorted("shop")?, sorted("outside")?);
    let (p50, max) = (enrolled[EACH / 2] - plain[EACH / 2], enrolled[EACH - 1] - plain[EACH - 1]);
    let note = format!(
        "RunPodSandbox, {EACH} enrolled and {EACH} plain, {BATCH} at a time; aim 50; plain {:.0} ms",
        plain[EACH / 2]
    );
    figure("added_start_p50", format!("{p50:.1}"), "ms", &note);
    let note = format!("difference of the slowest; plain {:.0} ms", plain[EACH - 1]);
    figure("added_start_max", format!("{max:.1}"), "ms", &note);

    let begun = Instant::now();
    many(&cluster)?;
    figure(
        "sixty_pods_ready",
        format!("{:.1}", begun.elapsed().as_secs_f64()),
        "s",
        "enrolled, on two nodes, from before apply on",
    );
    let captured = "jsonpath={.items[*].status.conditions[?(@.type==\"culvert.io/Captured\")].status}";
    wait::until_true("all sixty to be captured", PODS, || {
        let said = cluster.kubectl(&["get", "pods", "-n", "shop", "-l", "app=many", "-o", captured]);
        said.is_ok_and(|said| said.split_whitespace().filter(|status| *status == "True").count() == AT_ONCE)
    })
}

/// Sixty pods that count what reaches them; returns when all of them are Ready.
fn many(cluster: &Cluster) -> Result<()> {
    cluster.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: many, namespace: shop}}\nspec:\n  replicas: {AT_ONCE}\n  \
         selector: {{matchLabels: {{app: many}}}}\n  template:\n    metadata: {{labels: {{app: many}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 0\n      containers: [{{name: app, image: {APPS}, imagePullPolicy: Never, \
         command: [/bin/sh, -c, \"exec culvert-lab app --stats {STATS} echo:{ECHO}\"]}}]\n"
    ))?;
    cluster.kubectl(&["rollout", "status", "-n", "shop", "deployment/many", "--timeout=180s"]).map(drop)
}

/// Each is probed from before it is there: it is not known which of a node's next addresses it gets, so all of them are.
#[test]
fn of_sixty_pods_that_start_at_once_none_gets_a_byte_that_policy_denies() -> Result<()> {
    let (cluster, _) = meshed("kube-churn", true)?;
    let outsider = start(&cluster, "outside", "outsider", 1)?;
    cluster.apply(DENIED)?;
    let mut at = next(&cluster, 1, AHEAD)?;
    at.extend(next(&cluster, 2, AHEAD)?);
    let families = [("IPv4", IpAddr::is_ipv4 as fn(&IpAddr) -> bool), ("IPv6", IpAddr::is_ipv6)]
        .map(|(family, is_of)| (family, at.iter().copied().filter(is_of).collect::<Vec<_>>()));
    let start = |at: &[IpAddr]| Prober::start(&outsider, at);
    let probers = families.iter().map(|(_, at)| start(at)).collect::<Result<Vec<_>>>()?;
    many(&cluster)?;
    let list = cluster.get(&["pods", "-n", "shop", "-l", "app=many"])?;
    let pods = list["items"].as_array().context("a list")?;
    ensure!(pods.len() == AT_ONCE, "{} pods", pods.len());
    let seen = || -> Result<Stats> {
        let mut all = Stats::default();
        for pod in pods {
            let name = pod["metadata"]["name"].as_str().context("text")?;
            let one = Stats::read(&process_of(&cluster, name)?.root(STATS));
            (all.connections, all.bytes) = (all.connections + one.connections, all.bytes + one.bytes);
        }
        Ok(all)
    };
    for pod in pods {
        let ips = pod["status"]["podIPs"].as_array().context("addresses")?;
        ensure!(ips.len() == families.len(), "{ips:?}");
        for ip in ips {
            let ip: IpAddr = ip["ip"].as_str().context("an address")?.parse()?;
            ensure!(at.contains(&ip), "{ip} was not probed");
        }
    }
    // Some of them have just begun.
    lasts(SETTLED);
    let mut met = Vec::new();
    for ((family, _), prober) in families.iter().zip(probers) {
        let report = prober.ends()?;
        ensure!(report["ok"] == 0, "{family}: {report}");
        met.push(format!("{family}: {} attempts, {}", report["attempts"], report["phases"][0]["outcomes"]));
    }
    let denied = seen()?;
    let note = format!("while {AT_ONCE} pods started at once; {}", met.join("; "));
    figure("unjudged_bytes_through_churn", denied.bytes, "bytes", &note);
    let nothing = (denied.connections, denied.bytes) == (0, 0);
    ensure!(nothing, "the apps saw {denied:?} while nobody was allowed");
    // The counter-proof: without the policy the same prober gets in over either family.
    cluster.kubectl(&["delete", "authorizationpolicy", "-n", "shop", "nobody"])?;
    for (family, at) in &families {
        let before = seen()?.bytes;
        let prober = start(at)?;
        wait::until_true(&format!("bytes of the prober over {family} at the apps without the policy"), PODS, || {
            seen().is_ok_and(|seen| seen.bytes > before)
        })?;
        prober.ends()?;
    }
    Ok(())
}

/// The lab's prober in a pod's network.
struct Prober {
    child: Child,
}

impl Prober {
    fn start(from: &Member, at: &[IpAddr]) -> Result<Prober> {
        let mut command = Command::new(binaries::own("culvert-lab").context("culvert-lab is not built")?);
        command.args(["client", "probe", "--echo", "--timeout", "500", "--rate", RATE]);
        command.args(at.iter().map(|ip| SocketAddr::new(*ip, ECHO).to_string()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Prober { child: from.inside(|| command.spawn().context("start the prober"))? })
    }

    /// Its report: the last line it prints once its input ends.
    fn ends(mut self) -> Result<Value> {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(said.trim().lines().last().unwrap_or_default()).context(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_sandboxes_are_read_from_containerds_log() {
        let line = |at: &str, rest: &str| {
            format!(
                "time=\"2026-11-21T20:24:{at}Z\" level=info msg=\"RunPodSandbox for &PodSandboxMetadata{{Name:a,Uid:1,Namespace:shop,Attempt:0,}}{rest}\"\n"
            )
        };
        let log = line("35.100000000", "") + "noise\n" + &line("35.350000000", " returns sandbox id \\\"x\\\"");
        let took = sandboxes(&log);
        assert!((took["shop"][0] - 250.0).abs() < 0.001, "{took:?}");
    }
}

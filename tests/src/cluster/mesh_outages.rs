//! What the mesh depends on goes away for a while, one after the other; the traffic of pods that run never notices.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::NAMESPACE;
use lab::{Exit, Node, Signal, wait};
use serde_json::Value;

use crate::shop::{self, CHANGE, Member, captured, meshed, start};
use crate::support::{figure, long};
use crate::traffic::{Traffic, lasts};

/// How long a component may take to be back.
const BACK: Duration = Duration::from_secs(60);
/// The CNI configurations of a node, as it sees them.
const CONFIGURATIONS: &str = "/etc/cni/net.d";

/// How long API server and etcd are away: the issue's own figure in a long run.
fn away() -> Duration {
    Duration::from_secs(if long() { 60 } else { 10 })
}

/// Kills a program of the control plane of Kubernetes, and starts it again after a while.
fn stopped(cluster: &Cluster, program: &str) -> Result<()> {
    let process = cluster.lab().processes().remove(program).with_context(|| format!("the process of {program}"))?;
    process.kill()?;
    lasts(away());
    process.restart()?;
    wait::until_true("the API server to answer", BACK, || cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok())
}

/// A fact about all pods of a component, as `jsonpath` prints it.
fn of_pods(cluster: &Cluster, component: &str, path: &str) -> Result<String> {
    let (selector, output) = (format!("app.kubernetes.io/component={component}"), format!("jsonpath={path}"));
    cluster.kubectl(&["get", "pods", "-n", NAMESPACE, "-l", &selector, "-o", &output])
}

fn restarts(cluster: &Cluster, component: &str) -> Result<String> {
    of_pods(cluster, component, "{.items[*].status.containerStatuses[*].restartCount}")
}

fn ready(cluster: &Cluster, component: &str) -> Result<()> {
    let selector = format!("app.kubernetes.io/component={component}");
    let ready = ["wait", "pods", "-n", NAMESPACE, "-l", &selector, "--for=condition=Ready", "--timeout=120s"];
    cluster.kubectl(&ready).map(drop)
}

/// Ends a component's processes on all nodes as a crash would, and waits until its pods are Ready again.
fn killed(cluster: &Cluster, component: &str) -> Result<()> {
    let (mut nodes, begun) = (0, Instant::now());
    for node in cluster.lab().nodes() {
        // pkill(1): 0 if it ended one of this node's processes, 1 if none has the name, as where the scheduler put both replicas on one node.
        let output = node.exec(&["pkill", "-KILL", "-x", component])?;
        match output.exit {
            Exit::Code(0) => nodes += 1,
            Exit::Code(1) => {}
            _ => drop(output.ok().with_context(|| format!("kill {component} on {}", node.name()))?),
        }
    }
    ensure!(nodes > 0, "{component} ran on no node");
    // Until it is seen that they went: Ready is what they were.
    wait::until_true(&format!("{component} to be started again"), BACK, || {
        restarts(cluster, component).is_ok_and(|counts| counts.split_whitespace().all(|count| count != "0"))
    })?;
    ready(cluster, component)?;
    let took = format!("{:.1}", begun.elapsed().as_secs_f64());
    figure(&format!("{component} back after kill"), took, "s", &format!("killed on {nodes} nodes"));
    Ok(())
}

/// Ends one of the control plane's replicas, the other goes on.
fn one_replica_killed(cluster: &Cluster) -> Result<()> {
    let names = of_pods(cluster, "control-plane", "{.items[*].metadata.name}")?;
    let one = names.split_whitespace().next().context("a replica")?;
    let before = restarts(cluster, "control-plane")?;
    ensure!(shop::process_of(cluster, one)?.signal(Signal::KILL), "it had ended already");
    wait::until_true("it to be started again", BACK, || {
        restarts(cluster, "control-plane").is_ok_and(|now| now != before)
    })?;
    ready(cluster, "control-plane")
}

/// pod-watcher under another tag, rolled out node by node; meanwhile a pod of the mesh starts.
fn upgraded(cluster: &Cluster) -> Result<Member> {
    let image = of_pods(cluster, "pod-watcher", "{.items[0].spec.containers[0].image}")?;
    let next = format!("{}:next", image.rsplit_once(':').context("a tag")?.0);
    for node in cluster.lab().nodes() {
        node.exec(&["ctr", "--namespace", "k8s.io", "images", "tag", &image, &next])?.ok()?;
    }
    let (begun, set) = (Instant::now(), format!("pod-watcher={next}"));
    cluster.kubectl(&["set", "image", "-n", NAMESPACE, "daemonset/culvert-pod-watcher", &set])?;
    let between = start(cluster, "shop", "between", 2)?;
    cluster.kubectl(&["rollout", "status", "-n", NAMESPACE, "daemonset/culvert-pod-watcher", "--timeout=120s"])?;
    let took = format!("{:.1}", begun.elapsed().as_secs_f64());
    figure("pod-watcher upgraded", took, "s", "on both nodes, one after the other");
    let now = of_pods(cluster, "pod-watcher", "{.items[*].spec.containers[0].image}")?;
    ensure!(now.split_whitespace().all(|image| image == next), "{now}");
    Ok(between)
}

/// kubelet and containerd of every node, killed and started again; each is known to work when a new pod runs.
fn node_agents_restarted(cluster: &Cluster) -> Result<()> {
    for program in ["containerd", "kubelet"] {
        for node in cluster.lab().nodes() {
            let name = format!("{program}-{}", node.index());
            cluster.lab().processes().remove(&name).with_context(|| name)?.restart()?;
        }
        for node in cluster.lab().nodes() {
            let late = start(cluster, "shop", &format!("{program}-{}", node.index()), node.index())?;
            captured(cluster, &[&late], true)?;
        }
    }
    Ok(())
}

/// The configuration that has our plugin, and what it says.
fn chain(node: &Node) -> Result<Option<(std::path::PathBuf, Value)>> {
    for entry in std::fs::read_dir(node.init().root(CONFIGURATIONS))? {
        let path = entry?.path();
        let found = serde_json::from_slice::<Value>(&std::fs::read(&path)?).ok();
        let has_us =
            |found: &Value| plugins(found).is_some_and(|all| all.iter().any(|plugin| plugin["type"] == PLUGIN));
        if let Some(found) = found.filter(has_us) {
            return Ok(Some((path, found)));
        }
    }
    Ok(None)
}

const PLUGIN: &str = "culvert-cni";

fn plugins(configuration: &Value) -> Option<&Vec<Value>> {
    configuration["plugins"].as_array()
}

/// Somebody takes our entry out of the chain of each node; it is put back, and pods created after that are the mesh's.
fn conflist_rewritten(cluster: &Cluster) -> Result<()> {
    for node in cluster.lab().nodes() {
        let (path, mut found) = chain(node)?.context("our entry in the chain")?;
        let all = found["plugins"].as_array_mut().context("plugins")?;
        all.retain(|plugin| plugin["type"] != PLUGIN);
        let draft = path.with_extension("draft");
        std::fs::write(&draft, serde_json::to_vec_pretty(&found)?)?;
        let begun = Instant::now();
        std::fs::rename(&draft, &path)?;
        wait::until_true("our entry to be back", CHANGE, || chain(node).is_ok_and(|found| found.is_some()))?;
        let took = begun.elapsed().as_millis();
        figure("chain entry back", took, "ms", &format!("{}, rewritten by hand", node.name()));
        // Where a person looks.
        wait::until_true("an Event of the node", CHANGE, || {
            cluster.kubectl(&["describe", "node", node.name()]).is_ok_and(|said| said.contains("ChainRepaired"))
        })?;
        let after = start(cluster, "shop", &format!("after-{}", node.index()), node.index())?;
        captured(cluster, &[&after], true)?;
    }
    Ok(())
}

#[test]
fn traffic_goes_on_while_whatever_the_mesh_depends_on_is_away() -> Result<()> {
    let (cluster, _) = meshed("kube-outages", true)?;
    let cart = start(&cluster, "shop", "cart", 1)?;
    let webs = [start(&cluster, "shop", "web-1", 1)?, start(&cluster, "shop", "web-2", 2)?];
    captured(&cluster, &[&cart, &webs[0], &webs[1]], true)?;
    let mut traffic = Traffic::new(&cart, &webs);
    traffic.during("nothing happens", || {
        lasts(Duration::from_secs(3));
        Ok(())
    })?;
    traffic.during("the API server is away", || stopped(&cluster, "kube-apiserver"))?;
    traffic.during("etcd is away", || stopped(&cluster, "etcd"))?;
    traffic.during("one replica of the control plane is killed", || one_replica_killed(&cluster))?;
    traffic.during("the control plane is killed", || killed(&cluster, "control-plane"))?;
    traffic.during("pod-watcher is killed", || killed(&cluster, "pod-watcher"))?;
    let mut between = None;
    traffic.during("pod-watcher is upgraded", || {
        between = Some(upgraded(&cluster)?);
        Ok(())
    })?;
    traffic.during("containerd and kubelet are restarted", || node_agents_restarted(&cluster))?;
    traffic.during("the chain is rewritten by hand", || conflist_rewritten(&cluster))?;
    traffic.never_failed()?;
    // And all of it works again.
    let (between, late) = (between.context("it was made")?, start(&cluster, "shop", "late", 2)?);
    captured(&cluster, &[&between, &late], true)?;
    shop::until(&cart, &between, true)?;
    shop::until(&cart, &late, true)
}

//! Uninstalling leaves nodes as they were: network configuration, plugins, state, and pods that never noticed.

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::{Mesh, NAMESPACE};
use lab::{Exit, plan, wait};

use crate::shop::{self, CHANGE, Member, captured, enrol, namespaces, start};
use crate::support::up;

/// What of a node the mesh may touch: names and contents, and its taint.
pub(crate) fn node(cluster: &Cluster, index: usize) -> Result<String> {
    // Empty directories are the mounts of the pods that are gone; the last good configuration is the worker's own, see docs/uninstall.md.
    let look = "find /etc/cni/net.d /opt/cni/bin -not -type d -exec sha256sum {} + | sort -k 2; \
                ls /run/netns | grep -v '^cni-'; find /var/lib/culvert /run/culvert -mindepth 1 -not -type d -not -path '*/last-good*' 2>/dev/null | sort; true";
    let files = cluster.lab().node(index).exec(&["sh", "-c", look])?.ok()?;
    let taints = cluster.kubectl(&["get", "node", &plan::node_name(index), "-o", "jsonpath={.spec.taints[*].key}"])?;
    // Others are of Kubernetes, and go when the node is Ready.
    let taints: Vec<&str> = taints.split_whitespace().filter(|key| key.contains("culvert")).collect();
    Ok(format!("{files}taints {taints:?}\n"))
}

/// The cluster's objects of the mesh, less the definitions: of all kinds that the manifests make.
pub(crate) fn objects(cluster: &Cluster) -> Result<String> {
    const KINDS: &str = "namespaces,daemonsets,deployments,replicasets,pods,services,endpointslices,serviceaccounts,configmaps,secrets,\
        networkpolicies,poddisruptionbudgets,leases,roles,rolebindings,clusterroles,clusterrolebindings,\
        validatingadmissionpolicies,validatingadmissionpolicybindings";
    let all = cluster.kubectl(&["get", KINDS, "-A", "-o", "name"])?;
    Ok(all.lines().filter(|name| name.contains("culvert")).map(|name| format!("{name}\n")).collect())
}

pub(crate) fn no_objects(cluster: &Cluster) -> Result<()> {
    let left = objects(cluster)?;
    ensure!(left.is_empty(), "left: {left}");
    Ok(())
}

/// Deletes a pod; returns when nothing on the machine holds its network any more, and the node's handle of it is gone.
pub(crate) fn goes_with_its_network(cluster: &Cluster, pod: &Member) -> Result<()> {
    let network = pod.network()?;
    let node = cluster.lab().node(pod.node);
    let handle = format!("stat -Lc '%i %n' /run/netns/cni-* | awk '$1 == {} {{print $2}}'", network.inode);
    let handle = node.exec(&["sh", "-c", &handle])?.ok()?.trim().to_owned();
    let held = handle.starts_with("/run/netns/cni-") && !network.holders().is_empty();
    ensure!(held, "{} runs and has the handle {handle:?}, held by {:?}", pod.name, network.holders());
    cluster.kubectl(&["delete", "pod", &pod.name, "-n", &pod.namespace, "--timeout=60s"])?;
    let mut left = String::new();
    wait::until_true("a deleted pod's network to go", CHANGE, || {
        let there = node.exec(&["test", "-e", &handle]).is_ok_and(|met| met.exit == Exit::Code(0));
        let holders = network.holders();
        left = format!("{handle} is there: {there}; held by {holders:?}");
        !there && holders.is_empty()
    })
    .with_context(|| left.clone())
}

pub(crate) fn nothing_of_ours(pod: &Member) -> Result<()> {
    let left = pod.ours()?;
    ensure!(left.is_empty(), "left in {}: {left:?}", pod.name);
    Ok(())
}

pub(crate) fn as_before(cluster: &Cluster, before: &[String; 2]) -> Result<()> {
    for (index, before) in before.iter().enumerate() {
        let mut now = String::new();
        wait::until_true("the node to be as before", CHANGE, || {
            now = node(cluster, index + 1).unwrap_or_default();
            &now == before
        })
        .with_context(|| format!("node {} was\n{before}\nis\n{now}", index + 1))?;
    }
    Ok(())
}

/// The mesh in a cluster, two pods of it that talk, and what the nodes were before.
struct Installed {
    mesh: Mesh,
    cluster: Cluster,
    before: [String; 2],
    cart: Member,
    web: Member,
}

fn installed(name: &str) -> Result<Installed> {
    let mesh = Mesh::find()?;
    let cluster = up(name)?;
    let before = [node(&cluster, 1)?, node(&cluster, 2)?];
    cluster.install(&mesh, |_| {})?;
    namespaces(&cluster, true)?;
    let (cart, web) = (start(&cluster, "shop", "cart", 1)?, start(&cluster, "shop", "web", 2)?);
    captured(&cluster, &[&cart, &web], true)?;
    shop::until(&cart, &web, true)?;
    Ok(Installed { mesh, cluster, before, cart, web })
}

#[test]
fn uninstalling_takes_chain_entry_binary_and_state_away_and_pods_do_not_notice() -> Result<()> {
    let Installed { mesh, cluster, before, cart, web } = installed("kube-leaves")?;
    for (index, before) in before.iter().enumerate() {
        let now = node(&cluster, index + 1)?;
        ensure!(&now != before && now.contains("culvert-cni"), "the plugin is not on node {}: {now}", index + 1);
    }
    ensure!(objects(&cluster)?.contains("validatingadmissionpolicybinding"), "{}", objects(&cluster)?);

    // As docs/uninstall.md says: out of the mesh first, then the mesh.
    enrol(&cluster, false)?;
    captured(&cluster, &[&cart, &web], false)?;
    cluster.uninstall(&mesh)?;
    as_before(&cluster, &before)?;
    shop::until(&cart, &web, true)?;
    // Pods start as before, and policies, which belong to those who wrote them, are still there.
    start(&cluster, "shop", "late", 2)?;
    cluster.kubectl(&["get", "authorizationpolicies", "-A"])?;
    no_objects(&cluster)?;
    // No pod has rules of ours, and nothing holds a pod's network any more: what is deleted goes.
    for member in [&cart, &web] {
        nothing_of_ours(member)?;
        goes_with_its_network(&cluster, member)?;
    }
    Ok(())
}

/// Kills every process of the mesh on the nodes; kubelets too, or they would start them again.
fn killed(cluster: &Cluster) -> Result<()> {
    for node in cluster.lab().nodes() {
        kubelet(cluster, node.index())?.kill()?;
        for program in ["pod-watcher", "node-proxy"] {
            let killed = node.exec(&["pkill", "-KILL", "-x", program])?;
            ensure!(killed.exit == Exit::Code(0), "{program} on {}: {killed:?}", node.name());
        }
    }
    Ok(())
}

fn kubelet(cluster: &Cluster, index: usize) -> Result<lab::Process> {
    cluster.lab().processes().remove(&format!("kubelet-{index}")).context("a kubelet")
}

#[test]
fn after_an_unclean_end_the_documented_clean_up_leaves_nothing_and_enrolled_pods_talk_again() -> Result<()> {
    let Installed { mesh, cluster, before, cart, web } = installed("kube-unclean")?;

    killed(&cluster)?;
    // Nobody was there to hear of it.
    cluster.kubectl(&["delete", "-f", &mesh.manifests.display().to_string(), "--wait=false"])?;
    let left = "jsonpath={range .items[*]}[{.metadata.deletionTimestamp}]{end}";
    wait::until_true("every pod of the mesh to be told to go", CHANGE, || {
        cluster.kubectl(&["get", "pods", "-n", NAMESPACE, "-o", left]).is_ok_and(|said| !said.contains("[]"))
    })?;
    for index in 1..=2 {
        kubelet(&cluster, index)?.restart()?;
    }
    cluster.kubectl(&["wait", "namespace", NAMESPACE, "--for=delete", "--timeout=120s"])?;
    no_objects(&cluster)?;
    // What an unclean end leaves: without it, this test would show nothing.
    for (index, before) in before.iter().enumerate() {
        let now = node(&cluster, index + 1)?;
        ensure!(&now != before && now.contains("culvert-cni"), "nothing is left on node {}: {now}", index + 1);
    }
    let ours = cart.ours()?;
    let of_each_kind =
        ["culvert", "lookup 15001100", "table 15001100"].iter().all(|kind| ours.iter().any(|one| one.contains(kind)));
    ensure!(of_each_kind, "rules and routes are not left: {ours:?}");
    ensure!(cart.asks(web.echo()[0])?.is_err(), "a captured pod is served by nobody");

    // As docs/uninstall.md says, on each node; it may be repeated.
    for node in cluster.lab().nodes() {
        for _ in 0..2 {
            node.exec(&["pod-watcher", "uninstall"])?.ok().with_context(|| node.name().to_owned())?;
        }
        node.exec(&["rm", "-r", "/var/lib/culvert", "/run/culvert"])?.ok()?;
    }
    as_before(&cluster, &before)?;
    for member in [&cart, &web] {
        nothing_of_ours(member)?;
    }
    shop::until(&cart, &web, true)?;
    // The namespace still has its label, and nobody waits for a mesh that is gone.
    start(&cluster, "shop", "late", 1)?;
    no_objects(&cluster)?;
    [&cart, &web].into_iter().try_for_each(|member| goes_with_its_network(&cluster, member))
}

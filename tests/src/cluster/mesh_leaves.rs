//! Uninstalling leaves nodes as they were: network configuration, plugins, state, and pods that never noticed.

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::Mesh;
use lab::wait;

use crate::shop::{self, CHANGE, captured, enrol, namespaces, start};
use crate::support::up;

/// What of a node the mesh may touch: names and contents.
fn node(cluster: &Cluster, index: usize) -> Result<String> {
    // Empty directories are the mounts of the pods that are gone; the last good configuration is the worker's own, see docs/uninstall.md.
    let look = "cd /etc/cni/net.d && sha256sum * ; ls /opt/cni/bin /run/netns | grep -v '^cni-'; \
                find /var/lib/culvert /run/culvert -mindepth 1 -not -type d -not -path '*/last-good*' 2>/dev/null | sort; true";
    cluster.lab().node(index).exec(&["sh", "-c", look])?.ok()
}

#[test]
fn uninstalling_takes_chain_entry_binary_and_state_away_and_pods_do_not_notice() -> Result<()> {
    let mesh = Mesh::find()?;
    let cluster = up("kube-leaves")?;
    let before = [node(&cluster, 1)?, node(&cluster, 2)?];
    cluster.install(&mesh, |_| {})?;
    namespaces(&cluster, true)?;
    let (cart, web) = (start(&cluster, "shop", "cart", 1)?, start(&cluster, "shop", "web", 2)?);
    captured(&cluster, &[&cart, &web], true)?;
    shop::until(&cart, &web, true)?;
    for (index, before) in before.iter().enumerate() {
        let now = node(&cluster, index + 1)?;
        ensure!(&now != before && now.contains("culvert-cni"), "the plugin is not on node {}: {now}", index + 1);
    }

    // As docs/uninstall.md says: out of the mesh first, then the mesh.
    enrol(&cluster, false)?;
    captured(&cluster, &[&cart, &web], false)?;
    cluster.uninstall(&mesh)?;
    for (index, before) in before.iter().enumerate() {
        let mut now = String::new();
        wait::until_true("the node to be as before", CHANGE, || {
            now = node(&cluster, index + 1).unwrap_or_default();
            &now == before
        })
        .with_context(|| format!("node {} was\n{before}\nis\n{now}", index + 1))?;
    }
    shop::until(&cart, &web, true)?;
    // Pods start as before, and policies, which belong to those who wrote them, are still there.
    start(&cluster, "shop", "late", 2)?;
    cluster.kubectl(&["get", "authorizationpolicies", "-A"])?;
    // No pod has rules of ours, and nothing holds a pod's network any more: what is deleted goes.
    for member in [&cart, &web] {
        ensure!(!member.rules()?.contains("culvert"), "{}: {}", member.name, member.rules()?);
    }
    let left = cluster.kubectl(&[
        "get",
        "all,clusterroles,clusterrolebindings,validatingadmissionpolicies",
        "-A",
        "-o",
        "name",
    ])?;
    ensure!(!left.contains("culvert"), "left: {left}");
    Ok(())
}

//! A node whose power was cut comes back by itself, with its pods.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::support::{PODS, figure, pods, rolled_out, up, web};

#[test]
fn a_node_whose_power_was_cut_boots_and_its_pods_serve_again() -> Result<()> {
    let cluster = up("kube-power")?;
    web(&cluster)?;
    let before = pods(&cluster)?;
    // Files that were there before and must be there after: a node's CNI configuration is its own from the first boot on.
    let mark = "/etc/cni/net.d/mark";
    let node = cluster.lab().node(1);
    node.exec(&["touch", mark])?.ok()?;
    node.power_cut()?;
    ensure!(!node.init().is_alive(), "pid 1 survived the power cut");
    let took = cluster.boot(1)?;
    figure(
        "node boot to Ready",
        format!("{:.1}", took.as_secs_f64()),
        "s",
        "after a power cut, four pods on two nodes",
    );
    node.exec(&["test", "-e", mark])?.ok().context("the node's disk lost a file")?;
    let begun = Instant::now();
    lab::wait::until_true("the pods of the node to be started again", PODS, || {
        pods(&cluster).is_ok_and(|now| {
            let of_node = |pod: &&crate::support::Pod| pod.node == "node-1";
            now.iter().filter(of_node).count() == 2 && now.iter().filter(of_node).all(|pod| pod.restarts > 0)
        })
    })?;
    rolled_out(&cluster)?;
    figure("pods Ready after boot", format!("{:.1}", begun.elapsed().as_secs_f64()), "s", "after the node was Ready");
    let after = pods(&cluster)?;
    let names = |pods: &[crate::support::Pod]| pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
    ensure!(names(&before) == names(&after), "other pods: {before:?} and {after:?}");
    ensure!(after.iter().filter(|pod| pod.node == "node-2").all(|pod| pod.restarts == 0), "{after:?}");
    for pod in after.iter().filter(|pod| pod.node == "node-1") {
        let said = cluster.kubectl(&["exec", &pod.name, "--", "hostname"])?;
        ensure!(said.trim() == pod.name, "{said}");
    }
    Ok(())
}

//! A namespace with running pods and open connections is labelled, and later not any more: nothing breaks, nobody is started again.

use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use lab::wait;

use crate::shop::{self, CHANGE, Member, captured, enrol, meshed, say, start};

/// A connection to each pod over each family.
fn open(from: &Member, to: &[Member]) -> Result<Vec<TcpStream>> {
    let all = to.iter().flat_map(Member::echo);
    all.map(|to| from.connect(to)?.with_context(|| format!("{} to {to}", from.name))).collect()
}

fn all_answer(streams: &[TcpStream], when: &str) -> Result<()> {
    streams.iter().try_for_each(|stream| say(stream).with_context(|| format!("{:?} {when}", stream.peer_addr())))
}

fn starts(cluster: &Cluster) -> Result<String> {
    cluster.kubectl(&[
        "get",
        "pods",
        "-n",
        "shop",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
    ])
}

/// Lines of connections from this pod in its own node's access log.
fn lines(cluster: &Cluster, of: &Member) -> usize {
    let wanted = format!("shop/{}", of.name);
    let lines = shop::access_log(cluster, of.node).unwrap_or_default();
    lines.iter().filter(|line| line["source_pod"] == wanted.as_str()).count()
}

#[test]
fn running_pods_with_open_connections_come_into_the_mesh_and_leave_it_and_none_breaks() -> Result<()> {
    let (cluster, _) = meshed("kube-opt-in", false)?;
    let cart = start(&cluster, "shop", "cart", 1)?;
    let webs = [start(&cluster, "shop", "web-1", 1)?, start(&cluster, "shop", "web-2", 2)?];
    let plain = open(&cart, &webs)?;
    all_answer(&plain, "before")?;
    ensure!(lines(&cluster, &cart) == 0, "nothing is captured yet");

    enrol(&cluster, true)?;
    captured(&cluster, &[&cart, &webs[0], &webs[1]], true)?;
    all_answer(&plain, "after opt-in")?;
    for web in &webs {
        shop::until(&cart, web, true)?;
    }
    wait::until_true("new connections to be the mesh's", CHANGE, || lines(&cluster, &cart) >= 4)?;
    let meshed = open(&cart, &webs)?;
    all_answer(&meshed, "through the mesh")?;

    enrol(&cluster, false)?;
    captured(&cluster, &[&cart, &webs[0], &webs[1]], false)?;
    all_answer(&plain, "after opt-out")?;
    all_answer(&meshed, "after opt-out, which was the mesh's")?;
    for web in &webs {
        shop::until(&cart, web, true)?;
    }
    all_answer(&meshed, "once more")?;
    ensure!(starts(&cluster)? == "0 0 0", "pods were started again");
    Ok(())
}

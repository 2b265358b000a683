//! A namespace with running pods and open connections is labelled, and later not any more: nothing breaks, nobody is started again.

use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::demo::{self, Demo};
use lab::wait;

use crate::flows::{self, Flow};
use crate::shop::{self, CHANGE, Member, captured, enrol_all, meshed, say, start};
use crate::support::figure;

const NAMESPACES: [&str; 2] = ["shop", demo::NAMESPACE];

/// A connection to each pod over each family.
fn open(from: &Member, to: &[Member]) -> Result<Vec<TcpStream>> {
    let all = to.iter().flat_map(Member::echo);
    all.map(|to| from.connect(to)?.with_context(|| format!("{} to {to}", from.name))).collect()
}

fn all_answer(streams: &[TcpStream], when: &str) -> Result<()> {
    streams.iter().try_for_each(|stream| say(stream).with_context(|| format!("{:?} {when}", stream.peer_addr())))
}

/// A download and a websocket to each pod, and a session with the demo's database, over each family, all in use.
fn busy(cluster: &Cluster, from: &Member, to: &[Member], db: &Member) -> Result<Vec<Flow>> {
    let mut all = Vec::new();
    for to in to {
        for ip in &to.ips {
            all.push(flows::download(from, to, *ip)?);
            all.push(flows::websocket(from, to, *ip)?);
        }
    }
    for ip in &db.ips {
        all.push(flows::psql(cluster, *ip)?);
    }
    go_on(&all, "at first")?;
    Ok(all)
}

fn go_on(flows: &[Flow], when: &str) -> Result<()> {
    flows.iter().try_for_each(|flow| flow.goes_on().with_context(|| when.to_owned()))
}

/// Which pods there are in both namespaces, and how often a container of theirs was started again.
fn starts(cluster: &Cluster) -> Result<Vec<String>> {
    let of =
        "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.containerStatuses[*].restartCount};{end}";
    NAMESPACES.iter().map(|namespace| cluster.kubectl(&["get", "pods", "-n", namespace, "-o", of])).collect()
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
    cluster.demo(&Demo::find()?, |_| {})?;
    let buyer = start(&cluster, "shop", "buyer", 1)?;
    let webs = [start(&cluster, "shop", "web-1", 1)?, start(&cluster, "shop", "web-2", 2)?];
    let [db, cart] = [("db", 1), ("cart", 2)].map(|(name, node)| shop::member(&cluster, demo::NAMESPACE, name, node));
    let (db, cart) = (db?, cart?);
    let all = [&buyer, &webs[0], &webs[1], &db, &cart];
    // Labelled when it was made: out first.
    enrol_all(&cluster, &[demo::NAMESPACE], false)?;
    captured(&cluster, &all, false)?;
    let started = starts(&cluster)?;
    ensure!(all.iter().all(|one| started.iter().any(|pods| pods.contains(&one.name))), "{started:?}");
    // Two of each kind: one that is silent from before a change until after it, one that never is.
    let plain = open(&buyer, &webs)?;
    all_answer(&plain, "before")?;
    let plain_busy = busy(&cluster, &buyer, &webs, &db)?;
    ensure!(lines(&cluster, &buyer) == 0, "nothing is captured yet");

    enrol_all(&cluster, &NAMESPACES, true)?;
    captured(&cluster, &all, true)?;
    go_on(&plain_busy, "after opt-in")?;
    all_answer(&plain, "after opt-in")?;
    for web in &webs {
        shop::until(&buyer, web, true)?;
    }
    wait::until_true("new connections to be the mesh's", CHANGE, || lines(&cluster, &buyer) >= 4)?;
    let meshed = open(&buyer, &webs)?;
    all_answer(&meshed, "through the mesh")?;
    let meshed_busy = busy(&cluster, &buyer, &webs, &db)?;

    enrol_all(&cluster, &NAMESPACES, false)?;
    captured(&cluster, &all, false)?;
    go_on(&plain_busy, "after opt-out")?;
    go_on(&meshed_busy, "after opt-out, which was the mesh's")?;
    all_answer(&plain, "after opt-out")?;
    all_answer(&meshed, "after opt-out, which was the mesh's")?;
    for web in &webs {
        shop::until(&buyer, web, true)?;
    }
    all_answer(&meshed, "once more")?;
    let count = plain_busy.len() + meshed_busy.len();
    plain_busy.into_iter().chain(meshed_busy).try_for_each(Flow::ends)?;
    let now = starts(&cluster)?;
    ensure!(now == started, "pods were started again: {started:?} {now:?}");
    figure("flows over opt-in and opt-out", count, "flows", "downloads, websockets and psql sessions, none broke");
    Ok(())
}

//! What processes on the nodes use, read inside the nodes: other machines' processes of the same name are not seen there.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::NAMESPACE;

/// How `pgrep` finds them; the brackets keep it from finding the shell that asks.
pub(crate) const CONTROL_PLANE: &str = "-x control-plane";
pub(crate) const WORKER: &str = "-f [n]ode-proxy.worker";

/// What some processes use, together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Group {
    pub(crate) processes: usize,
    /// Bytes: proportional set size (`smaps_rollup`).
    pub(crate) memory: u64,
    /// Nanoseconds of all their threads (`schedstat`).
    pub(crate) cpu: u64,
    /// Bytes received by the network that the last of them is in (`net/dev`).
    pub(crate) received: u64,
}

/// Of one node.
pub(crate) fn on(cluster: &Cluster, node: usize, wanted: &str) -> Result<Group> {
    let script = format!(
        "for pid in $(pgrep {wanted}); do echo process; awk '/^Pss:/ {{print \"memory\", $2 * 1024}}' /proc/$pid/smaps_rollup; \
         cat /proc/$pid/task/*/schedstat | awk '{{print \"cpu\", $1}}'; \
         awk '/eth0:/ {{print \"received\", $2}}' /proc/$pid/net/dev; done"
    );
    let output = cluster.lab().node(node).exec(&["sh", "-c", &script])?.ok()?;
    let mut group = Group::default();
    for line in output.lines() {
        let mut words = line.split_whitespace();
        let (what, value) = (words.next(), words.next().and_then(|value| value.parse::<u64>().ok()));
        match (what, value) {
            (Some("process"), _) => group.processes += 1,
            (Some("memory"), Some(value)) => group.memory += value,
            (Some("cpu"), Some(value)) => group.cpu += value,
            (Some("received"), Some(value)) => group.received = value,
            other => anyhow::bail!("{other:?} of {wanted} on node {node}"),
        }
    }
    Ok(group)
}

/// Of all nodes.
pub(crate) fn on_all(cluster: &Cluster, wanted: &str) -> Result<Group> {
    let mut all = Group::default();
    for node in 1..=cluster.lab().nodes().len() {
        let Group { processes, memory, cpu, received } = on(cluster, node, wanted)?;
        all.processes += processes;
        all.memory += memory;
        all.cpu += cpu;
        all.received += received;
    }
    ensure!(all.processes > 0, "no process is found by pgrep {wanted}");
    Ok(all)
}

/// Workloads and services that the proxy of a node holds.
pub(crate) fn records(cluster: &Cluster, node: usize) -> Result<usize> {
    let pods = cluster.get(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=node-proxy"])?;
    let wanted = format!("node-{node}");
    let items = pods["items"].as_array().context("a list")?;
    let pod = items.iter().find(|pod| pod["spec"]["nodeName"] == wanted.as_str()).context("a node-proxy")?;
    let ip: IpAddr = pod["status"]["podIP"].as_str().context("an address")?.parse()?;
    let text = cluster.lab().node(node).in_netns(|| scrape(SocketAddr::new(ip, 15020)))?;
    let values = text.lines().filter(|line| line.starts_with("culvert_xds_records{") && line.contains("Address"));
    let values: Vec<f64> = values.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    ensure!(!values.is_empty(), "the worker's metrics do not say how many addresses it holds");
    Ok(values.iter().sum::<f64>() as usize)
}

fn scrape(from: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&from, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET /metrics HTTP/1.1\r\nhost: {from}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// From a control plane's first line to the one that says that everything is published.
pub(crate) fn first_snapshot(log: &str) -> Result<Duration> {
    let seconds = |line: &str| -> Option<f64> {
        // `2026-01-02T03:04:05.678901Z`, in text or JSON: the time of the day is enough.
        let (_, rest) = line.split_once('T')?;
        let mut parts = rest.split_once('Z')?.0.split(':');
        let mut next = || parts.next()?.parse::<f64>().ok();
        Some(next()? * 3600.0 + next()? * 60.0 + next()?)
    };
    let first = log.lines().find_map(seconds).context("a line with a time")?;
    let is_whole = |line: &&str| {
        let published = line.contains("configuration published");
        let digits = |rest: &str| {
            rest.trim_start_matches(['=', '"', ':', ' ']).split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let addresses: Option<usize> = line.split_once("addresses").and_then(|(_, rest)| digits(rest));
        published && addresses.is_some_and(|count| count >= crate::WHOLE.pods)
    };
    let whole = log.lines().find(is_whole).and_then(seconds).context("a line that says that all is published")?;
    Ok(Duration::from_secs_f64((whole - first).rem_euclid(86_400.0)))
}

//! The probe port of a STRICT pod is open to the kubelet's place, a process in the node's own network, and to nobody else: not
//! from the same node, not from another one, not with the node's address by masquerading.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lab::pod::{ECHO, WHOAMI};
use lab::{Lab, Node, Pod, PodHandle};
use serde_json::Value;

use crate::support::{at, family, figure, mesh, strict};

/// As a NodePort would have it.
const NODE_PORT: u16 = 30080;

/// One connection that speaks and reads what the server tells of it.
fn ask(to: &str) -> [&str; 8] {
    ["connect", to, "--send", "x", "--expect", "0", "--timeout", "1500"]
}

fn from_node(node: &Node, to: &str) -> Result<Value> {
    let argv: Vec<&str> = ["culvert-lab", "client"].into_iter().chain(ask(to)).collect();
    let output = node.exec(&argv)?;
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

/// The address that the server saw.
fn peer(seen: &Value) -> Result<IpAddr> {
    let text = seen["text"].as_str().and_then(|text| text.split(' ').next()).unwrap_or_default();
    Ok(text.parse::<std::net::SocketAddr>().with_context(|| format!("{seen}"))?.ip())
}

/// Connections to the node's own address at [`NODE_PORT`] go to the pod, with an address of the node as their source.
fn masquerade(node: &Node, pod: &PodHandle) -> Result<()> {
    for ip in pod.ips() {
        let family = if ip.is_ipv4() { "ip" } else { "ip6" };
        let target = at(ip, WHOAMI);
        let rules = format!(
            "table {family} nodeport {{\n\
             chain in {{ type nat hook prerouting priority -90; tcp dport {NODE_PORT} dnat to {target}; }}\n\
             chain out {{ type nat hook postrouting priority 110; ct status dnat masquerade; }}\n}}\n"
        );
        node.exec(&["sh", "-c", &format!("printf '%s' '{rules}' | nft -f -")])?.ok()?;
    }
    Ok(())
}

/// Everybody who is not the kubelet, and the address they dial.
fn others<'a>(
    lab: &Lab,
    near: &'a PodHandle,
    far: &'a PodHandle,
    pod: &PodHandle,
) -> Vec<(&'static str, &'a PodHandle, String)> {
    let mut all = Vec::new();
    for (ip, node_ip) in pod.ips().into_iter().zip(lab.node(1).ips()) {
        all.push(("a pod on the same node", near, at(ip, WHOAMI)));
        all.push(("a pod on another node", far, at(ip, WHOAMI)));
        all.push(("a masqueraded pod on the same node", near, at(node_ip, NODE_PORT)));
        all.push(("a masqueraded pod on another node", far, at(node_ip, NODE_PORT)));
    }
    all
}

#[test]
fn only_the_kubelets_place_reaches_the_probe_port_of_a_strict_pod() -> Result<()> {
    let lab = mesh("probes")?;
    let web = lab.add_pod(Pod::new("shop", "web").probe(WHOAMI))?;
    let near = lab.add_pod(Pod::new("outside", "near"))?;
    let far = lab.add_pod(Pod::new("outside", "far").node(2))?;
    lab.allow("a stranger to the mesh", crate::support::Clear::of(&far));
    lab.allow("a node that is no pod's", crate::support::Clear::addresses(lab.node(2).ips()));
    masquerade(lab.node(1), &web)?;

    // The control: before STRICT each of them gets through, the masqueraded ones with an address of the node.
    for (who, from, to) in others(&lab, &near, &far, &web) {
        let seen = from.run_client(&ask(&to))?;
        ensure!(seen["ok"] == 1, "PERMISSIVE: {who} at {to}: {seen}");
        let own = from.ips().contains(&peer(&seen)?);
        ensure!(own != who.contains("masqueraded"), "{who} at {to} was seen as {seen}");
    }

    strict(&lab, "shop", &web, ECHO, &near)?;
    let before = web.stats();
    for (who, from, to) in others(&lab, &near, &far, &web) {
        let seen = from.run_client(&ask(&to))?;
        ensure!(seen["ok"] == 0, "STRICT: {who} got through at {to}: {seen}");
    }
    ensure!(web.stats() == before, "the app saw something: {before:?}, then {:?}", web.stats());
    let masqueraded = |line: &Value| {
        let from: Option<std::net::SocketAddr> = line["client"].as_str().and_then(|text| text.parse().ok());
        line["reason"] == "PolicyDenied"
            && from.is_some_and(|from| [&near, &far].iter().all(|pod| !pod.ips().contains(&from.ip())))
    };
    lab.mesh().wait_access(1, "a masqueraded one refused by policy", masqueraded)?;

    for ip in web.ips() {
        let seen = from_node(lab.node(1), &at(ip, WHOAMI))?;
        ensure!(seen["ok"] == 1, "the kubelet's place was refused over {}: {seen}", family(ip));
        // The same place, a port that is not probed.
        let other = from_node(lab.node(1), &at(ip, ECHO))?;
        ensure!(other["ok"] == 0, "a port without a probe was open to the node over {}: {other}", family(ip));
        // Another node's processes are nobody's kubelet here.
        let foreign = from_node(lab.node(2), &at(ip, WHOAMI))?;
        ensure!(foreign["ok"] == 0, "another node's process got through over {}: {foreign}", family(ip));
        figure("probe_of_strict_pod_us", &seen["us"]["p50"], "µs", family(ip));
    }
    // Who could take the node's place at the pod would be answered in a probe's.
    let permanent =
        |pod: &PodHandle| pod.exec(&["ip", "neigh", "show", "nud", "permanent"]).map(|output| output.stdout);
    let (captured, plain) = (permanent(&web)?, permanent(&near)?);
    let hops = captured.lines().filter(|line| line.contains("lladdr")).count();
    ensure!(hops >= web.ips().len() && plain.is_empty(), "captured:\n{captured}\nplain:\n{plain}");
    lab.down()
}

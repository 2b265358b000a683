//! A further network of a pod, which nobody told: what comes there is taken as at the pod's own address where plaintext is, and refused,
//! with a reason, where it is not. Both families.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::{App, Pod, PodHandle};

use crate::support;
use crate::talk::{self, Met, field};

const ECHO: u16 = 7000;
const OWN: [&str; 2] = ["10.55.0.2", "fd55::2"];

/// Runs `ip` in a pod's network.
fn ip(pod: &PodHandle, lines: &[&str]) -> Result<()> {
    lines.iter().try_for_each(|line| {
        let output = pod.in_netns(|| Command::new("ip").args(line.split(' ')).output().context("start ip"))?;
        ensure!(output.status.success(), "ip {line}: {output:?}");
        Ok(())
    })
}

#[test]
fn a_further_address_of_a_pod_takes_plaintext_when_permissive_and_refuses_it_when_strict() -> Result<()> {
    let lab = support::mesh("further")?;
    let multi = lab.add_pod(Pod::new("shop", "multi").app(App::serve(&[("echo", ECHO)])))?;
    let peer = lab.add_pod(Pod::new("outside", "peer").app(App::None))?;
    talk::everyone_known(&lab, &[&multi])?;
    let link = format!("link add net1 type veth peer name far netns {}", peer.netns().display());
    let up = |device: &str, v4: &str, v6: &str| {
        [
            format!("addr add {v4}/24 dev {device}"),
            format!("addr add {v6}/64 dev {device} nodad"),
            format!("link set {device} up"),
        ]
    };
    ip(&multi, &[&link])?;
    ip(&multi, &up("net1", OWN[0], OWN[1]).each_ref().map(String::as_str))?;
    ip(&peer, &up("far", "10.55.0.9", "fd55::9").each_ref().map(String::as_str))?;
    let to = OWN.map(|ip| SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), ECHO));
    for to in to {
        talk::until(&peer, to, Met::Answered)?;
    }
    support::strict(&lab, "shop", &multi, ECHO, &peer)?;
    for to in to {
        talk::until(&peer, to, Met::Refused)?;
        let line = lab.mesh().wait_access(1, &format!("the refusal at {to}"), |line| {
            line["destination"] == to.to_string().as_str() && line["reason"] == "PolicyDenied"
        })?;
        ensure!(field(&line, "cause").contains("a further address of the pod"), "{line}");
        ensure!(line["source_identity"].is_null() && line["direction"] == "inbound", "{line}");
    }
    lab.down()
}

//! A pod reaches a pod of another node by each of its names, whole and in secret, and the app sees who calls.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lab::capture::Capture;
use lab::pod::{BULK, WHOAMI};
use lab::{App, Config, Families, Lab, Pod, PodHandle, Service, wait};

use crate::support::{self, CHANGE, figure};
use crate::talk;

const MARKER: &str = "between-nodes-plaintext-marker";
/// Bytes that `client bulk` moves each way.
const BULK_BYTES: u64 = 10_000_000;
/// Port of the tunnel.
const TUNNEL: u16 = 15008;
/// Ports of the services, other than their pods'.
const SERVICE_BULK: u16 = 80;
const SERVICE_WHOAMI: u16 = 81;

#[test]
fn a_pod_reaches_another_nodes_pods_by_address_service_and_headless_name_encrypted_over_ipv4() -> Result<()> {
    reaches_encrypted("between-4", Families::V4)
}

#[test]
fn a_pod_reaches_another_nodes_pods_by_address_service_and_headless_name_encrypted_over_ipv6() -> Result<()> {
    reaches_encrypted("between-6", Families::V6)
}

/// One family per lab: names then have addresses of that family alone, and what works without the other is shown too.
fn reaches_encrypted(name: &str, families: Families) -> Result<()> {
    let lab = support::lab(Config::default().name(name).families(families).with_mesh())?;
    let shop = Shop::open(&lab)?;
    let capture = lab.capture(&[MARKER.as_bytes()])?;
    let (ways, mut moved) = (shop.ways()?, 0);
    for (how, bulk, _) in &ways {
        let report = talk::client(&shop.a, &["bulk", bulk, "--marker", MARKER]).with_context(|| how.clone())?;
        moved += 2 * BULK_BYTES;
        let name = format!("bulk_20MB_{}_{families:?}", how.replace(' ', "_"));
        figure(&name, &report["seconds"], "s", "10 MB each way at once");
    }
    let seen = Seen::between(&capture, &shop.a, &[&shop.b, &shop.c])?;
    ensure!(seen.beside == 0, "{} bytes passed the fabric beside the tunnel", seen.beside);
    ensure!(seen.markers == 0, "the marker was seen {} times", seen.markers);
    ensure!(seen.tunnel > moved, "{} bytes in tunnels for {moved} bytes moved", seen.tunnel);
    figure(
        &format!("fabric_bytes_per_payload_byte_{families:?}"),
        seen.tunnel as f64 / moved as f64,
        "",
        "all on port 15008",
    );
    for (how, _, whoami) in &ways {
        shop.sees_callers_address(whoami).with_context(|| how.clone())?;
    }
    shop.both_endpoints_are_used()?;
    control_run(&lab, &capture)
}

/// The same pair without capture, on the same nodes, with the same eyes: here the marker is found.
fn control_run(lab: &Lab, capture: &Capture) -> Result<()> {
    let a = lab.add_pod(Pod::new("shop", "plain-a").plain().app(App::None))?;
    let b = lab.add_pod(Pod::new("shop", "plain-b").plain().node(2))?;
    capture.clear()?;
    talk::client(&a, &["bulk", &talk::at(&b, BULK)[0].to_string(), "--marker", MARKER])?;
    let seen = Seen::between(capture, &a, &[&b])?;
    ensure!(seen.markers == 1, "control run: the marker was seen {} times", seen.markers);
    ensure!(seen.tunnel == 0 && seen.beside > 2 * BULK_BYTES, "control run: {seen:?}");
    Ok(())
}

/// A on node 1; B and C on node 2, behind a service with an address and one without.
struct Shop<'l> {
    lab: &'l Lab,
    a: PodHandle,
    b: PodHandle,
    c: PodHandle,
    vip: IpAddr,
}

impl<'l> Shop<'l> {
    fn open(lab: &'l Lab) -> Result<Shop<'l>> {
        let web = |name: &str| Pod::new("shop", name).label("app", "web").service_account("web").node(2);
        let a = lab.add_pod(Pod::new("shop", "cart").service_account("cart").app(App::None))?;
        let (b, c) = (lab.add_pod(web("web-1"))?, lab.add_pod(web("web-2"))?);
        let vips = lab.service(Service::new("shop", "web").port(SERVICE_BULK, BULK).port(SERVICE_WHOAMI, WHOAMI))?;
        lab.service(Service::new("shop", "pods").selector("app", "web").headless().port(BULK, BULK))?;
        for node in [1, 2] {
            talk::knows(lab, node, "the service with its two endpoints", |config, _| {
                config["services"].as_array().is_some_and(|all| {
                    all.iter().any(|s| {
                        s["key"] == "shop/web.shop.svc.cluster.local"
                            && s["endpoints"].as_array().is_some_and(|e| e.len() == 2)
                    })
                })
            })?;
        }
        let vip = *vips.first().context("an address of the service")?;
        Ok(Shop { lab, a, b, c, vip })
    }

    /// (what it is called, where bulk goes, where whoami goes)
    fn ways(&self) -> Result<Vec<(String, String, String)>> {
        let named = |how: &str, bulk: String, whoami: String| (how.to_owned(), bulk, whoami);
        let (b, vip) = (self.b.ips()[0], self.vip);
        let to = |ip: IpAddr, port: u16| SocketAddr::new(ip, port).to_string();
        let headless = "pods.shop.svc.cluster.local";
        Ok(vec![
            named("pod address", to(b, BULK), to(b, WHOAMI)),
            named("service address", to(vip, SERVICE_BULK), to(vip, SERVICE_WHOAMI)),
            named("service name", format!("web.shop:{SERVICE_BULK}"), format!("web.shop:{SERVICE_WHOAMI}")),
            named("headless name", format!("{headless}:{BULK}"), format!("{headless}:{WHOAMI}")),
        ])
    }

    /// The app is shown A's own address and port, and B's or C's as the one that was called.
    fn sees_callers_address(&self, whoami: &str) -> Result<()> {
        let report = talk::client(&self.a, &["connect", whoami, "--expect", "0"])?;
        let text = report["text"].as_str().unwrap_or_default().trim();
        let (peer, local) = text.split_once(' ').with_context(|| format!("{report}"))?;
        let (peer, local): (SocketAddr, SocketAddr) = (peer.parse()?, local.parse()?);
        ensure!(self.a.ips().contains(&peer.ip()), "the app saw {peer}, not {:?}", self.a.ips());
        ensure!(
            talk::at(&self.b, WHOAMI).contains(&local) || talk::at(&self.c, WHOAMI).contains(&local),
            "{local} was called"
        );
        // The caller's log line has the port that A's socket had; the app saw the same.
        let node = self.lab.mesh();
        node.wait_access(1, "A's own line with the address that the app saw", |line| {
            line["client"] == peer.to_string().as_str()
        })?;
        Ok(())
    }

    fn both_endpoints_are_used(&self) -> Result<()> {
        let (mut seen, vip) = (BTreeSet::new(), SocketAddr::new(self.vip, SERVICE_WHOAMI).to_string());
        wait::until_true("connections to the service to meet both of its endpoints", CHANGE, || {
            if let Ok(report) = talk::client(&self.a, &["connect", &vip, "--expect", "0"]) {
                seen.extend(
                    report["text"].as_str().and_then(|t| t.trim().split_once(' ')).map(|(_, local)| local.to_owned()),
                );
            }
            seen.len() == 2
        })
    }
}

/// What the fabric saw between two sides.
#[derive(Debug)]
struct Seen {
    tunnel: u64,
    beside: u64,
    markers: u64,
}

impl Seen {
    fn between(capture: &Capture, a: &PodHandle, others: &[&PodHandle]) -> Result<Seen> {
        let others: Vec<IpAddr> = others.iter().flat_map(|pod| pod.ips()).collect();
        let mut seen = Seen { tunnel: 0, beside: 0, markers: 0 };
        for (ends, flow) in capture.flows()?.into_iter().filter(|(ends, _)| ends.between(&a.ips(), &others)) {
            *(if ends.tcp && ends.has_port(TUNNEL) { &mut seen.tunnel } else { &mut seen.beside }) += flow.payload;
            seen.markers += flow.markers;
        }
        Ok(seen)
    }
}

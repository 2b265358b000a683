//! Reasons that take somebody odd: a peer that has a certificate of the mesh and is no proxy of ours, a keeper that stands still.

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use http::{Method, StatusCode};
use lab::pod::ECHO;
use lab::{App, Lab, Pod, PodHandle, Signal};
use serde_json::Value;

use super::ledger::{End, Ledger, Seen, told};
use super::odd_peer::{Age, OddPeer};
use super::{Pods, alone, both, equal, load, reasons_in, scope};
use crate::talk::{self, Met, at};

const TUNNEL: u16 = 15008;
/// More than a worker keeps sockets of a family and purpose for a pod: 32.
const ATTEMPTS: usize = 200;

/// A pod of node 2 that says it is in the mesh, where nobody captures it: pod-watcher stands still.
pub(super) fn uncaptured(lab: &Lab) -> Result<PodHandle> {
    let odd = lab.add_pod(Pod::new("outside", "odd").service_account("odd").node(2).app(App::None))?;
    lab.mesh().watcher(2).signal(Signal::STOP)?;
    lab.label_pod(&odd, "culvert.io/mesh", Some("enabled"))?;
    talk::knows(lab, 1, "that odd is in the mesh", |_, workloads| {
        let is_odd = |one: &Value| one["pod"] == "outside/odd" && one["tunnel"] == true;
        workloads.as_array().is_some_and(|all| all.iter().any(is_odd))
    })?;
    Ok(odd)
}

/// Requests that no proxy of ours makes, a certificate that has run out, and an answer that says nothing.
pub(super) fn peers(lab: &Lab, pods: &Pods, odd: &PodHandle, ledger: &mut Ledger) -> Result<()> {
    let [good, old] = [Age::Good, Age::Expired].map(|age| OddPeer::new(lab, "shop", "peer", age));
    let (good, old) = (good?, old?);
    for (to, near) in at(&pods.far, TUNNEL).into_iter().zip(at(&pods.near, ECHO)) {
        let ask = |method, uri: &str| good.ask(&pods.stranger, (to, "far"), method, uri);
        let seen = Seen { security: "mutual_tls", ..alone(2, "inbound-tunnel", "peer", "far") };
        for (method, uri) in [(Method::GET, "http://far/"), (Method::CONNECT, "far.shop:80")] {
            let status = ask(method.clone(), uri)?;
            ensure!(status == StatusCode::BAD_REQUEST, "{method} {uri}: {status}");
            ledger.refused(seen, "BAD_REQUEST", "BadRequest");
        }
        // Through far's own listener to a pod that is not far.
        let status = ask(Method::CONNECT, &near.to_string())?;
        ensure!(!status.is_success(), "CONNECT {near} at {to}: {status}");
        ledger.refused(seen, "BAD_REQUEST", "WrongDestination");
        let met = old.ask(&pods.stranger, (to, "far"), Method::CONNECT, &near.to_string());
        ensure!(met.is_err(), "a certificate that has run out was taken: {met:?}");
        ledger.refused(alone(2, "inbound-tunnel", "unknown", "far"), "IDENTITY_ERROR", "CertificateExpired");
    }
    let to = at(odd, ECHO);
    let server = OddPeer::new(lab, "outside", "odd", Age::Good)?.refuses(odd, TUNNEL, to.len())?;
    for to in to {
        let met = talk::attempt(&pods.cart, to)?;
        ensure!(met == Met::Refused, "cart at {to}: {met:?}");
        let seen = Seen { security: "mutual_tls", ..alone(1, "outbound", "cart", "odd") };
        ledger.refused(seen, "TLS_FAILURE", "TunnelRefused");
    }
    server.join().map_err(|_| anyhow!("the odd server panicked"))?.context("the odd server")
}

/// The keeper of node 1 makes no sockets: what is in stock is used, then there are none, until it goes on. The reasons met.
pub(super) fn no_socket(lab: &Lab, pods: &Pods) -> Result<Vec<String>> {
    let (keeper, before) = (lab.mesh().keeper(1), told(lab, 1)?);
    let mut ledger = Ledger::default();
    let to = at(&pods.near, ECHO);
    keeper.signal(Signal::STOP)?;
    let used = to.iter().try_for_each(|to| until(pods, *to, Met::Refused, &mut ledger));
    keeper.signal(Signal::CONT)?;
    used?;
    to.iter().try_for_each(|to| until(pods, *to, Met::Answered, &mut ledger))?;
    Ok(reasons_in(&equal(lab, 1, &before, &ledger)?).collect())
}

/// Attempts, each of them counted, until one is met as wanted.
fn until(pods: &Pods, to: SocketAddr, wanted: Met, ledger: &mut Ledger) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let met = talk::attempt(&pods.cart, to)?;
        for seen in both("cart", "near") {
            match met {
                Met::Answered => ledger.moved(seen, scope("near"), load::SAID, load::SAID, End::DONE),
                _ => ledger.refused(seen, "CONNECT", "NoSocket"),
            }
        }
        if met == wanted {
            return Ok(());
        }
    }
    bail!("{to}: none of {ATTEMPTS} attempts was met by {wanted:?}")
}

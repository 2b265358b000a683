//! With the control plane stopped, what nobody told of is not reached: not in clear, not at all. What lies outside of the cluster is
//! nobody's business.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::capture::Capture;
use lab::pod::ECHO;
use lab::{App, Lab, Pod, PodHandle, Service, wait};

use crate::support::{self, CHANGE, figure};
use crate::talk::{self, Met, at};

/// Refused within this time.
const PROMISED: Duration = Duration::from_secs(2);
const WORLD: u16 = 7777;

#[test]
fn an_unknown_pod_or_service_is_refused_soon_and_silently_and_the_world_outside_is_reached() -> Result<()> {
    let lab = support::mesh("no-control-plane")?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart").app(App::None))?;
    let stranger = lab.add_pod(Pod::new("outside", "stranger").app(App::None))?;
    lab.allow("a stranger to the mesh", support::Clear::of(&stranger));
    let old = lab.add_pod(Pod::new("shop", "old").node(2))?;
    talk::everyone_known(&lab, &[&cart, &old, &stranger])?;
    let world = talk::world(&lab, WORLD)?;
    lab.allow("a server outside of the cluster", support::Clear::world());
    // Both have certificates from here on: those are not given out while nobody is there.
    at(&old, ECHO).into_iter().try_for_each(|to| talk::until(&cart, to, Met::Answered))?;
    lab.mesh().control_plane().kill()?;
    // Made when nobody is there to tell the workers: a pod that takes plaintext, and a service of it.
    let fresh = lab.add_pod(Pod::new("outside", "fresh").label("app", "fresh").node(2))?;
    lab.allow("a stranger to the mesh", support::Clear::of(&fresh));
    let vips = lab.service(Service::new("outside", "fresh").port(ECHO, ECHO))?;
    let unknown: Vec<SocketAddr> =
        at(&fresh, ECHO).into_iter().chain(vips.into_iter().map(|ip| SocketAddr::new(ip, ECHO))).collect();
    ensure!(unknown.len() == 4, "an address of each kind and family: {unknown:?}");

    let fabric = lab.capture(&[])?;
    let mut slowest = Duration::ZERO;
    for to in &unknown {
        let start = Instant::now();
        let met = talk::attempt(&cart, *to)?;
        slowest = slowest.max(start.elapsed());
        ensure!(met == Met::Refused, "{to}, which nobody told of: {met:?}");
        lab.mesh().wait_access(1, &format!("the refusal of {to}"), |line| {
            line["destination"] == to.to_string().as_str()
                && line["reason"] == "UnknownDestination"
                && line["direction"] == "outbound"
        })?;
    }
    ensure!(slowest < PROMISED, "the slowest refusal took {slowest:?}");
    figure("unknown_destination_max", slowest.as_millis(), "ms", "4 destinations, control plane stopped");
    // Not a packet, so not a byte; and the app heard of nothing.
    for to in &unknown {
        ensure!(packets_to(&fabric, &cart, to.ip())?.is_none(), "something for {to} crossed the fabric");
    }
    ensure!(fresh.stats().connections == 0, "the app counted {:?}", fresh.stats());
    seen_without_capture(&fabric, &stranger, &fresh, &unknown)?;

    for to in &world {
        ensure!(talk::attempt(&cart, *to)? == Met::Answered, "{to}, outside of the cluster, is not reached");
        lab.mesh().wait_access(1, "its line", |line| {
            line["destination"] == to.to_string().as_str() && line["route"] == "passthrough"
        })?;
    }
    for to in at(&old, ECHO) {
        ensure!(talk::attempt(&cart, to)? == Met::Answered, "{to}, known from before, is not reached");
    }
    known_again(&lab, &cart, &unknown)
}

/// The counter-proof: from a pod without capture the same destinations put packets on the fabric, and the pod answers.
fn seen_without_capture(
    fabric: &Capture,
    stranger: &PodHandle,
    fresh: &PodHandle,
    unknown: &[SocketAddr],
) -> Result<()> {
    for to in unknown {
        let met = talk::attempt_within(stranger, *to, Duration::from_millis(500))?;
        let is_pod = fresh.ips().contains(&to.ip());
        ensure!((met == Met::Answered) == is_pod, "a stranger at {to}: {met:?}");
        let seen = packets_to(fabric, stranger, to.ip())?;
        ensure!(
            seen.is_some_and(|payload| !is_pod || payload > 0),
            "the capture does not see what a stranger sends to {to}"
        );
    }
    Ok(())
}

/// Bytes of payload that crossed the fabric from a pod to an address; `None`: not even an empty segment did.
fn packets_to(fabric: &Capture, from: &PodHandle, to: IpAddr) -> Result<Option<u64>> {
    let flows = fabric.flows()?;
    let mut mine =
        flows.iter().filter(|(ends, _)| from.ips().contains(&ends.from.ip()) && ends.to.ip() == to).peekable();
    Ok(mine.peek().is_some().then(|| mine.map(|(_, flow)| flow.payload).sum()))
}

/// Once the control plane is back, the same destinations are reached: it was its absence that refused them.
fn known_again(lab: &Lab, cart: &PodHandle, unknown: &[SocketAddr]) -> Result<()> {
    lab.mesh().control_plane().restart()?;
    for to in unknown {
        wait::until_true(&format!("{to} to be known"), CHANGE, || {
            talk::attempt(cart, *to).is_ok_and(|met| met == Met::Answered)
        })
        .with_context(|| lab.mesh().worker(1).tail(10))?;
    }
    Ok(())
}

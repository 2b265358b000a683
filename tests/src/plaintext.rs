//! Callers outside of the mesh: PERMISSIVE takes their plaintext, STRICT refuses it, also where a single port differs, and on whatever
//! node they are. Callers of the mesh do not notice.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::{App, Pod, PodHandle};

use crate::support::{self, CHANGE};
use crate::talk::{self, Met, at, field};

const ONE: u16 = 7000;
const TWO: u16 = 9000;

/// A pod of the mesh that serves two ports, its friend of the mesh, and a stranger on each node.
struct Yard {
    lab: crate::support::Watched,
    friend: PodHandle,
    strangers: [PodHandle; 2],
    web: PodHandle,
}

impl Yard {
    fn open(name: &str) -> Result<Yard> {
        let lab = support::mesh(name)?;
        let servers = App::serve(&[("echo", ONE), ("echo", TWO)]);
        let web = lab.add_pod(Pod::new("shop", "web").service_account("web").app(servers))?;
        let friend = lab.add_pod(Pod::new("shop", "cart").service_account("cart").node(2).app(App::None))?;
        let stranger = |name: &str, node| lab.add_pod(Pod::new("outside", name).node(node).app(App::None));
        let strangers = [stranger("beside", 1)?, stranger("far", 2)?];
        for stranger in &strangers {
            lab.allow("a stranger to the mesh", support::Clear::of(stranger));
        }
        talk::everyone_known(&lab, &[&web, &friend])?;
        Ok(Yard { lab, friend, strangers, web })
    }

    /// Puts a mode in place; returns when the web pod's worker lists `key` for it, or no policy at all.
    fn mode(&self, spec: &str, key: Option<&str>) -> Result<()> {
        let head = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: shop, name: mode}\nspec: ";
        self.lab.apply("mode", &format!("{head}{spec}\n"))?;
        talk::knows(&self.lab, 1, &format!("{spec} as {key:?}"), |config, workloads| {
            let web = workloads.as_array().and_then(|all| all.iter().find(|w| w["pod"] == "shop/web").cloned());
            let listed = web.and_then(|web| web["policies"].as_array().cloned());
            let there = config["policies"]
                .as_array()
                .is_some_and(|all| all.iter().any(|policy| Some(field(policy, "key")) == key));
            match key {
                Some(key) => there && listed.is_some_and(|all| all.iter().any(|one| one == key)),
                None => listed.is_some_and(|all| all.is_empty()),
            }
        })
    }

    /// What the strangers meet at each port; the friend is always answered, and the app counts exactly who was.
    fn strangers_meet(&self, port: u16, wanted: Met) -> Result<()> {
        for to in at(&self.web, port) {
            let before = self.web.stats().port(port).connections;
            for stranger in &self.strangers {
                let met = talk::attempt(stranger, to)?;
                ensure!(met == wanted, "{} at {to}: {met:?}, not {wanted:?}", stranger.key());
            }
            ensure!(talk::attempt(&self.friend, to)? == Met::Answered, "a pod of the mesh is not answered at {to}");
            let counted = self.web.stats().port(port).connections - before;
            let answered = 1 + if wanted == Met::Answered { 2 } else { 0 };
            ensure!(counted == answered, "the app at {to} counted {counted} connections of {answered}");
        }
        Ok(())
    }

    /// The refusals of both strangers stand in the log of the web pod's node with the policy's name.
    fn refusals_name(&self, port: u16, policy: &str) -> Result<()> {
        for to in at(&self.web, port) {
            for stranger in &self.strangers {
                let from = talk::own_address(stranger, to.ip())?;
                self.lab.mesh().wait_access(1, &format!("the refusal of {from} at {to}"), |line| {
                    let client = field(line, "client").parse::<SocketAddr>().map(|client| client.ip());
                    client == Ok(from)
                        && line["destination"] == to.to_string().as_str()
                        && line["direction"] == "inbound"
                        && line["reason"] == "PolicyDenied"
                        && line["policy"] == policy
                        && line["source_identity"].is_null()
                })?;
            }
        }
        Ok(())
    }
}

const STATIC: &str = "culvert-system/istio_converted_static_strict";
const OWN: &str = "shop/converted_peer_authentication_mode";

#[test]
fn plaintext_passes_when_permissive_and_is_refused_when_strict() -> Result<()> {
    let yard = Yard::open("plain-modes")?;
    yard.strangers_meet(ONE, Met::Answered)?;
    let live: Vec<_> =
        at(&yard.web, ONE).into_iter().map(|to| Ok(talk::connect(&yard.strangers[1], to)??)).collect::<Result<_>>()?;
    let friends: Vec<_> =
        at(&yard.web, ONE).into_iter().map(|to| Ok(talk::connect(&yard.friend, to)??)).collect::<Result<_>>()?;
    live.iter().chain(&friends).try_for_each(talk::say)?;

    yard.mode("{mtls: {mode: STRICT}}", Some(STATIC))?;
    for mut live in &live {
        live.set_read_timeout(Some(CHANGE))?;
        let end = live.read(&mut [0]).map_err(|error| error.kind());
        ensure!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "live plaintext outlived STRICT: {end:?}");
    }
    yard.strangers_meet(ONE, Met::Refused)?;
    yard.refusals_name(ONE, STATIC)?;
    friends.iter().try_for_each(talk::say).context("the mesh pod's live connection")?;

    yard.mode("{mtls: {mode: PERMISSIVE}}", None)?;
    yard.strangers_meet(ONE, Met::Answered)
}

#[test]
fn a_single_port_may_be_permissive_in_a_strict_pod_and_strict_in_a_permissive_one() -> Result<()> {
    let yard = Yard::open("plain-ports")?;
    let mode = |all: &str, port: &str| {
        format!(
            "{{selector: {{matchLabels: {{app: web}}}}, mtls: {{mode: {all}}}, portLevelMtls: {{{TWO}: {{mode: {port}}}}}}}"
        )
    };
    yard.mode(&mode("STRICT", "PERMISSIVE"), Some(OWN))?;
    yard.strangers_meet(ONE, Met::Refused)?;
    yard.strangers_meet(TWO, Met::Answered)?;
    yard.refusals_name(ONE, OWN)?;

    yard.mode("{mtls: {mode: PERMISSIVE}}", None)?;
    yard.mode(&mode("PERMISSIVE", "STRICT"), Some(OWN))?;
    yard.strangers_meet(ONE, Met::Answered)?;
    yard.strangers_meet(TWO, Met::Refused)?;
    yard.refusals_name(TWO, OWN)
}

//! Two pods of one node: bytes move from socket to socket, which must cost nothing of what the long way gives, and yields as soon as
//! a NetworkPolicy wants to see the packets.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::pod::{BULK, ECHO, WHOAMI};
use lab::{Config, Lab, Pod, PodHandle};

use crate::support;
use crate::talk::{self, Met, at, field};

/// Two pods of node 1, each with its own account.
struct Pair {
    lab: crate::support::Watched,
    a: PodHandle,
    b: PodHandle,
}

impl Pair {
    fn open(name: &str) -> Result<Pair> {
        let lab = support::lab(Config::default().name(name).nodes(1).with_mesh())?;
        let pod = |name: &str| lab.add_pod(Pod::new("shop", name).service_account(name));
        let (a, b) = (pod("cart")?, pod("web")?);
        talk::everyone_known(&lab, &[&a, &b])?;
        Ok(Pair { lab, a, b })
    }

    /// The route in both lines of a connection that B answers, after the app's own word on who called.
    fn route(&self, to: SocketAddr) -> Result<String> {
        let whoami = SocketAddr::new(to.ip(), WHOAMI);
        let report = talk::client(&self.a, &["connect", &whoami.to_string(), "--expect", "0"])?;
        let seen = report["text"].as_str().unwrap_or_default().split(' ').next().unwrap_or_default();
        let peer: SocketAddr = seen.parse().with_context(|| format!("{report}"))?;
        ensure!(peer.ip() == talk::own_address(&self.a, to.ip())?, "B saw {peer}, A has {:?}", self.a.ips());
        let (near, far) = talk::both_ends(&self.lab, peer, whoami)?;
        for line in [&near, &far] {
            ensure!(field(line, "source_identity") == "spiffe://cluster.local/ns/shop/sa/cart", "{line}");
            ensure!(field(line, "destination_identity") == "spiffe://cluster.local/ns/shop/sa/web", "{line}");
            ensure!(line["workload"] == "shop/web", "{line}");
        }
        ensure!(near["source_pod"] == "shop/cart" && near["route"] == far["route"], "{near} {far}");
        Ok(field(&near, "route").to_owned())
    }
}

#[test]
fn a_same_node_pair_keeps_addresses_identities_and_bytes_on_the_short_way() -> Result<()> {
    let pair = Pair::open("same-plain")?;
    let fabric = pair.lab.capture(&[])?;
    for to in at(&pair.b, BULK) {
        ensure!(pair.route(to)? == "same-node", "the pair takes the long way to {to}");
        talk::client(&pair.a, &["bulk", &to.to_string()])?;
    }
    let crossed: u64 =
        fabric.flows()?.iter().filter(|(e, _)| e.between(&pair.a.ips(), &pair.b.ips())).map(|(_, f)| f.payload).sum();
    ensure!(crossed == 0, "{crossed} bytes of a same-node pair crossed the fabric");
    Ok(())
}

#[test]
fn a_same_node_pair_is_judged_by_the_policies_of_both_its_ends() -> Result<()> {
    let Pair { lab, a, b } = Pair::open("same-policy")?;
    // Each end refuses the other's identity when it is called, and only then.
    for (called, caller, account) in [(&b, &a, "cart"), (&a, &b, "web")] {
        let key = called.key();
        let (_, app) = key.split_once('/').context("namespace/name")?;
        let name = format!("not-{account}");
        lab.apply(&name, &format!("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: {name}}}\nspec:\n  selector: {{matchLabels: {{app: {app}}}}}\n  action: DENY\n  rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/{account}]}}}}]}}]\n"))?;
        talk::policy_arrived(&lab, &format!("shop/{name}"))?;
        for to in at(called, ECHO) {
            let before = called.stats().port(ECHO);
            ensure!(talk::attempt(caller, to)? == Met::Refused, "{account} reached {to}");
            ensure!(called.stats().port(ECHO) == before, "the app of {key} saw the refused connection");
            let refused = |line: &serde_json::Value| {
                line["destination"] == to.to_string().as_str() && line["reason"] == "PolicyDenied"
            };
            let outbound = lab
                .mesh()
                .wait_access(1, "the caller's line", |line| refused(line) && line["direction"] == "outbound")?;
            let inbound = lab.mesh().wait_access(1, "the called one's line", |line| {
                refused(line) && line["id"] == outbound["id"] && talk::is_inbound(line)
            })?;
            for line in [&outbound, &inbound] {
                ensure!(field(line, "policy") == format!("shop/{name}") && line["route"] == "same-node", "{line}");
                ensure!(field(line, "source_identity").ends_with(&format!("/sa/{account}")), "{line}");
            }
        }
        for to in at(caller, ECHO) {
            ensure!(
                talk::attempt(called, to)? == Met::Answered,
                "{key} is refused at {to} by the policy of its own end"
            );
        }
        lab.delete(&name)?;
        for to in at(called, ECHO) {
            talk::until(caller, to, Met::Answered)?;
        }
    }
    Ok(())
}

#[test]
fn a_network_policy_sends_a_same_node_pair_over_the_veth_where_its_enforcer_stands() -> Result<()> {
    let pair = Pair::open("same-veth")?;
    let Pair { lab, a, b } = &pair;
    let open: Vec<_> = at(b, ECHO).into_iter().map(|to| Ok(talk::connect(a, to)??)).collect::<Result<_>>()?;
    for (live, to) in open.iter().zip(at(b, ECHO)) {
        talk::say(live)?;
        ensure!(pair.route(to)? == "same-node", "without NetworkPolicy the pair takes the long way to {to}");
    }
    // What a CNI's enforcer does: packets to B end at the host's side of its veth. The short way does not pass there.
    let drops = Drops::new(lab, b)?;
    for to in at(b, ECHO) {
        ensure!(
            talk::attempt(a, to)? == Met::Answered,
            "the rule on the veth stands in the short way to {to}: no proof of anything"
        );
    }
    drops.remove()?;

    select_b(lab, true)?;
    for (mut live, to) in open.iter().zip(at(b, ECHO)) {
        let end = live.read(&mut [0]).map_err(|error| error.kind());
        ensure!(
            matches!(end, Ok(0) | Err(std::io::ErrorKind::ConnectionReset)),
            "a connection on the short way lived on: {end:?}"
        );
        ensure!(talk::attempt(a, to)? == Met::Answered, "the long way to {to} does not work at all");
        ensure!(pair.route(to)? == "tunnel", "with a NetworkPolicy the pair takes the short way to {to}");
    }
    // Tunnels that stand would carry on where nothing is dropped yet; new rules must hold them up as well.
    let drops = Drops::new(lab, b)?;
    let before = b.stats();
    for to in at(b, ECHO) {
        let met = talk::attempt_within(a, to, Duration::from_millis(1500))?;
        ensure!(met != Met::Answered, "got through to {to} past the rule on B's veth");
    }
    ensure!(b.stats() == before, "B's app counted {:?}, then {:?}", before, b.stats());
    ensure!(drops.dropped()? > 0, "no packet came to B's veth: what was dropped?");
    drops.remove()?;
    select_b(lab, false)?;
    for to in at(b, ECHO) {
        ensure!(pair.route(to)? == "same-node", "the short way to {to} is not taken again");
    }
    Ok(())
}

/// Puts a NetworkPolicy for B in place or takes it away; returns when the node's worker knows.
fn select_b(lab: &Lab, selected: bool) -> Result<()> {
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: shop, name: web}\nspec:\n  podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]\n";
    if selected {
        lab.apply("network-policy", text)?
    } else {
        lab.delete("network-policy")?
    }
    talk::knows(lab, 1, "whether a NetworkPolicy selects B", |_, workloads| {
        workloads
            .as_array()
            .is_some_and(|all| all.iter().any(|w| w["pod"] == "shop/web" && w["network_policy"] == selected))
    })
}

/// A rule on the host's side of a pod's veth that drops every TCP segment on its way into the pod.
struct Drops<'l> {
    lab: &'l Lab,
    node: usize,
}

impl<'l> Drops<'l> {
    fn new(lab: &'l Lab, pod: &PodHandle) -> Result<Drops<'l>> {
        let veth = pod.host_veth().context("the host's side of the pod's veth")?;
        let rules = format!(
            "table netdev enforcer {{ chain to-pod {{ type filter hook egress device {veth} priority 0; policy accept; \
             meta l4proto tcp counter drop; }}; }}"
        );
        lab.node(pod.node()).exec(&["nft", &rules])?.ok()?;
        Ok(Drops { lab, node: pod.node() })
    }

    fn dropped(&self) -> Result<u64> {
        let text = self.lab.node(self.node).exec(&["nft", "list", "table", "netdev", "enforcer"])?.ok()?;
        let packets = text.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next());
        packets.and_then(|n| n.parse().ok()).with_context(|| format!("no counter in {text}"))
    }

    fn remove(self) -> Result<()> {
        self.lab.node(self.node).exec(&["nft", "delete", "table", "netdev", "enforcer"])?.ok().map(drop)
    }
}

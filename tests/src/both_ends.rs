//! What the two ends of a connection tell agrees: the same id in both logs, the same bytes, and refusals that metrics and logs count alike.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{App, Lab, Pod, PodHandle, wait};
use serde_json::Value;

use crate::support::{self, CHANGE};
use crate::talk::{self, Met, at, field};

struct Pair {
    lab: crate::support::Watched,
    cart: PodHandle,
    guest: PodHandle,
    near: PodHandle,
    far: PodHandle,
}

fn open(name: &str) -> Result<Pair> {
    let lab = support::mesh(name)?;
    let client = |name: &str| lab.add_pod(Pod::new("shop", name).service_account(name).app(App::None));
    let (cart, guest) = (client("cart")?, client("guest")?);
    let web =
        |name: &str, node| lab.add_pod(Pod::new("shop", name).label("app", "web").service_account("web").node(node));
    let (near, far) = (web("near", 1)?, web("far", 2)?);
    talk::everyone_known(&lab, &[&cart, &guest, &near, &far])?;
    Ok(Pair { lab, cart, guest, near, far })
}

#[test]
fn both_ends_log_a_connection_under_one_id_with_the_same_bytes_and_identities() -> Result<()> {
    let Pair { lab, cart, near, far, .. } = open("both-ids")?;
    let mut ids = Vec::new();
    for (pod, direction, security) in [(&near, "inbound", "same_node"), (&far, "inbound-tunnel", "mutual_tls")] {
        for to in at(pod, ECHO) {
            for times in 1..=2u64 {
                let stream = talk::connect(&cart, to)??;
                (0..times).try_for_each(|_| talk::say(&stream))?;
                let client = stream.local_addr()?;
                drop(stream);
                let (caller, called) = talk::both_ends(&lab, client, to)?;
                for key in [
                    "id",
                    "source_identity",
                    "destination_identity",
                    "workload",
                    "destination",
                    "security",
                    "sent",
                    "received",
                ] {
                    ensure!(!caller[key].is_null() && caller[key] == called[key], "{key} differs: {caller} {called}");
                }
                ensure!(called["direction"] == direction && called["security"] == security, "{called}");
                ensure!(caller["sent"] == 5 * times && caller["received"] == 5 * times, "{caller}");
                ensure!(field(&caller, "source_identity") == "spiffe://cluster.local/ns/shop/sa/cart", "{caller}");
                ids.push(field(&caller, "id").to_owned());
            }
        }
    }
    let connections = ids.len();
    ids.sort();
    ids.dedup();
    ensure!(ids.len() == connections && ids.iter().all(|id| id.len() == 32), "an id for each connection: {ids:?}");
    Ok(())
}

#[test]
fn refusals_by_reason_are_the_same_number_in_metrics_and_logs_and_at_both_ends() -> Result<()> {
    let Pair { lab, cart, guest, near, far } = open("both-counts")?;
    lab.apply("deny", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: not-guest}\nspec:\n  selector: {matchLabels: {app: web}}\n  action: DENY\n  rules: [{from: [{source: {serviceAccounts: [guest]}}]}]\n")?;
    talk::policy_arrived(&lab, "shop/not-guest")?;
    let before = [counted(&lab, 1)?, counted(&lab, 2)?];
    let refused = |pod: &PodHandle, to: SocketAddr| -> Result<()> {
        let met = talk::attempt(pod, to)?;
        ensure!(met == Met::Refused, "{} at {to}: {met:?}", pod.key());
        Ok(())
    };
    for _ in 0..3 {
        at(&far, ECHO).into_iter().try_for_each(|to| refused(&guest, to))?; // 6 by policy, told by the far end
    }
    for _ in 0..2 {
        at(&near, ECHO).into_iter().try_for_each(|to| refused(&guest, to))?; // 4 by policy, told here
    }
    at(&far, 15006).into_iter().try_for_each(|to| refused(&cart, to))?; // 2 at a port of the proxy's own
    at(&near, 1).into_iter().try_for_each(|to| refused(&cart, to))?; // 2 where no app listens, on this node
    at(&far, 1).into_iter().try_for_each(|to| refused(&cart, to))?; // 2 where no app listens, on the other
    at(&far, ECHO).into_iter().try_for_each(|to| talk::attempt(&cart, to).map(drop))?;

    let expected: [BTreeMap<String, u64>; 2] = [
        expect(&[
            ("outbound PolicyDenied", 10),
            ("inbound PolicyDenied", 4),
            ("inbound ConnectFailed", 2),
            ("outbound ReservedPort", 2),
            ("outbound ConnectFailed", 4),
        ]),
        expect(&[("inbound-tunnel PolicyDenied", 6), ("inbound-tunnel ConnectFailed", 2)]),
    ];
    for (node, (before, expected)) in [1, 2].into_iter().zip(before.iter().zip(&expected)) {
        let mut told = BTreeMap::new();
        wait::until_true(&format!("node {node} to count what happened"), CHANGE, || {
            told = counted(&lab, node).map(|now| since(&now, before)).unwrap_or_default();
            told == *expected
        })
        .with_context(|| format!("metrics: {told:?}, expected {expected:?}; {:#?}", talk::lines(&lab)))?;
        // Also what was before this test began: nothing is counted that is not logged, nor the other way round.
        wait::until_true("the log to agree with the metrics", CHANGE, || {
            counted(&lab, node).is_ok_and(|counted| counted == logged(&lab, node))
        })
        .with_context(|| format!("metrics {:?}, log {:?}", counted(&lab, node), logged(&lab, node)))?;
    }
    Ok(())
}

fn expect(list: &[(&str, u64)]) -> BTreeMap<String, u64> {
    list.iter().map(|(key, count)| ((*key).to_owned(), *count)).collect()
}

/// Refusals by direction and reason, as a worker's metrics count them; zeros left out.
fn counted(lab: &Lab, node: usize) -> Result<BTreeMap<String, u64>> {
    let text = lab.mesh().worker_metrics(node)?;
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("culvert_connections_refused_total{") else { continue };
        let label = |name: &str| rest.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
        let (direction, reason) = (label("direction").context("direction")?, label("reason").context("reason")?);
        let count: f64 = rest.rsplit(' ').next().context("a value")?.parse()?;
        if count > 0.0 {
            all.insert(format!("{direction} {reason}"), count as u64);
        }
    }
    Ok(all)
}

/// The same from the access log: lines with a reason that moved no byte.
fn logged(lab: &Lab, node: usize) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let is_refusal = |line: &&Value| !line["reason"].is_null() && line["sent"] == 0 && line["received"] == 0;
    for line in lab.mesh().access_log(node).iter().filter(is_refusal) {
        *all.entry(format!("{} {}", field(line, "direction"), field(line, "reason"))).or_default() += 1;
    }
    all
}

fn since(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let grown = now.iter().map(|(key, count)| (key.clone(), count - before.get(key).copied().unwrap_or(0)));
    grown.filter(|(_, count)| *count > 0).collect()
}

//! Who may speak to whom: an allowed identity passes, another is refused before the app knows of it, and both ends can say by which
//! policy. The table asks every way in which a policy can name a caller or a port, and every place where it can stand.

mod table;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lab::pod::ECHO;
use lab::{App, Lab, Pod, PodHandle};
use serde_json::Value;

use crate::support;
use crate::talk::{self, Met, at, field};

const ONLY_CART: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: only-cart}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]
";

#[test]
fn a_refused_identity_is_refused_before_the_app_sees_it_and_both_ends_name_the_policy() -> Result<()> {
    let lab = support::mesh("policy-named")?;
    let client = |name: &str| lab.add_pod(Pod::new("shop", name).service_account(name).app(App::None));
    let (cart, guest) = (client("cart")?, client("guest")?);
    let web =
        |name: &str, node| lab.add_pod(Pod::new("shop", name).label("app", "web").service_account("web").node(node));
    let (near, far) = (web("near", 1)?, web("far", 2)?);
    talk::everyone_known(&lab, &[&cart, &guest, &near, &far])?;
    // The counter-proof first: without the policy nobody is refused.
    for (pod, to) in [&near, &far].into_iter().flat_map(|pod| at(pod, ECHO).into_iter().map(move |to| (pod, to))) {
        ensure!(
            talk::attempt(&guest, to)? == Met::Answered,
            "guest does not reach {} at {to} without a policy",
            pod.key()
        );
    }
    lab.apply("only-cart", ONLY_CART)?;
    talk::policy_arrived(&lab, "shop/only-cart")?;
    for pod in [&near, &far] {
        for to in at(pod, ECHO) {
            let before = pod.stats().port(ECHO).connections;
            ensure!(talk::attempt(&guest, to)? == Met::Refused, "guest reached {to}");
            ensure!(pod.stats().port(ECHO).connections == before, "the app behind {to} saw guest's connection");
            ensure!(talk::attempt(&cart, to)? == Met::Answered, "cart did not reach {to}");
            ensure!(pod.stats().port(ECHO).connections == before + 1, "the app behind {to} does not count");
            named_by_both(&lab, &guest, pod, to)?;
        }
    }
    Ok(())
}

/// guest's refusal in both access logs, and cart's permit at the end that judged.
fn named_by_both(lab: &Lab, guest: &PodHandle, pod: &PodHandle, to: SocketAddr) -> Result<()> {
    let of = |line: &Value, account: &str| {
        line["destination"] == to.to_string().as_str() && field(line, "source_identity").ends_with(account)
    };
    let refused = |line: &Value| of(line, "/sa/guest") && line["reason"] == "PolicyDenied";
    let caller =
        lab.mesh().wait_access(guest.node(), "guest's end", |line| refused(line) && line["direction"] == "outbound")?;
    let called =
        lab.mesh().wait_access(pod.node(), "the called end", |line| refused(line) && talk::is_inbound(line))?;
    ensure!(caller["id"] == called["id"], "two connections: {caller} {called}");
    for line in [&caller, &called] {
        ensure!(line["policy"] == "shop/only-cart" && line["sent"] == 0 && line["received"] == 0, "{line}");
    }
    lab.mesh().wait_access(pod.node(), "cart's permit", |line| {
        of(line, "/sa/cart") && talk::is_inbound(line) && line["policy"] == "shop/only-cart" && line["reason"].is_null()
    })?;
    Ok(())
}

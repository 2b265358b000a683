//! Pods of a labelled namespace talk by mutual TLS, nobody changed them, and a policy by service account is enforced on every node soon.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::wait;

use crate::shop::{self, CHANGE, captured, meshed, start};
use crate::support::figure;

const CHANGES: usize = 50;

/// Only `cart` may reach `web`.
const ONLY_CART: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-cart, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{from: [{source: {serviceAccounts: [cart]}}]}]
";
/// And for a moment not even `cart`.
const NOBODY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules: [{from: [{source: {serviceAccounts: [cart]}}]}]
";

#[test]
fn a_labelled_namespace_talks_by_mutual_tls_and_policies_by_service_account_are_enforced_on_both_nodes() -> Result<()> {
    let (cluster, _) = meshed("kube-talks", true)?;
    let [cart, guest] = ["cart", "guest"].map(|name| start(&cluster, "shop", name, 1));
    let (cart, guest, stranger) = (cart?, guest?, start(&cluster, "outside", "stranger", 1)?);
    let webs = [start(&cluster, "shop", "web-1", 1)?, start(&cluster, "shop", "web-2", 2)?];
    captured(&cluster, &[&cart, &guest, &webs[0], &webs[1]], true)?;
    ensure!(!stranger.is_captured(&cluster), "a pod of a namespace without the label is captured");
    for web in &webs {
        for from in [&cart, &guest, &stranger] {
            shop::until(from, web, true)?;
        }
    }
    // Between nodes as their identities, encrypted; the stranger as nobody, in clear, as long as no policy says more.
    for ip in &cart.ips {
        let line = wait::until("the called node's line of cart", CHANGE, || {
            let lines = shop::access_log(&cluster, 2).ok()?;
            lines
                .into_iter()
                .find(|line| line["client"].as_str().is_some_and(|client| client.contains(&ip.to_string())))
        })?;
        ensure!(line["security"] == "mutual_tls" && line["direction"] == "inbound-tunnel", "{line}");
        ensure!(line["source_identity"] == "spiffe://cluster.local/ns/shop/sa/cart", "{line}");
        ensure!(line["destination_identity"] == "spiffe://cluster.local/ns/shop/sa/web", "{line}");
    }

    cluster.apply(ONLY_CART)?;
    for web in &webs {
        shop::until(&guest, web, false)?;
        shop::until(&stranger, web, false)?;
        shop::until(&cart, web, true)?;
    }
    let mut times = Vec::new();
    for n in 0..CHANGES {
        let begun = Instant::now();
        if n % 2 == 0 {
            cluster.apply(NOBODY)?;
        } else {
            cluster.kubectl(&["delete", "authorizationpolicy", "nobody", "-n", "shop", "--wait=false"])?;
        }
        for web in &webs {
            shop::until(&cart, web, n % 2 == 1).with_context(|| format!("change {n}"))?;
        }
        times.push(begun.elapsed());
    }
    times.sort();
    let ms = |time: Option<&Duration>| time.map(Duration::as_millis).unwrap_or_default();
    let note = format!("{CHANGES} changes, from the start of kubectl until both nodes over both families; aim 1000");
    figure("policy_applied_to_enforced_p50", ms(times.get(CHANGES / 2)), "ms", &note);
    figure("policy_applied_to_enforced_max", ms(times.last()), "ms", &note);
    Ok(())
}

//! Pods of a labelled namespace talk by mutual TLS, nobody changed them, and a policy by service account is enforced on every node soon.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cluster::Cluster;
use cluster::demo::{self, Demo};
use lab::wait;
use serde_json::Value;

use crate::shop::{self, CHANGE, captured, meshed, only_cart, start};
use crate::support::figure;

const CHANGES: usize = 50;

/// For a moment not even `cart` may reach `web`.
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

    cluster.apply(&only_cart("web"))?;
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

/// Asks the demo's database from one of its pods, over a connection to this address.
fn sql(cluster: &Cluster, from: &str, to: &str, statement: &str) -> Result<String> {
    let psql = ["psql", "-h", to, "-U", "shop", "-Atq", "-c", statement, "postgres"];
    let said = cluster.kubectl(&[&["exec", "-n", demo::NAMESPACE, from, "--"], &psql[..]].concat())?;
    Ok(said.trim().to_owned())
}

/// Addresses of an object, by the path of a list of them.
fn addresses(cluster: &Cluster, object: &[&str], path: &str) -> Result<Vec<IpAddr>> {
    let output = format!("jsonpath={path}");
    let said = cluster.kubectl(&[&["get", "-n", demo::NAMESPACE, "-o", &output], object].concat())?;
    said.split_whitespace().map(|ip| Ok(ip.parse()?)).collect()
}

/// The called side's line of a connection to the database, as its node wrote it.
fn line_of(cluster: &Cluster, client: IpAddr, outcome: &str) -> Result<Value> {
    let client = std::net::SocketAddr::new(client, 0).to_string();
    let client = client.trim_end_matches('0');
    wait::until(&format!("the line of a connection of {client}"), CHANGE, || {
        let lines = shop::access_log(cluster, 1).ok()?;
        lines.into_iter().find(|line| {
            let text = |name: &str| line[name].as_str().unwrap_or_default();
            text("client").starts_with(client)
                && text("workload") == "demo/db"
                && text("direction").starts_with("inbound")
                && text("outcome") == outcome
        })
    })
}

#[test]
fn three_services_and_a_postgresql_talk_by_mutual_tls_across_nodes_and_nobody_else_reaches_the_database() -> Result<()>
{
    let (cluster, _) = meshed("kube-demo", false)?;
    let begun = Instant::now();
    cluster.demo(&Demo::find()?, |_| {})?;
    figure("demo Ready", format!("{:.1}", begun.elapsed().as_secs_f64()), "s", "image written, loaded, database made");
    // front → cart → stock and database: an order has been through all of them.
    let mut last = String::new();
    wait::until_true("an order to be written down", CHANGE, || {
        last = cluster.kubectl(&["logs", "-n", demo::NAMESPACE, "front", "--tail", "1"]).unwrap_or_default();
        last.starts_with("order ") && last.trim().ends_with(" left")
    })
    .context(last)?;

    let pods = |name: &str| addresses(&cluster, &["pod", name], "{.status.podIPs[*].ip}");
    let (cart, stock, front, db) = (pods("cart")?, pods("stock")?, pods("front")?, pods("db")?);
    let service = addresses(&cluster, &["service", "db"], "{.spec.clusterIPs[*]}")?;
    ensure!(db.len() == 2 && service.len() == 2, "{db:?} {service:?}");
    for to in db.iter().chain(&service) {
        // The server sees who really asks: the pod's own address, of the family that was asked over.
        let seen: IpAddr = sql(&cluster, "cart", &to.to_string(), "select host(inet_client_addr())")?.parse()?;
        ensure!(cart.contains(&seen) && seen.is_ipv4() == to.is_ipv4(), "over {to} the server saw {seen}");
        for from in ["front", "stock"] {
            match sql(&cluster, from, &to.to_string(), "select 1") {
                Ok(said) => bail!("{from} asked the database at {to}: {said}"),
                Err(error) => {
                    // psql's words for an end before an answer, and for a reset.
                    let said = format!("{error:#}");
                    let refused = ["closed the connection", "Connection reset"].iter().any(|word| said.contains(word));
                    ensure!(refused, "{from}: {said}");
                }
            }
        }
    }
    for ip in cart {
        let line = line_of(&cluster, ip, "ok")?;
        ensure!(line["security"] == "mutual_tls" && line["direction"] == "inbound-tunnel", "{line}");
        ensure!(line["source_identity"] == "spiffe://cluster.local/ns/demo/sa/cart", "{line}");
        ensure!(line["destination_identity"] == "spiffe://cluster.local/ns/demo/sa/db", "{line}");
    }
    for (name, ips) in [("front", front), ("stock", stock)] {
        for ip in ips {
            let line = line_of(&cluster, ip, "refused")?;
            ensure!(line["reason"] == "PolicyDenied" && line["policy"] == "demo/db-from-cart", "{line}");
            ensure!(line["source_identity"] == format!("spiffe://cluster.local/ns/demo/sa/{name}").as_str(), "{line}");
        }
    }
    Ok(())
}

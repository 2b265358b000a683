//! Objects that lie, flap, or come in one another's place: the object is named where its owner looks, everybody else goes on, and nobody
//! reaches more than before.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use lab::wait;
use mesh_kube::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::as_admin::with_api;
use crate::prober::{Ask, give_next, is_free, while_probed};
use crate::shop::{self, CHANGE, Member, captured, meshed, only_cart, start};
use crate::support::figure;
use crate::traffic::{Traffic, lasts};

/// Between two changes of a label: 100 a second.
const FLAP: Duration = Duration::from_millis(10);
const FLAPS: u32 = 500;
/// Odd, so that each writes both words. Few: of two that write one object at once the API server has one do its work again (31 came to
/// half the rate).
const HANDS: u32 = 3;
/// How long the new owner of an address tries.
const TRIES: Duration = Duration::from_secs(5);

/// Waits for a warning at the object that says all of this, from whom; else what there is.
fn warned(cluster: &Cluster, from: &str, object: &str, reason: &str, says: &[&str]) -> Result<()> {
    let mut last = String::new();
    let is_it = |event: &Value| {
        let note = event["note"].as_str().or(event["message"].as_str()).unwrap_or_default();
        event["reportingComponent"] == from
            && event["involvedObject"]["name"] == object
            && event["reason"] == reason
            && says.iter().all(|text| note.contains(text))
    };
    let told = wait::until_true("an Event at the object", CHANGE, || {
        let Ok(events) = cluster.get(&["events", "-n", "shop"]) else { return false };
        let items = events["items"].as_array().cloned().unwrap_or_default();
        last = items
            .iter()
            .map(|event| format!("{} {} {}\n", event["involvedObject"]["name"], event["reason"], event["message"]))
            .collect();
        items.iter().any(is_it)
    });
    told.with_context(|| format!("{from} should say {reason} of {object}; there is\n{last}"))
}

/// A pod of a node that there is not, which says that it has these addresses, and whether it is ready.
fn liar(cluster: &Cluster, name: &str, ips: &[IpAddr], ready: &str) -> Result<()> {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": "nowhere", "automountServiceAccountToken": false, "containers": [{"name": "app", "image": "none"}]},
    });
    cluster.kubectl_with(&pod.to_string(), &["create", "-f", "-"])?;
    let status = json!({"status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips,
        "conditions": [{"type": "Ready", "status": ready}]}});
    let patch = ["patch", "pod", name, "-n", "shop", "--subresource=status", "--type=merge", "-p", &status.to_string()];
    cluster.kubectl(&patch).map(drop)
}

fn gone(cluster: &Cluster, pod: &str) -> Result<()> {
    // The controller that collects pods of nodes which are not there may be faster.
    let delete = ["delete", "pod", pod, "-n", "shop", "--grace-period=0", "--force", "--ignore-not-found"];
    cluster.kubectl(&delete).map(drop)
}

/// Changes a pod's label to and fro, [`FLAPS`] times, by several hands, since one waits for each answer; how many changes a second it came
/// to, which is the API server's to say. It ends in the mesh.
fn flap(cluster: &Cluster, pod: &str) -> Result<f64> {
    let path = format!("/api/v1/namespaces/shop/pods/{pod}");
    let label = |n: u32| {
        let value = if n.is_multiple_of(2) { "disabled" } else { "enabled" };
        json!({"metadata": {"labels": {"culvert.io/mesh": value}}})
    };
    with_api(cluster, async |api| {
        // Who has written which field is not kept from here on: to work it out again is half of what a change costs the API server.
        api.write(Method::Merge, &path, &json!({"metadata": {"managedFields": [{}]}})).await?;
        let begun = tokio::time::Instant::now();
        let mut hands = JoinSet::new();
        for hand in 0..HANDS {
            let (api, path) = (api.clone(), path.clone());
            hands.spawn(async move {
                for n in (hand..FLAPS).step_by(HANDS as usize) {
                    tokio::time::sleep_until(begun + FLAP * n).await;
                    api.write(Method::Merge, &path, &label(n)).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = hands.join_next().await {
            done??;
        }
        let rate = f64::from(FLAPS) / begun.elapsed().as_secs_f64();
        api.write(Method::Merge, &path, &label(1)).await?;
        Ok(rate)
    })
}

#[test]
fn a_pod_with_anothers_address_and_one_whose_label_flaps_are_named_and_nobody_else_notices() -> Result<()> {
    let (cluster, _) = meshed("kube-bad", true)?;
    let (cart, guest) = (start(&cluster, "shop", "cart", 1)?, start(&cluster, "shop", "guest", 1)?);
    let targets = [start(&cluster, "shop", "vault", 2)?, start(&cluster, "shop", "web", 2)?];
    let [vault, web] = &targets;
    let flappy = start(&cluster, "shop", "flappy", 1)?;
    cluster.apply(&only_cart("vault"))?;
    captured(&cluster, &[&cart, &guest, vault, web, &flappy], true)?;
    shop::until(&guest, vault, false)?;
    shop::until(&cart, vault, true)?;

    let mut traffic = Traffic::new(&cart, &targets);
    traffic.during("two pods have one address", || {
        liar(&cluster, "liar", &vault.ips, "False")?;
        let ip = vault.ips[0].to_string();
        warned(&cluster, "culvert.io/control-plane", "liar", "NotAsWritten", &[&ip, "shop/vault"])?;
        lasts(TRIES);
        refused(&guest, vault)
    })?;
    gone(&cluster, "liar")?;
    // One that says that it is ready, by a smaller name, is taken for the address's owner: vault loses its callers, and nobody answers in
    // its place or gets in who could not.
    let mut others = Traffic::new(&cart, std::slice::from_ref(web));
    others.during("a liar is ready at another's address", || {
        liar(&cluster, "a-liar", &vault.ips, "True")?;
        warned(&cluster, "culvert.io/control-plane", "vault", "NotAsWritten", &["shop/a-liar"])?;
        shop::until(&cart, vault, false)?;
        lasts(TRIES);
        refused(&guest, vault)?;
        gone(&cluster, "a-liar")?;
        shop::until(&cart, vault, true)?;
        refused(&guest, vault)
    })?;
    others.never_failed()?;

    traffic.during("a label flaps 100 times a second", || {
        let rate = flap(&cluster, "flappy")?;
        figure(
            "label_changes",
            format!("{rate:.0}"),
            "per second",
            &format!("of one pod, {FLAPS} times; asked for are 100"),
        );
        warned(&cluster, "culvert.io/pod-watcher", "flappy", "LabelsFlap", &[])?;
        captured(&cluster, &[&flappy], true)
    })?;
    shop::until(&flappy, web, true)?;
    refused(&guest, vault)?;
    refused(&flappy, vault)?;
    traffic.never_failed()
}

/// That it is not answered now, over either family.
fn refused(from: &Member, to: &Member) -> Result<()> {
    to.echo().into_iter().try_for_each(|to| {
        let met = from.asks(to)?;
        ensure!(met.is_err(), "{} was answered at {to}", from.name);
        Ok(())
    })
}

/// Takes a pod away and sees to it that the next one of its node gets its addresses.
fn vacate(cluster: &Cluster, pod: &Member) -> Result<()> {
    cluster.kubectl(&["delete", "pod", &pod.name, "-n", "shop", "--timeout=60s"])?;
    wait::until_true("the addresses to be given back", CHANGE, || {
        pod.ips.iter().all(|ip| is_free(cluster, pod.node, *ip))
    })?;
    give_next(cluster, pod.node, &pod.ips)
}

#[test]
fn an_address_that_another_account_has_at_once_gives_it_nothing_of_the_last_owners() -> Result<()> {
    let (cluster, _) = meshed("kube-reuse", true)?;
    let (cart, guest) = (start(&cluster, "shop", "cart", 1)?, start(&cluster, "shop", "guest", 2)?);
    let vault = start(&cluster, "shop", "vault", 2)?;
    cluster.apply(&only_cart("vault"))?;
    captured(&cluster, &[&cart, &guest, &vault], true)?;
    shop::until(&guest, &vault, false)?;
    shop::until(&cart, &vault, true)?;

    // As a caller: whoever has cart's address now is not cart.
    vacate(&cluster, &cart)?;
    let thief = start(&cluster, "shop", "thief", 1)?;
    ensure!(thief.ips == cart.ips, "thief has {:?}, cart had {:?}", thief.ips, cart.ips);
    let (begun, mut tried) = (Instant::now(), 0);
    while begun.elapsed() < TRIES {
        refused(&thief, &vault)?;
        tried += 2;
    }
    figure("attempts with the last owner's address", tried, "attempts", "by another account, none was answered");
    let cart = start(&cluster, "shop", "cart", 1)?;
    shop::until(&cart, &vault, true)?;

    // As the one who is called: who could reach the last owner does not reach the next.
    let open = start(&cluster, "shop", "open", 1)?;
    captured(&cluster, &[&open], true)?;
    for from in [&guest, &cart] {
        shop::until(from, &open, true)?;
    }
    vacate(&cluster, &open)?;
    let asks = [&guest, &thief].map(|from| move |to: SocketAddr| from.asks(to));
    let asks: Vec<Ask<'_>> = asks.iter().map(|ask| ask as Ask<'_>).collect();
    let met = while_probed(&asks, &open.ips, |_| {
        let vault = start(&cluster, "shop", "vault-2", 1)?;
        ensure!(vault.ips == open.ips, "vault-2 has {:?}, open had {:?}", vault.ips, open.ips);
        shop::until(&cart, &vault, true)?;
        lasts(TRIES);
        Ok(())
    })?;
    figure(
        "attempts at an address with another owner",
        met.attempts(),
        "attempts",
        "by those who could reach the last",
    );
    ensure!(met.attempts() > 100 && met.answered() == 0, "{met:?}");
    Ok(())
}

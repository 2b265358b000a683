//! The file source and the `compile` command.

use clap::Parser as _;
use mesh_api::xds::saved::{Saved, decode};
use mesh_api::xds::{AUTHORIZATION_TYPE, Resource};

use super::{Lab, deny, eventually, pod};
use crate::args::{Cli, Command};

const CART: &str = "Kubernetes//Pod/shop/cart";

#[tokio::test]
async fn a_broken_manifest_is_refused_alone_and_its_last_good_version_stays() {
    let lab = Lab::start(&[
        ("cart.yaml", &pod("cart", "node-1", "cart", "app: cart")),
        ("deny.yaml", &deny("stop", "app: cart")),
    ])
    .await;
    let mut node = lab.node("token-1").await.synced().await;
    let (cart, no) = (node.addresses.get(CART).cloned(), node.policies.get("shop/stop").cloned());
    let broken = pod("cart", "node-1", "cart", "app: cart").replace("containers: []", "containers: 5");
    lab.place("cart.yaml", &broken);
    lab.place("deny.yaml", &deny("stop", "app: cart").replace("DENY", "DANY"));
    eventually("both are refused", || lab.running.metrics.rejected.get() == 2).await;
    lab.place("web.yaml", &pod("web", "node-2", "web", "app: web"));
    node.until(|node| node.addresses.len() == 2).await.expect("the good one is served");
    assert_eq!((node.addresses.get(CART).cloned(), node.policies.get("shop/stop").cloned()), (cart, no));
    lab.place("cart.yaml", &pod("cart", "node-1", "cart", "app: cart"));
    lab.place("deny.yaml", &deny("stop", "app: cart"));
    eventually("both are good again", || lab.running.metrics.rejected.get() == 0).await;
    lab.running.stop().await;
}

#[tokio::test]
async fn a_broken_policy_that_was_never_good_refuses() {
    let lab = Lab::start(&[
        ("cart.yaml", &pod("cart", "node-1", "cart", "app: cart")),
        ("deny.yaml", &deny("stop", "app: cart").replace("DENY", "DANY")),
    ])
    .await;
    let mut node = lab.node("token-1").await;
    let answer = node.receive().await.expect("policies");
    assert_eq!(answer.type_url, AUTHORIZATION_TYPE);
    let body = answer.resources[0].resource.as_ref().expect("a body");
    match mesh_api::xds::decode(AUTHORIZATION_TYPE, "shop/stop", &body.value) {
        Ok(Resource::Policy(policy)) => assert!(policy.invalid, "{policy:?}"),
        other => panic!("{other:?}"),
    }
    lab.running.stop().await;
}

#[tokio::test]
async fn a_directory_that_is_replaced_as_a_whole_is_followed() {
    let lab = Lab::start(&[]).await;
    let mut node = lab.node("token-1").await.synced().await;
    let (old, fresh) = (lab.dir.path().join("old"), lab.dir.path().join("fresh"));
    std::fs::create_dir(&fresh).expect("made");
    std::fs::write(fresh.join("cart.yaml"), pod("cart", "node-1", "cart", "app: cart")).expect("written");
    std::fs::copy(lab.source().join("tokens.json"), fresh.join("tokens.json")).expect("copied");
    std::fs::rename(lab.source(), &old).expect("renamed");
    std::fs::rename(&fresh, lab.source()).expect("renamed");
    node.until(|node| node.addresses.contains_key(CART)).await.expect("followed");
    lab.place("cart.yaml", &pod("cart", "node-1", "cart", "app: other"));
    lab.place("web.yaml", &pod("web", "node-1", "web", "app: web"));
    node.until(|node| node.addresses.len() == 2).await.expect("followed further");
    lab.running.stop().await;
}

fn compile(arguments: &str) -> anyhow::Result<()> {
    let cli = Cli::try_parse_from(arguments.split_whitespace())?;
    let Command::Compile(args) = cli.command else { panic!("compile") };
    crate::save::run(args)
}

#[test]
fn compile_writes_what_a_node_proxy_starts_from_policies_first_and_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
    let out = dir.path().join("last-good");
    for _ in 0..2 {
        compile(&format!(
            "control-plane compile --source {source} --node node-1 --cluster-id Kubernetes --out {}",
            out.display()
        ))
        .expect("compiled");
    }
    let bytes = std::fs::read(&out).expect("the file");
    assert_eq!(std::fs::metadata(&out).expect("there").permissions().mode() & 0o777, 0o600);
    let Saved { node, cluster, resources, .. } = decode(&bytes).expect("readable");
    assert_eq!((node.as_str(), cluster.as_str()), ("node-1", "Kubernetes"));
    let kinds: Vec<bool> = resources.iter().map(|resource| resource.type_url == AUTHORIZATION_TYPE).collect();
    assert!(kinds.is_sorted_by(|a, b| a >= b) && kinds[0], "policies first");
    assert_eq!(resources.len(), 4 + 7 + 3);
    for resource in &resources {
        mesh_api::xds::decode(&resource.type_url, &resource.name, &resource.body).expect("usable");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing left beside");
}

#[test]
fn compile_with_strict_writes_nothing_if_anything_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("bad.yaml"), deny("stop", "app: cart").replace("DENY", "DANY")).expect("written");
    let out = dir.path().join("out");
    let command = format!("control-plane compile --source {} --node n --out {}", dir.path().display(), out.display());
    assert!(compile(&format!("{command} --strict")).is_err() && !out.exists());
    compile(&command).expect("complaints are logged");
    assert!(out.exists());
    let missing = compile("control-plane compile --source /nonexistent --node n --out /nonexistent/out");
    assert!(missing.expect_err("no source").to_string().contains("--source"));
}

//! A person's whole way with `culvert` alone, on a real cluster: look, install, enroll, look again, uninstall.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::Mesh;
use serde_json::Value;

use crate::mesh_leaves::{as_before, node, nothing_of_ours};
use crate::shop::{self, captured, namespaces, start};
use crate::support::up;

/// Definitions of the policies, which the manifests of a test's mesh leave out.
const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/crds.yaml");

/// What a run of `culvert` said; an error if it did not end with this status.
fn culvert(cluster: &Cluster, status: i32, args: &[&str]) -> Result<String> {
    let program = lab::binaries::own("culvert").context("culvert is not built")?;
    let mut command = cluster.command(Path::new("timeout"));
    command.args(["--kill-after=5", "300"]).arg(program).args(args);
    let output = cluster.lab().fabric().in_netns(|| command.output().context("start culvert (under timeout)"))?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(
        output.status.code() == Some(status),
        "culvert {}: {}, not {status}:\n{said}",
        args.join(" "),
        output.status
    );
    Ok(said)
}

/// The same as programs read it.
fn value(cluster: &Cluster, args: &[&str]) -> Result<Value> {
    let said = culvert(cluster, 0, &[args, &["-o", "json"]].concat())?;
    serde_json::from_str(&said).with_context(|| format!("culvert {}:\n{said}", args.join(" ")))
}

#[test]
fn a_person_installs_looks_enrolls_and_uninstalls_by_culvert_alone() -> Result<()> {
    let (mesh, cluster) = (Mesh::find()?, up("kube-cli")?);
    let before = [node(&cluster, 1)?, node(&cluster, 2)?];
    cluster.give_images(&mesh)?;
    namespaces(&cluster, false)?;
    let (cart, web) = (start(&cluster, "shop", "cart", 1)?, start(&cluster, "shop", "web", 2)?);
    let manifests = mesh.manifests.display().to_string();
    let files = ["--manifest", CRDS, "--manifest", &manifests];
    let with_files =
        |args: &[&'static str]| -> Vec<String> { args.iter().copied().chain(files).map(str::to_owned).collect() };
    let said = |status: i32, args: &[&'static str]| {
        let args = with_files(args);
        culvert(&cluster, status, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };

    culvert(&cluster, 1, &["status"])?;
    let seen = said(0, &["check", "--pre"])?;
    ensure!(seen.contains("CNI and kernel modules: ") && !seen.contains("CNI chain of"), "{seen}");
    said(0, &["install"])?;
    let seen = culvert(&cluster, 0, &["check"])?;
    for node in ["node-1", "node-2"] {
        ensure!(seen.contains(&format!("CNI chain of node {node}: culvert-cni is in ")), "{seen}");
    }
    let status = value(&cluster, &["status"])?;
    ensure!(status["components"].as_array().is_some_and(|all| all.len() == 3), "{status}");

    // Said before it is done, by the same names.
    let planned = culvert(&cluster, 0, &["enroll", "shop", "--dry-run"])?;
    ensure!(planned.contains("shop/cart") && planned.contains("shop/web"), "{planned}");
    ensure!(!cart.is_captured(&cluster), "a dry run enrolled");
    culvert(&cluster, 0, &["enroll", "shop", "--wait"])?;
    captured(&cluster, &[&cart, &web], true)?;
    shop::until(&cart, &web, true)?;

    let pods = value(&cluster, &["ps", "-n", "shop"])?;
    let of_cart = "spiffe://cluster.local/ns/shop/sa/cart";
    ensure!(pods.as_array().is_some_and(|all| all.len() == 2) && pods.to_string().contains(of_cart), "{pods}");
    for (args, holds) in [
        (&["identity", "shop/cart"][..], of_cart),
        (&["certificates", "node-1"], of_cart),
        (&["config", "node-1"], "culvert-control-plane"),
        (&["connections", "shop/cart"], ""),
        (&["stats", "node-1"], "culvert_"),
        (&["logs", "node-proxy", "--node", "node-1", "--tail", "20"], "node-1"),
        (&["logs", "control-plane"], "configuration published"),
    ] {
        let said = culvert(&cluster, 0, args)?;
        ensure!(said.contains(holds), "culvert {}: no {holds:?} in\n{said}", args.join(" "));
    }

    // Pods that would reach nobody are named, and nothing is done.
    let refused = said(1, &["uninstall"])?;
    ensure!(refused.contains("shop/cart") && refused.contains("--unenroll"), "{refused}");
    let planned = said(0, &["uninstall", "--unenroll", "--dry-run"])?;
    ensure!(planned.contains("would be deleted") && cart.is_captured(&cluster), "{planned}");
    said(0, &["uninstall", "--unenroll"])?;
    as_before(&cluster, &before)?;
    let namespace = cluster.get(&["namespace", "shop"])?;
    ensure!(namespace["metadata"]["labels"].get("culvert.io/mesh").is_none(), "{namespace}");
    for member in [&cart, &web] {
        nothing_of_ours(member)?;
    }
    shop::until(&cart, &web, true)?;
    // It may be repeated.
    said(0, &["uninstall", "--unenroll"])?;
    culvert(&cluster, 1, &["status"]).map(drop)
}

//! The chart by helm itself, as docs/install.md, docs/upgrade.md and docs/uninstall.md say: install, upgrade, uninstall.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::{Mesh, NAMESPACE};
use lab::wait;

use crate::mesh_leaves::{as_before, goes_with_its_network, node, nothing_of_ours, objects};
use crate::shop::{self, CHANGE, Member, captured, enrol, namespaces, start};
use crate::support::{figure, up};
use crate::traffic::Traffic;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/chart");
const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cluster/mesh-values.yaml");
/// For images to be unpacked and everything to be Ready.
const DEADLINE: &str = "--timeout=180s";
/// What docs/uninstall.md says is left by helm.
const LEFT: &str = "namespace/culvert-system\nconfigmap/culvert-ca-root-cert\nsecret/culvert-ca\n\
                    lease.coordination.k8s.io/culvert-control-plane\n";
/// A value that is changed, and where it arrives.
const CHANGED: (&str, &str) = ("cni.timeoutSeconds=16", "--cni-timeout-seconds=16");

/// As `CULVERT_HELM` says.
fn program() -> Result<PathBuf> {
    let helm = std::env::var_os("CULVERT_HELM").map(PathBuf::from);
    let helm = helm.context("CULVERT_HELM is not set: run this through cargo xtask, which builds helm and sets it")?;
    ensure!(helm.is_file(), "{} is not there: cargo xtask makes it", helm.display());
    Ok(helm)
}

/// What a run of helm said; how long it took is printed.
fn helm(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let begun = Instant::now();
    let mut command = cluster.command(Path::new("timeout"));
    command.args(["--kill-after=5", "300"]).arg(program()?).args(args).args(["--namespace", NAMESPACE]);
    for place in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(place, cluster.lab().dir().join("helm"));
    }
    let output = cluster.lab().fabric().in_netns(|| command.output().context("start helm (under timeout)"))?;
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat();
    let what = || cluster.kubectl(&["get", "pods,events", "-n", NAMESPACE, "-o", "wide"]).unwrap_or_default();
    ensure!(output.status.success(), "helm {}: {}:\n{said}\n{}", args.join(" "), output.status, what());
    figure(&format!("helm {}", args[0]), format!("{:.1}", begun.elapsed().as_secs_f64()), "s", "with --wait");
    Ok(said)
}

/// That one reaches the other over both families, by mutual TLS: the called node's access log says so of a connection that is new.
fn by_mutual_tls(cluster: &Cluster, from: &Member, to: &Member) -> Result<()> {
    let of_them = || -> Result<Vec<serde_json::Value>> {
        let is_it = |line: &serde_json::Value| {
            line["direction"] == "inbound-tunnel"
                && line["source_identity"] == "spiffe://cluster.local/ns/shop/sa/cart"
                && line["destination_identity"] == "spiffe://cluster.local/ns/shop/sa/web"
        };
        Ok(shop::access_log(cluster, to.node)?.into_iter().filter(is_it).collect())
    };
    let before = of_them()?.len();
    shop::until(from, to, true)?;
    let mut now = Vec::new();
    wait::until_true("the called node's lines of both families", CHANGE, || {
        now = of_them().unwrap_or_default();
        now.len() >= before + to.ips.len()
    })
    .with_context(|| format!("{before} lines before; {now:?}"))?;
    ensure!(now.iter().all(|line| line["security"] == "mutual_tls"), "{now:?}");
    Ok(())
}

#[test]
fn helm_installs_upgrades_without_a_failed_request_and_uninstalls_all_but_what_is_documented() -> Result<()> {
    program()?;
    let (mesh, cluster) = (Mesh::find()?, up("kube-helm")?);
    let before = [node(&cluster, 1)?, node(&cluster, 2)?];
    cluster.give_images(&mesh)?;
    helm(&cluster, &["install", "culvert", CHART, "--create-namespace", "--values", VALUES, "--wait", DEADLINE])?;
    // No part may be left for a reader to wait for.
    for part in ["deployment/culvert-control-plane", "daemonset/culvert-pod-watcher", "daemonset/culvert-node-proxy"] {
        cluster.kubectl(&["rollout", "status", part, "-n", NAMESPACE, "--watch=false"]).and_then(|said| {
            ensure!(said.contains("successfully rolled out"), "{part} after helm --wait: {said}");
            Ok(())
        })?;
    }
    namespaces(&cluster, true)?;
    let (cart, web) = (start(&cluster, "shop", "cart", 1)?, start(&cluster, "shop", "web", 2)?);
    captured(&cluster, &[&cart, &web], true)?;
    by_mutual_tls(&cluster, &cart, &web)?;

    let (value, argument) = CHANGED;
    let arguments = || {
        let path = "jsonpath={.spec.template.spec.containers[*].args}";
        cluster.kubectl(&["get", "daemonset", "culvert-pod-watcher", "-n", NAMESPACE, "-o", path])
    };
    ensure!(!arguments()?.contains(argument), "{argument} is there before it was asked for");
    let mut traffic = Traffic::new(&cart, std::slice::from_ref(&web));
    traffic.during("helm upgrade", || {
        let upgrade = ["upgrade", "culvert", CHART, "--values", VALUES, "--set", value, "--wait", DEADLINE];
        helm(&cluster, &upgrade).map(drop)
    })?;
    traffic.never_failed()?;
    ensure!(arguments()?.contains(argument), "{}", arguments()?);
    by_mutual_tls(&cluster, &cart, &web)?;
    let late = start(&cluster, "shop", "late", 1)?;
    captured(&cluster, &[&late], true)?;

    enrol(&cluster, false)?;
    captured(&cluster, &[&cart, &web, &late], false)?;
    helm(&cluster, &["uninstall", "culvert", "--wait", DEADLINE])?;
    as_before(&cluster, &before)?;
    let mut left = String::new();
    wait::until_true("what helm leaves to be what is documented", CHANGE, || {
        left = objects(&cluster).unwrap_or_default();
        left == LEFT
    })
    .with_context(|| format!("left:\n{left}"))?;
    // Policies belong to those who wrote them.
    cluster.kubectl(&["get", "authorizationpolicies,peerauthentications", "-A"])?;
    shop::until(&cart, &web, true)?;
    for member in [&cart, &web, &late] {
        nothing_of_ours(member)?;
        goes_with_its_network(&cluster, member)?;
    }
    Ok(())
}

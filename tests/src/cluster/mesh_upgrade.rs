//! From the release before to this one, in a cluster that works: rules of another schema and keepers of another protocol give way while
//! connections of every kind go on.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster::mesh::{Mesh, NAMESPACE};
use lab::wait;

use crate::shop::{self, Member, captured, enrol, say, start};
use crate::support::{figure, up};
use crate::traffic::Traffic;

/// For everything to be rolled out, the images of both releases on the nodes.
const UPGRADE: Duration = Duration::from_secs(240);
/// Longer than that: how long a worker waits for its connections before it ends.
const DRAIN: &str = "900";
/// In a table of this release and in none of the release before.
const NOW: &str = "chain output_route";

/// A connection that stays open.
struct Kept {
    what: String,
    stream: TcpStream,
}

/// One from each to each, over both families.
fn open(what: &str, pairs: &[(&Member, &Member)]) -> Result<Vec<Kept>> {
    let one = |from: &Member, to: SocketAddr| {
        let what = format!("{what}: {} to {to}", from.name);
        let stream = from.connect(to)?.with_context(|| what.clone())?;
        say(&stream).with_context(|| what.clone())?;
        Ok(Kept { what, stream })
    };
    pairs.iter().flat_map(|(from, to)| to.echo().into_iter().map(move |to| one(from, to))).collect()
}

/// Both releases with a drain that outlives the upgrade: what ends at the end of a drain is another promise.
fn patient(mesh: Mesh, cluster: &cluster::Cluster, name: &str) -> Result<Mesh> {
    let rendered = std::fs::read_to_string(&mesh.manifests)?;
    let changed = rendered
        .replace("--drain-seconds=5", &format!("--drain-seconds={DRAIN}"))
        .replace("terminationGracePeriodSeconds: 10\n", &format!("terminationGracePeriodSeconds: {DRAIN}\n"));
    ensure!(changed.matches(DRAIN).count() == 2, "the chart says something else of its drain");
    let manifests = cluster.lab().dir().join(name);
    std::fs::write(&manifests, changed)?;
    Ok(Mesh { manifests, ..mesh })
}

fn rules(member: &Member) -> Result<String> {
    member.inside(|| {
        let output = std::process::Command::new("nft").args(["list", "ruleset"]).output().context("start nft")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

#[test]
#[ignore = "takes minutes: cargo xtask test --long"]
fn an_upgrade_from_the_release_before_cuts_no_connection_of_any_kind() -> Result<()> {
    let cluster = up("kube-upgrade")?;
    let former = patient(Mesh::find_former()?, &cluster, "former.yaml")?;
    let now = patient(Mesh::find()?, &cluster, "now.yaml")?;
    cluster.install(&former, |_| {})?;
    shop::namespaces(&cluster, false)?;
    let cart = start(&cluster, "shop", "cart", 1)?;
    let webs = [start(&cluster, "shop", "web-1", 1)?, start(&cluster, "shop", "web-2", 2)?];
    let stranger = start(&cluster, "outside", "stranger", 2)?;
    let members = [&cart, &webs[0], &webs[1]];
    // One node, two nodes, in from outside, out to it.
    let pairs = [(&cart, &webs[0]), (&cart, &webs[1]), (&stranger, &webs[0]), (&cart, &stranger)];

    let mut kept = open("from before the enrolment", &pairs)?;
    enrol(&cluster, true)?;
    captured(&cluster, &members, true)?;
    kept.extend(open("captured", &pairs)?);
    for member in members {
        ensure!(!rules(member)?.contains(NOW), "{} has rules of this release before it was installed", member.name);
    }

    let mut traffic = Traffic::new(&cart, &webs);
    traffic.during("the mesh is replaced by the next release", || {
        cluster.give_images(&now)?;
        cluster.apply_mesh(&now)?;
        wait::until_true("rules of this release in every pod", UPGRADE, || {
            members.iter().all(|member| rules(member).is_ok_and(|rules| rules.contains(NOW)))
        })
        .with_context(|| cluster.kubectl(&["get", "pods,events", "-n", NAMESPACE, "-o", "wide"]).unwrap_or_default())?;
        // Of node-proxy the old pods are there still, with the connections that they had.
        let watcher = ["rollout", "status", "daemonset/culvert-pod-watcher", "-n", NAMESPACE, "--timeout=60s"];
        cluster.kubectl(&watcher).map(drop)
    })?;
    let cut: Vec<String> =
        kept.iter().filter_map(|kept| say(&kept.stream).err().map(|error| format!("{}: {error}", kept.what))).collect();
    figure(
        "connections cut by an upgrade",
        cut.len(),
        "connections",
        &format!("of {}, from before and captured: one node, two nodes, from outside, to outside", kept.len()),
    );
    ensure!(cut.is_empty(), "{cut:#?}");
    traffic.never_failed()?;
    for (from, to) in pairs {
        shop::until(from, to, true)?;
    }
    captured(&cluster, &members, true)
}

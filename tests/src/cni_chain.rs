//! pod-watcher puts our plugin into a node's chain and keeps it there, whoever rewrites the file; after a power cut pods of the mesh
//! wait for it and no others do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{App, CniError, Config, Lab, MeshConfig, Pod, PodHandle, wait};
use serde_json::Value;

use crate::restart::prober;
use crate::support::{CHANGE, at, figure, lab, report};

/// Our plugin waits this long for an answer; 15 in the chart.
const TIMEOUT: u64 = 2;
const NETWORK: &str = "/etc/cni/net.d/10-culvert-lab.conflist";

fn chained(lab: &Lab) -> Result<bool> {
    Ok(lab.node(1).read(NETWORK)?.contains("culvert-cni"))
}

/// Writes node 1's network configuration as its owner would: ours is not in it.
fn rewrite(lab: &Lab) -> Result<()> {
    let mut list: Value = serde_json::from_str(&lab.node(1).read(NETWORK)?)?;
    let plugins = list["plugins"].as_array_mut().context("a chain")?;
    plugins.retain(|plugin| plugin["type"] != "culvert-cni");
    let text = format!("{list:#}\n");
    let written = lab.node(1).exec(&[
        "sh",
        "-c",
        &format!("cat > {NETWORK}.new <<'END' && mv {NETWORK}.new {NETWORK}\n{text}END\n"),
    ])?;
    written.ok()?;
    Ok(())
}

fn reaches(from: &PodHandle, to: &PodHandle) -> Result<()> {
    for ip in to.ips() {
        let seen = from.run_client(&["connect", &at(ip, ECHO), "--send", "hello"])?;
        ensure!(seen["ok"] == 1, "{} to {ip}: {seen}", from.key());
    }
    Ok(())
}

fn enrolled(lab: &Lab, pod: &PodHandle) -> Result<()> {
    wait::until_true("the pod to be captured", CHANGE, || {
        lab.mesh().pod_status(pod).is_some_and(|status| status["enrolled"] == true)
    })
}

#[test]
fn a_chain_rewritten_by_hand_is_put_right_under_traffic_and_who_slipped_by_is_captured() -> Result<()> {
    let config = MeshConfig { cni_timeout: TIMEOUT, install_chain: true, ..MeshConfig::default() };
    let lab = lab(Config::default().name("cni-chain").mesh(config))?;
    let cart = lab.add_pod(Pod::new("shop", "cart"))?;
    let web = lab.add_pod(Pod::new("shop", "web").node(2))?;
    enrolled(&lab, &cart)?;
    for ip in web.ips() {
        let prober = prober(&cart, &format!("rewrite-{}", crate::support::family(ip)), &at(ip, ECHO))?;
        let mut slowest = Duration::ZERO;
        // Fewer in all than pod-watcher takes for a fight, which it slows down to one repair a second.
        for n in 0..2 {
            rewrite(&lab)?;
            let written = Instant::now();
            wait::until_true("our plugin to be back in the chain", CHANGE, || chained(&lab).unwrap_or(false))?;
            slowest = slowest.max(written.elapsed());
            let pod = lab.add_pod(Pod::new("shop", &format!("new-{n}-{}", ip.is_ipv4())))?;
            ensure!(pod.added().time_of("culvert-cni").is_some(), "our plugin was not asked");
        }
        let seen = report(&prober)?;
        ensure!(seen["ok"] == seen["attempts"], "{seen}");
        let note = format!("slowest of 2, {} connections meanwhile, none failed", seen["attempts"]);
        figure("chain_rewritten_to_repaired", slowest.as_millis(), "ms", &note);
    }
    // Nobody puts it right while pod-watcher is dead; who starts then is captured as a running pod.
    lab.mesh().watcher(1).kill()?;
    rewrite(&lab)?;
    let slipped = lab.add_pod(Pod::new("shop", "slipped"))?;
    ensure!(slipped.added().time_of("culvert-cni").is_none(), "our plugin was in the chain");
    lab.mesh().watcher(1).restart()?;
    enrolled(&lab, &slipped)?;
    wait::until_true("our plugin to be back in the chain", CHANGE, || chained(&lab).unwrap_or(false))?;
    let told = |event: &Value| event["pod"] == "shop/slipped" && event["reason"] == "Enrolled";
    ensure!(lab.mesh().events(1)?.iter().any(told), "no event says so: {:?}", lab.mesh().events(1)?);
    reaches(&slipped, &web)?;
    lab.down()
}

#[test]
fn after_a_power_cut_plain_pods_start_at_once_and_enrolled_ones_wait_for_pod_watcher() -> Result<()> {
    let config = MeshConfig { cni_timeout: TIMEOUT, install_chain: true, ..MeshConfig::default() };
    let lab = lab(Config::default().name("power-cut").mesh(config))?;
    let cart = lab.add_pod(Pod::new("shop", "cart"))?;
    let web = lab.add_pod(Pod::new("shop", "web").node(2))?;
    let dns = lab.add_pod(Pod::new("outside", "dns"))?;
    reaches(&cart, &web)?;
    lab.node(1).power_cut()?;
    lab.power_on(1)?;
    ensure!(chained(&lab)?, "the chain is not on the disk: {}", lab.node(1).read(NETWORK)?);
    for namespace in ["kube-system", "outside", "culvert-system"] {
        let pod = lab.add_sandbox(Pod::new(namespace, "early").app(App::None))?;
        let ours = pod.added().time_of("culvert-cni").context("our plugin was in the chain")?;
        ensure!(ours < Duration::from_secs(TIMEOUT), "{namespace}: waited {ours:?} for nobody");
        figure(&format!("start_before_watcher_{namespace}"), ours.as_millis(), "ms", "our part of ADD");
    }
    for namespace in ["shop", "never-heard-of"] {
        let early = lab.add_sandbox(Pod::new(namespace, "early").app(App::None));
        let refused = early.err().with_context(|| format!("a pod of {namespace} started uncaptured"))?;
        let error = refused.downcast_ref::<CniError>().with_context(|| format!("not by a plugin: {refused:#}"))?;
        ensure!(error.plugin == "culvert-cni" && error.code == 11, "{error}");
    }
    lab.start_pods(1)?;
    enrolled(&lab, &cart)?;
    for (from, to) in [(&cart, &web), (&web, &cart), (&cart, &dns)] {
        reaches(from, to)?;
    }
    let early = lab.add_pod(Pod::new("shop", "early"))?;
    enrolled(&lab, &early)?;
    reaches(&early, &web)?;
    lab.down()
}

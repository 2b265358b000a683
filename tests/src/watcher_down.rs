//! pod-watcher is dead: pods that are none of the mesh's start as if nothing were, pods of the mesh are refused with words that help,
//! and what runs goes on. When it is back, everything is.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{App, CniError, Config, Lab, MeshConfig, Pod, PodHandle, wait};

use crate::support::{CHANGE, at, figure, lab};

/// Our plugin waits this long for an answer; 15 in the chart.
const TIMEOUT: u64 = 2;

fn reaches(from: &PodHandle, to: &PodHandle) -> Result<()> {
    for ip in to.ips() {
        let seen = from.run_client(&["connect", &at(ip, ECHO), "--send", "hello"])?;
        ensure!(seen["ok"] == 1, "{} to {ip}: {seen}", from.key());
    }
    Ok(())
}

/// ADD of a pod, and our plugin's part of it in milliseconds.
fn added(lab: &Lab, pod: Pod) -> Result<(PodHandle, f64)> {
    let pod = lab.add_sandbox(pod.app(App::None))?;
    let ours = pod.added().time_of("culvert-cni").context("our plugin was in the chain")?;
    Ok((pod, ours.as_secs_f64() * 1e3))
}

#[test]
fn with_pod_watcher_dead_only_pods_of_the_mesh_are_refused_and_after_its_return_they_start() -> Result<()> {
    let config = MeshConfig { cni_timeout: TIMEOUT, ..MeshConfig::default() };
    let lab = lab(Config::default().name("watcher-down").mesh(config))?;
    let cart = lab.add_pod(Pod::new("shop", "cart"))?;
    let web = lab.add_pod(Pod::new("shop", "web").node(2))?;
    let stranger = lab.add_pod(Pod::new("outside", "stranger"))?;
    lab.allow("a stranger to the mesh", crate::support::Clear::of(&stranger));
    reaches(&cart, &web)?;
    let watcher = lab.mesh().watcher(1);
    watcher.kill()?;

    for (what, namespace) in [("excluded", "kube-system"), ("plain", "outside")] {
        let mut slowest: f64 = 0.0;
        for n in 0..5 {
            let (pod, ours) = added(&lab, Pod::new(namespace, &format!("meanwhile-{n}")))?;
            ensure!(pod.ips().len() == 2, "{what}: {:?}", pod.ips());
            slowest = slowest.max(ours);
        }
        figure(
            &format!("add_without_watcher_{what}"),
            format!("{slowest:.1}"),
            "ms",
            "slowest of 5, our part, its process's start included",
        );
        ensure!(slowest < 100.0, "{what}: {slowest:.1} ms");
    }

    let refused = added(&lab, Pod::new("shop", "meanwhile")).err().context("an enrolled pod started unserved")?;
    let error = refused.downcast_ref::<CniError>().with_context(|| format!("not by a plugin: {refused:#}"))?;
    let text = error.to_string();
    ensure!(error.plugin == "culvert-cni" && error.code == 11, "{text}");
    for named in ["shop/meanwhile", "pod-watcher", "/run/culvert/cni.sock"] {
        ensure!(error.msg.contains(named), "the cause does not name {named}: {text}");
    }
    ensure!(error.details.contains("tries again") && error.details.contains("culvert-system"), "what to do: {text}");
    let deadline = Duration::from_secs(TIMEOUT);
    ensure!(error.after <= deadline + Duration::from_millis(500), "refused only after {:?}", error.after);
    // Those that run never noticed.
    reaches(&cart, &web)?;
    reaches(&web, &cart)?;
    reaches(&stranger, &cart)?;

    watcher.restart()?;
    let (again, ours) = added(&lab, Pod::new("shop", "meanwhile"))?;
    figure("add_right_after_watcher_restart", format!("{ours:.1}"), "ms", "of an enrolled pod, our part");
    let status = wait::until("the pod's condition", CHANGE, || lab.mesh().pod_status(&again))?;
    ensure!(status["enrolled"] == true, "{status}");
    reaches(&cart, &web)?;
    lab.down()
}

//! A running pod is taken into the mesh by a label, and out of it again: its connections live on both times, busy, idle and bulk, and
//! only new ones go the new way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::pod::{BULK, ECHO};
use lab::{Lab, Pod, PodHandle, Process, wait};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{CHANGE, at, family, figure, mesh, report};

/// Without a byte either way.
const IDLE: Duration = Duration::from_secs(60);
const LABEL: &str = "culvert.io/mesh";

/// Four connections per family: one that the pod opened, one to it, both busy; an idle one; bulk.
struct Flows {
    busy: Vec<Process>,
    idle: Vec<Process>,
    bulk: Vec<Process>,
    /// Since when the idle ones are.
    since: Instant,
}

impl Flows {
    fn start(name: &str, runner: &PodHandle, friend: &PodHandle) -> Result<Flows> {
        let (mut busy, mut idle, mut bulk) = (Vec::new(), Vec::new(), Vec::new());
        for (to_friend, to_runner) in friend.ips().into_iter().zip(runner.ips()) {
            let client = |from: &PodHandle, what: &str, args: &[&str]| {
                from.client(&format!("{name}-{what}-{}", family(to_friend)), args)
            };
            let (out, inward) = (at(to_friend, ECHO), at(to_runner, ECHO));
            busy.push(client(runner, "out", &["live", &out])?);
            busy.push(client(friend, "in", &["live", &inward])?);
            idle.push(client(runner, "idle-out", &["live", &out, "--interval", "0"])?);
            idle.push(client(friend, "idle-in", &["live", &inward, "--interval", "0"])?);
            // Ten seconds: longer than either change takes.
            let args = ["bulk", &at(to_friend, BULK), "--up", "20000000", "--down", "20000000", "--rate", "2000000"];
            bulk.push(client(runner, "bulk", &args)?);
        }
        busy.iter().chain(&idle).try_for_each(|flow| flow.wait_stdout("ready", CHANGE))?;
        Ok(Flows { busy, idle, bulk, since: Instant::now() })
    }

    /// Nothing has ended, and the bulk is still on its way.
    fn all_alive(&self, when: &str) -> Result<()> {
        let ended = self.busy.iter().chain(&self.idle).chain(&self.bulk).find(|flow| !flow.is_alive());
        match ended {
            Some(flow) => anyhow::bail!("{when}: {} has ended: {}{}", flow.name(), flow.stdout(), flow.log()),
            None => Ok(()),
        }
    }

    fn bulk_arrives(&self) -> Result<()> {
        for bulk in &self.bulk {
            let seen = report(bulk)?;
            ensure!(seen["ok"] == 1, "{}: {seen}", bulk.name());
        }
        Ok(())
    }

    /// The idle ones speak at last; then each is closed from its own side, and nothing of it was lost.
    fn finish(&self) -> Result<()> {
        wait::until_true("the idle flows to have been idle", IDLE + CHANGE, || self.since.elapsed() >= IDLE)?;
        self.end_well()
    }

    fn end_well(&self) -> Result<()> {
        self.idle.iter().try_for_each(|flow| flow.write_line("speak"))?;
        for flow in self.busy.iter().chain(&self.idle) {
            let seen = report(flow)?;
            ensure!(seen["ok"] == 1 && seen["ended"] == "stopped", "{}: {seen}", flow.name());
        }
        Ok(())
    }
}

/// A new connection each way and family, by source ports that tell it from all others.
fn new_ones(runner: &PodHandle, friend: &PodHandle, port: u16) -> Result<()> {
    for (from, to) in [(runner, friend), (friend, runner)] {
        for ip in to.ips() {
            let (target, source) = (at(ip, ECHO), port.to_string());
            let seen = from.run_client(&["connect", &target, "--send", "hello", "--source-port", &source])?;
            ensure!(seen["ok"] == 1, "a new connection from {} to {target}: {seen}", from.key());
        }
    }
    Ok(())
}

/// Directions of the access log's lines with this source port, on the pod's node.
fn logged(lab: &Lab, port: u16) -> Vec<String> {
    let from = |line: &Value| line["client"].as_str().is_some_and(|client| client.ends_with(&format!(":{port}")));
    let lines = lab.mesh().access_log(1).into_iter().filter(from);
    let mut all: Vec<String> = lines.filter_map(|line| Some(line["direction"].as_str()?.to_owned())).collect();
    all.sort();
    all
}

fn label(lab: &Lab, pod: &PodHandle, value: Option<&str>, reason: &str) -> Result<()> {
    let start = Instant::now();
    lab.label_pod(pod, LABEL, value)?;
    told(lab, pod, reason)?;
    figure("label_to_rules_ms", format!("{:.0}", start.elapsed().as_secs_f64() * 1e3), "ms", reason);
    Ok(())
}

fn told(lab: &Lab, pod: &PodHandle, reason: &str) -> Result<()> {
    let uid = pod.uid();
    wait::until_true(&format!("the event {reason}"), CHANGE, || {
        let events = lab.mesh().events(1).unwrap_or_default();
        events.iter().any(|event| event["uid"] == uid.as_str() && event["reason"] == reason)
    })
    .with_context(|| format!("{:?}", lab.mesh().events(1)))
}

#[test]
fn live_connections_survive_opt_in_and_opt_out_of_a_running_pod_and_new_ones_go_the_new_way() -> Result<()> {
    let lab = mesh("opt-in")?;
    let runner = lab.add_pod(Pod::new("outside", "runner"))?;
    let friend = lab.add_pod(Pod::new("outside", "friend").node(2))?;
    lab.allow("a pod that stays outside of the mesh, and flows from before", crate::support::Clear::of(&friend));
    let (before, during, after) = (41_001, 41_002, 41_003);
    new_ones(&runner, &friend, before)?;

    let plain = Flows::start("plain", &runner, &friend)?;
    label(&lab, &runner, Some("enabled"), "Enrolled")?;
    plain.all_alive("after opt-in")?;
    new_ones(&runner, &friend, during)?;
    let captured = ["inbound", "inbound", "outbound", "outbound"];
    wait::until_true("lines of the captured connections", CHANGE, || logged(&lab, during) == captured)
        .with_context(|| format!("{:?}", logged(&lab, during)))?;

    let meshed = Flows::start("meshed", &runner, &friend)?;
    label(&lab, &runner, None, "OptedOut")?;
    meshed.all_alive("after opt-out")?;
    new_ones(&runner, &friend, after)?;

    plain.bulk_arrives()?;
    meshed.bulk_arrives()?;
    plain.finish().context("from before opt-in")?;
    meshed.finish().context("from before opt-out")?;
    // The last lines are those of the captured connections that have just ended; the plain ones never had any.
    let idle_out = lab.mesh().wait_access(1, "an idle connection's line", |line| {
        line["direction"] == "outbound" && line["duration_us"].as_u64() >= Some(IDLE.as_micros() as u64)
    })?;
    ensure!(idle_out["reason"].is_null(), "{idle_out}");
    ensure!(logged(&lab, before).is_empty() && logged(&lab, after).is_empty(), "captured although not in the mesh");
    figure(
        "opt_in_flows",
        8 + 8,
        "flows",
        "lived through opt-in and opt-out, or opt-out; idle for 60 s, busy and bulk",
    );
    lab.down()
}

#[test]
fn a_pod_that_leaves_while_pod_watcher_is_dead_keeps_its_captured_connections() -> Result<()> {
    let lab = mesh("opt-out-dead")?;
    let runner = lab.add_pod(Pod::new("outside", "runner").enrolled())?;
    let friend = lab.add_pod(Pod::new("outside", "friend").node(2))?;
    lab.allow("a pod that stays outside of the mesh", crate::support::Clear::of(&friend));
    let meshed = Flows::start("meshed", &runner, &friend)?;
    let watcher = lab.mesh().watcher(1);
    watcher.kill()?;
    lab.label_pod(&runner, LABEL, None)?;
    // The keeper comes back to a pod-watcher for which the pod has left already.
    let keeper = lab.mesh().keeper(1);
    keeper.signal(Signal::STOP)?;
    watcher.restart()?;
    told(&lab, &runner, "OptedOut")?;
    keeper.signal(Signal::CONT)?;
    keeper.wait_log("pod taken back by pod-watcher", CHANGE)?;
    meshed.all_alive("after the restart")?;
    new_ones(&runner, &friend, 41_004)?;
    meshed.bulk_arrives()?;
    meshed.end_well()?;
    ensure!(logged(&lab, 41_004).is_empty(), "captured although not in the mesh");
    lab.down()
}

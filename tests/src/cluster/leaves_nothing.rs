//! A cluster leaves nothing on the machine and changes nothing of it, however it ends.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{Pid, Signal, binaries, state, wait};

use crate::machine::Machine;
use crate::support::{figure, pods, up, web};

const DEADLINE: Duration = Duration::from_secs(120);

fn program(name: &str, verb: &str) -> Result<Command> {
    ensure!(rustix::process::geteuid().is_root(), "this test needs root: namespaces, mounts and control groups");
    let mut command = Command::new(binaries::dir()?.join("culvert-cluster"));
    command.args([verb, "--name", name]);
    Ok(command)
}

fn nothing_left(name: &str, before: &Machine) -> Result<()> {
    let left = state::leftovers(name);
    ensure!(left.is_empty(), "left: {left:?}");
    before.unchanged()
}

#[test]
fn down_of_a_cluster_with_running_pods_leaves_nothing() -> Result<()> {
    let (name, before) = ("kube-left", Machine::now()?);
    let cluster = up(name)?;
    web(&cluster)?;
    ensure!(pods(&cluster)?.len() == 4, "four pods");
    // The counter-proof: there is something to be left.
    ensure!(state::leftovers(name).len() > 10, "{:?}", state::leftovers(name));
    let begun = Instant::now();
    cluster.down()?;
    figure("cluster down", format!("{:.1}", begun.elapsed().as_secs_f64()), "s", "four pods ran");
    nothing_left(name, &before)
}

/// Starts `up` and kills it as soon as `file` of its directory is there.
fn killed_when(name: &str, file: &str) -> Result<()> {
    let mut up: Child = program(name, "up")?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let there = state::Dir::of(name)?.join(file);
    wait::until_true(&format!("{file} of the cluster to be written"), DEADLINE, || {
        there.exists() || up.try_wait().ok().flatten().is_some()
    })?;
    ensure!(up.try_wait()?.is_none(), "up ended before {file} was written");
    ensure!(Pid::of(up.id())?.signal(Signal::KILL), "it had ended already");
    up.wait()?;
    Ok(())
}

#[test]
fn up_killed_at_any_step_is_taken_away_by_down_which_can_be_repeated() -> Result<()> {
    let (name, before) = ("kube-kill", Machine::now()?);
    for file in
        ["pki/sa.pub", "processes/containerd-2.json", "processes/kube-apiserver.json", "processes/kubelet-1.json"]
    {
        killed_when(name, file).with_context(|| format!("kill at {file}"))?;
        ensure!(!state::leftovers(name).is_empty(), "nothing was there to be left");
        for _ in 0..2 {
            let down = program(name, "down")?.output()?;
            ensure!(down.status.success(), "at {file}: {}", String::from_utf8_lossy(&down.stderr));
            nothing_left(name, &before).with_context(|| format!("after a kill at {file}"))?;
        }
    }
    Ok(())
}

#[test]
fn an_interrupted_up_takes_its_cluster_down_itself() -> Result<()> {
    let (name, before) = ("kube-int", Machine::now()?);
    let mut up = program(name, "up")?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let there = state::Dir::of(name)?.join("processes/kubelet-2.json");
    wait::until_true("the kubelets to start", DEADLINE, || there.exists())?;
    ensure!(Pid::of(up.id())?.signal(Signal::INT), "it had ended already");
    let status = up.wait()?;
    ensure!(status.code() == Some(130), "{status}");
    nothing_left(name, &before)
}

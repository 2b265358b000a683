//! Whatever way a lab ends, nothing of it is left: not a process, namespace, device, mount, cgroup or directory.
//!
//! The program itself is used, as a person would. Asked of the machine and not of the lab's own records: mounts, devices
//! and named namespaces before and after, cgroups and processes by the lab's name. Needs root.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Pid, Signal, state, wait};

const DEADLINE: Duration = Duration::from_secs(20);

fn culvert_lab(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-lab"));
    command.args(args);
    command
}

/// What a machine shows of labs that are not ours to count: its own devices, mounts and named namespaces.
fn machine() -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for dir in ["/sys/class/net", "/run/netns", "/etc/cni", "/opt/cni", "/var/lib/cni"] {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        all.extend(entries.map(|e| e.path().display().to_string()));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    all.extend(mounts.lines().map(str::to_owned));
    for sysctl in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
        all.insert(format!("{sysctl}={}", std::fs::read_to_string(sysctl).unwrap_or_default().trim()));
    }
    Ok(all)
}

fn nothing_left(name: &str, before: &BTreeSet<String>) -> Result<()> {
    // Processes of the lab that this test's machine still has to reap show for a moment.
    wait::until_true("the last process to be gone", DEADLINE, || state::leftovers(name).is_empty())
        .with_context(|| format!("left: {:?}", state::leftovers(name)))?;
    let after = machine()?;
    ensure!(after == *before, "the machine changed: {:?}", after.symmetric_difference(before).collect::<Vec<_>>());
    Ok(())
}

/// Starts the story and waits until it is in the middle: its second pod is there.
fn in_the_middle(name: &str) -> Result<Child> {
    let mut story = culvert_lab(&["--no-mesh", "--name", name]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let pods = state::Dir::of(name)?.join("pods");
    wait::until_true("the story to be in the middle", DEADLINE, || {
        std::fs::read_dir(&pods).is_ok_and(|d| d.count() > 4) || story.try_wait().ok().flatten().is_some()
    })?;
    ensure!(story.try_wait()?.is_none(), "the story ended before its middle");
    Ok(story)
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    ensure!(Pid::of(child.id())?.signal(signal), "it had ended already");
    Ok(())
}

#[test]
fn a_story_told_to_its_end_leaves_nothing() -> Result<()> {
    let (name, before) = (format!("end-{}", std::process::id()), machine()?);
    let output = culvert_lab(&["--no-mesh", "--name", &name]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    nothing_left(&name, &before)
}

#[test]
fn ctrl_c_in_the_middle_leaves_nothing() -> Result<()> {
    for (n, which) in [Signal::INT, Signal::TERM].into_iter().enumerate() {
        let (name, before) = (format!("int{n}-{}", std::process::id()), machine()?);
        let mut story = in_the_middle(&name)?;
        signal(&story, which)?;
        let status = story.wait()?;
        ensure!(status.code() == Some(130), "{status}");
        nothing_left(&name, &before)?;
    }
    Ok(())
}

#[test]
fn ctrl_c_at_any_early_moment_leaves_nothing() -> Result<()> {
    let before = machine()?;
    for round in 0..8u64 {
        let name = format!("any{round}-{}", std::process::id());
        let mut story =
            culvert_lab(&["--no-mesh", "--name", &name]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let dir = state::Dir::of(&name)?;
        // The handlers stand before the directory does; from there on, a little later each round.
        wait::until_true("the lab to begin", DEADLINE, || dir.exists())?;
        let late = std::time::Instant::now() + Duration::from_millis(round * 4);
        wait::until_true("the moment of this round", DEADLINE, || std::time::Instant::now() >= late)?;
        signal(&story, Signal::INT)?;
        let status = story.wait()?;
        ensure!(status.code() == Some(130), "round {round}: {status}");
        nothing_left(&name, &before).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

#[test]
fn after_kill_9_down_takes_everything_away_and_can_be_repeated() -> Result<()> {
    let (name, before) = (format!("kill-{}", std::process::id()), machine()?);
    let mut story = in_the_middle(&name)?;
    let refused = culvert_lab(&["down", &name]).output()?;
    ensure!(!refused.status.success(), "down took a lab away that is being run");
    signal(&story, Signal::KILL)?;
    story.wait()?;
    for _ in 0..2 {
        let down = culvert_lab(&["down", &name]).output()?;
        ensure!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
        nothing_left(&name, &before)?;
    }
    Ok(())
}

#[test]
fn a_lab_left_up_can_be_used_by_its_verbs_and_taken_down() -> Result<()> {
    let (name, before) = (format!("keep-{}", std::process::id()), machine()?);
    let verb = |verb: &str, args: &[&str]| -> Result<String> {
        let output = culvert_lab(&[verb, "--name", &name]).args(args).output()?;
        ensure!(output.status.success(), "{verb} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let work = || -> Result<()> {
        verb("up", &["--no-mesh"])?;
        verb("add", &["shop/extra", "--node", "2", "--label", "app=web"])?;
        let status = verb("status", &[])?;
        ensure!(status.contains("shop/extra") && status.contains("node-2"), "{status}");
        let page = verb("exec", &["shop/extra", "--", "curl", "-s", "http://web-pods.shop:8080/"])?;
        ensure!(page.contains("hello from"), "{page}");
        verb("rm", &["shop/extra"])?;
        ensure!(!verb("status", &[])?.contains("shop/extra"), "the pod is still there");
        let failing = culvert_lab(&["exec", "--name", &name, "shop/cart", "--", "false"]).output()?;
        ensure!(failing.status.code() == Some(1), "exec passes the exit code on: {}", failing.status);
        Ok(())
    };
    let worked = work();
    let down = culvert_lab(&["down", &name]).output()?;
    ensure!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    worked?;
    nothing_left(&name, &before)
}

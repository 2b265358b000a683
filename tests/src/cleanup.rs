//! The lab leaves nothing on the machine, however it ends, and never touches the machine's own network. With the whole mesh; the
//! lab's own tests do the same without one, and more often.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Pid, Signal, binaries, state, wait};

use crate::machine::Machine;

const DEADLINE: Duration = Duration::from_secs(30);

fn culvert_lab(args: &[&str]) -> Result<Command> {
    ensure!(rustix::process::geteuid().is_root(), "this test needs root: network namespaces, nf_tables and cgroups");
    let mut command = Command::new(binaries::dir()?.join("culvert-lab"));
    command.args(args);
    Ok(command)
}

fn nothing_left(name: &str, before: &Machine) -> Result<()> {
    wait::until_true("the last process to be gone", DEADLINE, || state::leftovers(name).is_empty())
        .with_context(|| format!("left: {:?}", state::leftovers(name)))?;
    before.unchanged()
}

/// Starts the story; returns in the middle of it, when both nodes have their mesh and pods come.
fn in_the_middle(name: &str) -> Result<Child> {
    let mut story =
        culvert_lab(&["--name", name, "--pods", "0"])?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let dir = state::Dir::of(name)?;
    let there = |file: &str| dir.join(file).exists();
    wait::until_true("the story to be in the middle", DEADLINE, || {
        (there("processes/worker-2.json") && there("logs/shop-cart-app.out"))
            || story.try_wait().ok().flatten().is_some()
    })?;
    ensure!(story.try_wait()?.is_none(), "the story ended before its middle");
    // The counter-proof: there is something to be left.
    ensure!(state::leftovers(name).len() > 5, "{:?}", state::leftovers(name));
    Ok(story)
}

#[test]
fn a_story_with_a_mesh_told_to_its_end_leaves_nothing() -> Result<()> {
    let (name, before) = ("left-end", Machine::now()?);
    let story = culvert_lab(&["--name", name, "--pods", "0"])?.output()?;
    ensure!(story.status.success(), "{}", String::from_utf8_lossy(&story.stdout));
    nothing_left(name, &before)
}

#[test]
fn an_interrupt_in_the_middle_of_the_story_leaves_nothing() -> Result<()> {
    let (name, before) = ("left-int", Machine::now()?);
    let mut story = in_the_middle(name)?;
    ensure!(Pid::of(story.id())?.signal(Signal::INT), "it had ended already");
    let status = story.wait()?;
    ensure!(status.code() == Some(130), "{status}");
    nothing_left(name, &before)
}

#[test]
fn a_lab_killed_in_the_middle_of_its_story_is_taken_away_by_down() -> Result<()> {
    let (name, before) = ("left-kill", Machine::now()?);
    let mut story = in_the_middle(name)?;
    ensure!(Pid::of(story.id())?.signal(Signal::KILL), "it had ended already");
    story.wait()?;
    for _ in 0..2 {
        let down = culvert_lab(&["down", name])?.output()?;
        ensure!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
        nothing_left(name, &before)?;
    }
    Ok(())
}

//! `cargo xtask lab`: build, install what is missing, hand over to the lab.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::Context as _;

use crate::{cargo, packages};

/// Replaces this process by the lab, so that signals and the exit status are the lab's own.
pub fn run(args: &[String]) -> anyhow::Result<ExitCode> {
    let asks_only =
        args.iter().any(|arg| matches!(arg.as_str(), "--help" | "-h" | "help" | "completion" | "--version"));
    if !asks_only {
        packages::root("the lab")?;
        packages::ensure()?;
    }
    let binary = cargo::build()?.join("culvert-lab");
    // What the lab tells a person to try must work where it is printed.
    let mut lab = Command::new(&binary);
    Err(lab.args(args).env("CULVERT_LAB_COMMAND", "cargo xtask lab").exec())
        .with_context(|| format!("start {}", binary.display()))
}

//! `cargo xtask image`: build, hand over to the image writer.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::{cargo, phase};

/// Builds the binaries (`--release`: as the release profile says) and writes their images.
pub fn run(mut args: Vec<String>) -> anyhow::Result<ExitCode> {
    let before = args.len();
    args.retain(|arg| arg != "--release");
    let binaries = if args.len() < before { cargo::build_release(&[])? } else { cargo::build()? };
    cargo::run(writer(&binaries).current_dir(cargo::workspace()).args(args))?;
    Ok(ExitCode::SUCCESS)
}

/// The images of binaries that are built, for tests and for the cluster here; their directory.
pub fn of(binaries: &Path) -> anyhow::Result<PathBuf> {
    let to = cargo::target()?.join("images-cluster");
    phase::run("images", || cargo::run(writer(binaries).arg("--out").arg(&to)))?;
    Ok(to)
}

fn writer(binaries: &Path) -> Command {
    let mut command = Command::new(binaries.join("culvert-image"));
    command.arg("--binaries").arg(binaries);
    command
}

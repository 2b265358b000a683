//! `cargo xtask image`: build, hand over to the image writer.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::{cargo, phase, sbom};

/// Builds the binaries (`--release`: as the release profile says) and writes their images.
pub fn run(mut args: Vec<String>) -> anyhow::Result<ExitCode> {
    let before = args.len();
    args.retain(|arg| arg != "--release");
    let binaries = if args.len() < before { cargo::build_release(&[])? } else { cargo::build()? };
    let out = out(&args).map_or_else(|| cargo::workspace().join("target/images"), |out| cargo::workspace().join(out));
    sbom::write(&out)?;
    cargo::run(writer(&binaries).current_dir(cargo::workspace()).args(args).arg("--lists").arg(out))?;
    Ok(ExitCode::SUCCESS)
}

/// Where the archives are to go, if that is said; what is in them is written beside them.
fn out(args: &[String]) -> Option<&str> {
    let after = args.windows(2).find(|pair| pair[0] == "--out").map(|pair| pair[1].as_str());
    after.or_else(|| args.iter().find_map(|arg| arg.strip_prefix("--out=")))
}

/// The images of binaries that are built, for tests and for the cluster here; their directory.
pub fn of(binaries: &Path) -> anyhow::Result<PathBuf> {
    let to = cargo::target()?.join("images-cluster");
    phase::run("images", || cargo::run(writer(binaries).arg("--out").arg(&to)))?;
    Ok(to)
}

/// The image writer of these binaries.
pub fn writer(binaries: &Path) -> Command {
    let mut command = Command::new(binaries.join("culvert-image"));
    command.arg("--binaries").arg(binaries);
    command
}

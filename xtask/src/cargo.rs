//! Calls to cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The target every binary is built for, see `.cargo/config.toml`.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The checkout.
pub fn workspace() -> PathBuf {
    // xtask is a direct child of the workspace.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// cargo in the checkout, with these arguments.
pub fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args(args);
    command
}

/// Runs a command to its end; an error names it.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Builds every binary and answers where they are.
pub fn build() -> anyhow::Result<PathBuf> {
    crate::phase::run("build", || {
        run(&mut cargo(["build", "--workspace", "--bins", "--exclude", "xtask", "--locked"]))?;
        binaries()
    })
}

/// The directory of the built binaries.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let output =
        cargo(["metadata", "--format-version=1", "--no-deps", "--offline"]).output().context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(Path::new(target).join(TARGET).join("debug"))
}

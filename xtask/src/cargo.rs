//! Calls to cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The target every binary is built for, see `.cargo/config.toml`.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The checkout.
pub fn workspace() -> PathBuf {
    // cargo says at run time where it is: of a target directory that two checkouts share this program may be the other one's.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    // xtask is a direct child of the workspace.
    Path::new(&package).parent().map(Path::to_path_buf).unwrap_or_default()
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

/// Builds every binary and every test, and answers where the binaries are. In one call: apart from the tests, crates have other features
/// (tokio's clock for tests), and half of everything would be built twice.
pub fn build_tests() -> anyhow::Result<PathBuf> {
    crate::phase::run("build, with tests", || {
        run(&mut cargo(["build", "--workspace", "--all-targets", "--locked"]))?;
        binaries()
    })
}

/// Builds every binary, optimised as the release profile says; `features` of node-proxy, if any.
pub fn build_release(features: &[&str]) -> anyhow::Result<PathBuf> {
    let what = if features.is_empty() { "build --release" } else { "build --release for testing" };
    crate::phase::run(what, || {
        let mut command = cargo(["build", "--workspace", "--bins", "--exclude", "xtask", "--locked", "--release"]);
        features.iter().for_each(|feature| {
            command.args(["--features", &format!("node-proxy/{feature}")]);
        });
        run(&mut command)?;
        directory("release")
    })
}

/// The directory of the built binaries.
pub fn binaries() -> anyhow::Result<PathBuf> {
    directory("debug")
}

/// The same below another target directory.
pub fn debug_below(target: &Path) -> PathBuf {
    target.join(TARGET).join("debug")
}

fn directory(profile: &str) -> anyhow::Result<PathBuf> {
    Ok(target()?.join(TARGET).join(profile))
}

/// cargo's target directory.
pub fn target() -> anyhow::Result<PathBuf> {
    let output =
        cargo(["metadata", "--format-version=1", "--no-deps", "--offline"]).output().context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target directory")?.into())
}

//! `cargo xtask cluster`: make what a cluster needs, hand over to its own program.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::Context as _;

use crate::{cargo, image, kubernetes, manifests, packages, phase, postgresql};

/// Replaces this process by the cluster's program, so that signals and the exit status are its own.
pub fn run(args: &[String]) -> anyhow::Result<ExitCode> {
    let asks_only = args.is_empty()
        || args.iter().take_while(|arg| *arg != "--").any(|arg| matches!(arg.as_str(), "--help" | "-h" | "help"));
    let mut environment = Vec::new();
    if !asks_only {
        packages::root("a cluster")?;
        let parts = kubernetes::parts()?;
        environment = parts.environment().map(|(name, path)| (name, path.to_owned())).to_vec();
        if args.first().is_some_and(|verb| verb == "parts") {
            for (name, path) in &environment {
                phase::say(&format!("{name}={}", path.display()));
            }
            return Ok(ExitCode::SUCCESS);
        }
    }
    let binaries = cargo::build()?;
    let has = |flag: &str| args.iter().take_while(|arg| *arg != "--").any(|arg| arg == flag);
    if has("--mesh") || has("--demo") {
        environment.push(("CULVERT_IMAGES", image::of(&binaries)?));
        environment.push(("CULVERT_MANIFESTS", manifests::for_cluster()?));
    }
    if has("--demo") {
        environment.push(("CULVERT_POSTGRESQL", postgresql::root()?));
    }
    let binary = binaries.join("culvert-cluster");
    let mut cluster = Command::new(&binary);
    Err(cluster.args(args).envs(environment).env("CULVERT_CLUSTER_COMMAND", "cargo xtask cluster").exec())
        .with_context(|| format!("start {}", binary.display()))
}

//! The release before this one, built from its commit: what an upgrade in a cluster begins with.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::{cache, cargo, image, manifests, phase};

/// The last one whose rules have another schema.
const COMMIT: &str = "351e9db2ffe8821b1b2f4379404e6137c96df8b2";

/// What of it a cluster is given.
pub struct Former {
    /// Directory of its images' archives.
    pub images: PathBuf,
    /// Its manifests, rendered for such a cluster.
    pub manifests: PathBuf,
}

/// Makes it, or finds it in the cache.
pub fn release() -> anyhow::Result<Former> {
    let place = cache::tool("release", &COMMIT[..12], |draft| {
        phase::run(&format!("build the release before ({}, 10 minutes)", &COMMIT[..12]), || make(draft))
    })?;
    Ok(Former { images: place.join("images"), manifests: place.join("manifests.yaml") })
}

fn make(draft: &Path) -> anyhow::Result<()> {
    let (source, target) = (draft.join("source"), draft.join("target"));
    checkout(&source)?;
    cargo::run(
        cargo::cargo(["build", "--workspace", "--bins", "--exclude", "xtask", "--locked", "--quiet"])
            .current_dir(&source)
            .env("CARGO_TARGET_DIR", &target),
    )?;
    let binaries = cargo::debug_below(&target);
    cargo::run(image::writer(&binaries).current_dir(&source).arg("--out").arg(draft.join("images")))?;
    manifests::write_for_cluster(&source, &draft.join("manifests.yaml"))?;
    [source, target]
        .iter()
        .try_for_each(|made| std::fs::remove_dir_all(made).with_context(|| format!("remove {}", made.display())))
}

/// The tree of that commit, which the history of a whole clone has.
fn checkout(source: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(source).with_context(|| format!("create {}", source.display()))?;
    let mut archive = Command::new("git")
        .current_dir(cargo::workspace())
        .args(["archive", COMMIT])
        .stdout(Stdio::piped())
        .spawn()
        .context("start git")?;
    let tree = archive.stdout.take().context("git's output")?;
    let unpacked = Command::new("tar").args(["-x", "-C"]).arg(source).stdin(tree).status().context("start tar")?;
    let archived = archive.wait().context("git archive")?;
    ensure!(
        archived.success() && unpacked.success(),
        "commit {COMMIT} cannot be read: this test needs the history (git fetch --unshallow)"
    );
    Ok(())
}

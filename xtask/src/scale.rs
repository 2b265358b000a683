//! `cargo xtask scale`: a real API server full of objects, then a hundred thousand workloads from files.

use std::process::ExitCode;

use crate::{bench, cargo, figures, image, kubernetes, manifests, packages, phase};

/// Runs both and writes `docs/scale.md`.
pub fn run() -> anyhow::Result<ExitCode> {
    packages::root("the scale test")?;
    packages::ensure()?;
    let parts = kubernetes::parts()?;
    // Memory and time of what people run, not of what tests build.
    let binaries = cargo::build_release(&[])?;
    let mut command = cargo::cargo(["test", "--workspace", "--locked", "--test", "scale"]);
    command.args(["--", "--test-threads=1", "--nocapture"]);
    // What the cluster itself is made of: the test binary lies beside those of another profile, if there are any.
    command.env("CULVERT_BIN_DIR", &binaries);
    command.envs(parts.environment()).env("CULVERT_IMAGES", image::of(&binaries)?);
    command.env("CULVERT_MANIFESTS", manifests::for_cluster()?);
    let mut rows = phase::run("objects in an API server", || figures::run(&mut command))?.rows;
    rows.extend(phase::run("workloads from files", || bench::workloads(&binaries))?);
    figures::write(figures::SCALE, &rows)?;
    Ok(ExitCode::SUCCESS)
}

//! `cargo xtask soak`: a busy mesh that changes all the time, for as long as asked.

use std::path::Path;
use std::process::ExitCode;

use crate::{cargo, packages, phase};

/// Builds and runs for so many minutes.
pub fn run(minutes: f64) -> anyhow::Result<ExitCode> {
    packages::root("the soak")?;
    packages::ensure()?;
    of(&cargo::build()?, minutes)?;
    Ok(ExitCode::SUCCESS)
}

/// The same with binaries that are built.
pub fn of(binaries: &Path, minutes: f64) -> anyhow::Result<()> {
    phase::run(&format!("soak, {minutes} minutes"), || {
        let mut command = cargo::cargo(["test", "--workspace", "--locked", "--test", "soak"]);
        // Ctrl-C reaches the test as well, which takes its lab down.
        command.args(["a_mesh_under", "--", "--nocapture"]).env("CULVERT_BINARIES", binaries);
        cargo::run(command.env("CULVERT_SOAK_MINUTES", minutes.to_string()))
    })
}

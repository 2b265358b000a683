//! `cargo xtask test`: everything by default, or one part.

use std::process::ExitCode;
use std::time::Instant;

use clap::ValueEnum;

use crate::{cargo, packages, phase, tools};

/// A part of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Tests beside the code, those with their own network namespaces included (needs root).
    Unit,
    /// The real binaries in lab nodes (needs root).
    Lab,
}

/// Runs the tests.
pub fn run(part: Option<Part>, filter: Option<&str>) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    // Tests that need root fail without it instead of being skipped; better to say so before the build.
    packages::root("the test suite")?;
    packages::ensure()?;
    let cnitool = if part == Some(Part::Unit) { None } else { Some(tools::cnitool()?) };
    let binaries = cargo::build()?;
    phase::run("build tests", || {
        cargo::run(&mut cargo::cargo(["test", "--workspace", "--locked", "--no-run", "--quiet"]))
    })?;
    if part != Some(Part::Lab) {
        phase::run("unit tests", || {
            let mut command = cargo::cargo(["test", "--workspace", "--exclude", "tests", "--locked", "--no-fail-fast"]);
            command.args(filter).env("CULVERT_BINARIES", &binaries);
            cargo::run(&mut command)
        })?;
    }
    if part != Some(Part::Unit) {
        phase::run("lab tests", || {
            let mut command = cargo::cargo(["test", "--package", "tests", "--locked"]);
            command
                .args(filter)
                .env("CULVERT_BINARIES", &binaries)
                .envs(cnitool.iter().map(|path| ("CULVERT_CNITOOL", path)));
            // Each test makes its own lab; two cores carry two at a time, figures in one would disturb the other.
            command.args(["--", "--test-threads=1", "--nocapture"]);
            cargo::run(&mut command)
        })?;
    }
    phase::say(&format!("all tests passed in {:.0} s, builds included", begun.elapsed().as_secs_f64()));
    Ok(ExitCode::SUCCESS)
}

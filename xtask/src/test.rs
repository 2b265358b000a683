//! `cargo xtask test`: everything by default, or one part.

use std::process::ExitCode;
use std::time::Instant;

use clap::ValueEnum;

use crate::{
    cargo, figures, former, image, kubernetes, manifests, mutations, packages, phase, postgresql, soak, tools,
};

/// A part of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Tests beside the code, those with their own network namespaces included (needs root).
    Unit,
    /// The real binaries in lab nodes (needs root).
    Lab,
    /// Two minutes of constant change, after which the mesh is what it was (needs root).
    Soak,
    /// A real Kubernetes on this machine (needs root; the first time builds Kubernetes).
    Cluster,
}

/// For how long the soak runs here; `cargo xtask soak` runs as long as one likes.
const SOAK_MINUTES: f64 = 2.0;

/// Runs the tests; with `long` those as well that take minutes each, with outages of their full length, and writes
/// `docs/reliability.md` if all of them passed.
pub fn run(part: Option<Part>, filter: Option<&str>, long: bool) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    // Tests that need root fail without it instead of being skipped; better to say so before the build.
    packages::root("the test suite")?;
    packages::ensure()?;
    let wanted = |this: Part| part.is_none_or(|part| part == this);
    let cnitool = wanted(Part::Lab).then(tools::cnitool).transpose()?;
    let python = wanted(Part::Lab).then(tools::reference).transpose()?;
    let parts = wanted(Part::Cluster).then(kubernetes::parts).transpose()?;
    let binaries = cargo::build()?;
    phase::run("build tests", || {
        cargo::run(&mut cargo::cargo(["test", "--workspace", "--locked", "--no-run", "--quiet"]))
    })?;
    if wanted(Part::Unit) {
        phase::run("unit tests", || {
            let mut command = cargo::cargo(["test", "--workspace", "--exclude", "tests", "--locked", "--no-fail-fast"]);
            command.args(filter).env("CULVERT_BINARIES", &binaries);
            cargo::run(&mut command)
        })?;
    }
    // Each test makes its own lab or cluster; two cores carry two at a time, figures in one would disturb the other.
    let binary = |name: &str| {
        let mut command = cargo::cargo(["test", "--package", "tests", "--locked", "--test", name]);
        command.args(filter).args(["--", "--test-threads=1", "--nocapture"]).env("CULVERT_BINARIES", &binaries);
        if long {
            command.arg("--include-ignored").env("CULVERT_LONG", "1");
        }
        command
    };
    if wanted(Part::Lab) {
        let environment = [("CULVERT_CNITOOL", cnitool), ("CULVERT_PYTHON", python)];
        let environment = environment.into_iter().filter_map(|(name, path)| Some((name, path?)));
        let printed = phase::run("lab tests", || figures::run(binary("promises").envs(environment)))?;
        figures::tell_slowest("lab tests", &printed.times);
    }
    // One test, whose name a filter would have to name.
    if part == Some(Part::Soak) || part.is_none() && filter.is_none() {
        soak::of(&binaries, SOAK_MINUTES)?;
    }
    if wanted(Part::Cluster) {
        manifests::run(true)?;
        let environment = parts.iter().flat_map(|parts| parts.environment());
        let mut command = binary("cluster");
        command.envs(environment).env("CULVERT_IMAGES", image::of(&binaries)?);
        command.env("CULVERT_MANIFESTS", manifests::for_cluster()?).env("CULVERT_POSTGRESQL", postgresql::root()?);
        command.env("CULVERT_HELM", tools::helm()?);
        if long {
            let former = former::release()?;
            command.env("CULVERT_FORMER_IMAGES", former.images).env("CULVERT_FORMER_MANIFESTS", former.manifests);
        }
        let printed = phase::run("cluster tests", || figures::run(&mut command))?;
        figures::tell_slowest("cluster tests", &printed.times);
        // A part of the tests is not the table.
        if long && filter.is_none() {
            figures::write(figures::RELIABILITY, &printed.rows)?;
        }
    }
    if long && part.is_none() && filter.is_none() {
        phase::run("mutations", || mutations::run(None))?;
    }
    phase::say(&format!("all tests passed in {:.0} s, builds included", begun.elapsed().as_secs_f64()));
    Ok(ExitCode::SUCCESS)
}

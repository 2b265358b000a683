//! `cargo xtask test`: everything by default, or one part.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::ValueEnum;

use crate::figures::{Printed, Row};
use crate::kubernetes::Parts;
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

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// This part alone.
    pub part: Option<Part>,
    /// Tests whose name contains this.
    pub filter: Option<&'a str>,
    /// Those as well that take minutes each, with outages of their full length.
    pub long: bool,
    /// `docs/test-times.md` is made anew.
    pub write_docs: bool,
}

impl Wanted<'_> {
    fn has(&self, part: Part) -> bool {
        self.part.is_none_or(|wanted| wanted == part)
    }

    fn is_whole(&self) -> bool {
        self.part.is_none() && self.filter.is_none()
    }

    /// A test binary of the crate `tests`; of the whole workspace, or crates would have other features and be built anew. Each test makes
    /// its own lab or cluster; two cores carry two at a time, figures in one would disturb the other.
    fn of_tests(&self, name: &str, binaries: &Path) -> Command {
        let mut command = cargo::cargo(["test", "--workspace", "--locked", "--test", name]);
        command.args(self.filter).args(["--", "--test-threads=1", "--nocapture"]).env("CULVERT_BINARIES", binaries);
        if self.long {
            command.arg("--include-ignored").env("CULVERT_LONG", "1");
        }
        command
    }
}

/// Runs the tests, and writes `docs/reliability.md` if they were the long ones and all of them passed.
pub fn run(wanted: &Wanted<'_>) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    // Tests that need root fail without it instead of being skipped; better to say so before the build.
    packages::root("the test suite")?;
    packages::ensure()?;
    let cnitool = wanted.has(Part::Lab).then(tools::cnitool).transpose()?;
    let python = wanted.has(Part::Lab).then(tools::reference).transpose()?;
    let parts = wanted.has(Part::Cluster).then(kubernetes::parts).transpose()?;
    let mut times = Times::default();
    times.whole("tools", begun);
    let binaries = times.timed("build", cargo::build_tests)?;
    if wanted.has(Part::Unit) {
        times.timed("unit", || unit(wanted, &binaries))?;
    }
    if wanted.has(Part::Lab) {
        let mut command = wanted.of_tests("promises", &binaries);
        let environment = [("CULVERT_CNITOOL", cnitool), ("CULVERT_PYTHON", python)];
        command.envs(environment.into_iter().filter_map(|(name, path)| Some((name, path?))));
        times.each("lab", || phase::run("lab tests", || figures::run(&mut command)))?;
    }
    // One test, whose name a filter would have to name.
    if wanted.part == Some(Part::Soak) || wanted.is_whole() {
        times.timed("soak", || soak::of(&binaries, SOAK_MINUTES))?;
    }
    if let Some(parts) = parts {
        let printed = times.each("cluster", || cluster(wanted, &binaries, &parts))?;
        // A part of the tests is not the table.
        if wanted.long && wanted.filter.is_none() {
            figures::write(figures::RELIABILITY, &printed.rows)?;
        }
    }
    if wanted.long && wanted.is_whole() {
        times.timed("mutations", || phase::run("mutations", || mutations::run(None)))?;
    }
    phase::say(&format!("all tests passed in {:.0} s, builds included", begun.elapsed().as_secs_f64()));
    if wanted.write_docs {
        times.write()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn unit(wanted: &Wanted<'_>, binaries: &Path) -> anyhow::Result<()> {
    phase::run("unit tests", || {
        let mut command = cargo::cargo(["test", "--workspace", "--exclude", "tests", "--locked", "--no-fail-fast"]);
        command.args(wanted.filter).env("CULVERT_BINARIES", binaries);
        cargo::run(&mut command)
    })
}

fn cluster(wanted: &Wanted<'_>, binaries: &Path, parts: &Parts) -> anyhow::Result<Printed> {
    manifests::run(true)?;
    let mut command = wanted.of_tests("cluster", binaries);
    command.envs(parts.environment()).env("CULVERT_IMAGES", image::of(binaries)?);
    command.env("CULVERT_MANIFESTS", manifests::for_cluster()?).env("CULVERT_POSTGRESQL", postgresql::root()?);
    command.env("CULVERT_HELM", tools::helm()?);
    if wanted.long {
        let former = former::release()?;
        command.env("CULVERT_FORMER_IMAGES", former.images).env("CULVERT_FORMER_MANIFESTS", former.manifests);
    }
    phase::run("cluster tests", || figures::run(&mut command))
}

/// What each part took, and each test of those that run one after the other.
#[derive(Default)]
struct Times {
    parts: Vec<Row>,
    tests: Vec<Row>,
}

impl Times {
    fn whole(&mut self, part: &str, since: Instant) {
        self.parts.push(figures::took_row(part, "whole", since.elapsed()));
    }

    fn timed<T>(&mut self, part: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let begun = Instant::now();
        let done = work()?;
        self.whole(part, begun);
        Ok(done)
    }

    fn each(&mut self, part: &str, work: impl FnOnce() -> anyhow::Result<Printed>) -> anyhow::Result<Printed> {
        let printed = self.timed(part, work)?;
        figures::tell_slowest(&format!("{part} tests"), &printed);
        self.tests.extend(printed.of_part(part));
        Ok(printed)
    }

    fn write(mut self) -> anyhow::Result<()> {
        self.parts.append(&mut self.tests);
        figures::write(figures::TEST_TIMES, &self.parts)
    }
}

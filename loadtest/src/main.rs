//! `culvert-loadtest`: see `cargo xtask bench`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use loadtest::cli::{self, Cli, Verb};
use loadtest::{path, plane, report, run, scenario, traffic};

/// Exit code of a run that could not take every sample it planned.
const INCOMPLETE: u8 = 4;

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().verb {
        Verb::Run(options) => measure(&options),
        Verb::List => list().map(|()| ExitCode::SUCCESS),
        Verb::Report { file, output } => report::output::again(&file, &output),
        Verb::Server { ports } => traffic::serve(&ports).map(|()| ExitCode::SUCCESS),
        Verb::Client { spec } => traffic::client(&spec).map(|()| ExitCode::SUCCESS),
    }
}

fn measure(options: &cli::Run) -> anyhow::Result<ExitCode> {
    let run::Ran { outcome, complete } = run::run(options)?;
    let shown = report::output::show(&outcome, &options.output)?;
    // What is missing is the worse news: a figure that was not taken cannot be worse than its baseline.
    Ok(if complete { shown } else { ExitCode::from(INCOMPLETE) })
}

fn list() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "scenarios:")?;
    for scenario in scenario::all() {
        writeln!(out, "  {:22} {}", scenario.name, scenario.about)?;
    }
    writeln!(out, "planes:")?;
    for (name, about) in plane::KNOWN {
        writeln!(out, "  {name:22} {about}")?;
    }
    writeln!(out, "paths:")?;
    for path in path::Path::all() {
        writeln!(out, "  {path}")?;
    }
    Ok(())
}

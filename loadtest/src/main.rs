//! `culvert-loadtest`: see `cargo xtask bench`.

use std::process::ExitCode;

use clap::Parser as _;
use loadtest::cli::{Cli, Verb};
use loadtest::report;

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().verb {
        Verb::Report { file, output } => report::output::again(&file, &output),
        verb => anyhow::bail!("{verb:?}: comes with the engine"),
    }
}

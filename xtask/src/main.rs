//! The project's commands: `cargo xtask lab` and `cargo xtask test` are all a newcomer needs.
//!
//! Each installs what it needs (Debian packages, test tools) and says so before it does. Downloads and tools are kept outside
//! the checkout, keyed by version, see [`cache`].

mod cache;
mod cargo;
mod lab;
mod packages;
mod phase;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Culvert's project commands", version)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Two nodes on this machine with the whole mesh on them: builds, installs what is missing, runs, cleans up.
    ///
    /// Arguments are passed on: `cargo xtask lab --help` shows them all.
    #[command(disable_help_flag = true)]
    Lab {
        /// Arguments of the lab.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// All tests: unit, property and table tests beside the code, then the real binaries in lab nodes (needs root).
    Test {
        /// Only these.
        #[arg(value_enum)]
        part: Option<test::Part>,
        /// Only tests whose name contains this.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Licences, sources and bans of all dependencies, by cargo-deny.
    Deny,
    /// Where downloads and tools are kept.
    Cache,
}

fn main() -> ExitCode {
    let result = match Args::parse().verb {
        Verb::Lab { args } => lab::run(&args),
        Verb::Test { part, filter } => test::run(part, filter.as_deref()),
        Verb::Deny => tools::deny(),
        Verb::Cache => cache::show(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            phase::say(&format!("failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

//! The verbs of `culvert-lab`, those for people and the internal ones that run inside nodes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::apps::{client, server};

#[derive(Debug, Parser)]
#[command(name = "culvert-lab", version, about = "The whole mesh on one machine, without Kubernetes")]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Servers that run in a pod: KIND:PORT...
    App {
        /// Named in greetings
        #[arg(long, default_value = "app")]
        name: String,
        /// File to count connections and bytes in
        #[arg(long)]
        stats: Option<PathBuf>,
        /// echo, greet, bulk, whoami, hold, sink, reset, http, udp-echo
        #[arg(required = true)]
        servers: Vec<server::Server>,
    },
    /// Clients that run in a pod and print a JSON report
    #[command(subcommand)]
    Client(client::Client),
    #[command(hide = true)]
    NodeInit { boot: String },
    #[command(hide = true)]
    SpawnAs { spec: String },
    #[command(hide = true)]
    Pause,
}

pub(crate) fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.verb {
        Some(Verb::App { name, stats, servers }) => server::run(&name, stats, &servers),
        Some(Verb::Client(client)) => client::run(client),
        Some(Verb::NodeInit { boot }) => lab::init::run(&boot),
        Some(Verb::SpawnAs { spec }) => lab::spawn_as::run(&spec).map(|never| match never {}),
        Some(Verb::Pause) => lab::init::pause(),
        None => Ok(()),
    }
}

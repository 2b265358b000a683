//! The words of `culvert-loadtest`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::path::Path;
use crate::report::output::Output;

/// What the mesh costs, measured beside direct TCP and a sidecar in the same run. Needs root.
#[derive(Debug, Parser)]
#[command(name = "culvert-loadtest", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Measures: every chosen scenario on every chosen plane and path, round by round.
    Run(Run),
    /// Lists scenarios, planes and paths.
    List,
    /// Prints and writes the reports of an earlier run; the terminal's table is always printed.
    Report {
        /// What `--json-full` (or `--json`) wrote.
        file: PathBuf,
        /// What to write.
        #[command(flatten)]
        output: Output,
    },
    /// Serves in a server pod.
    #[command(hide = true)]
    Server {
        /// Ports of echo, sink and source.
        #[arg(num_args = 3)]
        ports: Vec<u16>,
    },
    /// Makes load in a client pod.
    #[command(hide = true)]
    Client {
        /// What to do, as JSON.
        spec: String,
    },
}

/// What to measure and where to put it.
#[derive(Clone, Debug, Default, Args)]
pub struct Run {
    /// Fewer rounds and smaller numbers: under 5 minutes.
    #[arg(long)]
    pub quick: bool,
    /// Only scenarios whose name is this or begins with it; may be given several times.
    #[arg(long)]
    pub scenario: Vec<String>,
    /// Only these planes; may be given several times.
    #[arg(long)]
    pub plane: Vec<String>,
    /// Only these paths; may be given several times.
    #[arg(long)]
    pub path: Vec<Path>,
    /// Rounds of each figure of traffic, instead of the scenario's own number.
    #[arg(long)]
    pub rounds: Option<usize>,
    /// What to write of it.
    #[command(flatten)]
    pub output: Output,
    /// Where the mesh's binaries and culvert-lab are; beside this program by default.
    #[arg(long)]
    pub binaries: Option<PathBuf>,
}

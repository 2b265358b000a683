//! `node-proxy admin`: asks the running worker over its unix socket and prints for people or programs.

mod tables;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use mesh_daemon::admin::{Request, ask};

const EXAMPLES: &str = "Examples:
  node-proxy admin connections                    what is open now, one line each
  node-proxy admin certificates -o json | jq .    for programs
  node-proxy admin log-level info,node_proxy=debug

Exit status: 0 answered, 1 the worker refused, 2 the command line is wrong, 3 no answer.";

/// Flags of `node-proxy admin`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The worker's admin socket.
    #[arg(long, global = true, env = "CULVERT_ADMIN_SOCKET", default_value = "/run/node-proxy-worker/admin.sock")]
    admin_socket: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// What to ask.
    #[command(subcommand)]
    verb: Verb,
}

/// What can be asked.
#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// The configuration in force: where it comes from, its services and policies.
    Config,
    /// This node's pods, as the keeper gave them.
    Pods,
    /// Every workload that the control plane has named.
    Workloads,
    /// Connections that are open now.
    Connections,
    /// Certificates of this node's identities: serial numbers and times, never keys.
    Certificates,
    /// Tunnels to other nodes' pods.
    Tunnels,
    /// Metrics that are not zero, and the load of each thread.
    Stats,
    /// The filter of the worker's own log; with FILTER, sets it until the worker ends.
    #[command(after_help = "Example: node-proxy admin log-level warn,node_proxy::worker::tunnel=debug")]
    LogLevel {
        /// A level, or levels by module.
        filter: Option<String>,
    },
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Columns for people.
    Table,
    /// For programs.
    Json,
}

impl Verb {
    fn request(&self) -> Request {
        let (verb, args) = match self {
            Verb::Config => ("config", vec![]),
            Verb::Pods => ("pods", vec![]),
            Verb::Workloads => ("workloads", vec![]),
            Verb::Connections => ("connections", vec![]),
            Verb::Certificates => ("certificates", vec![]),
            Verb::Tunnels => ("tunnels", vec![]),
            Verb::Stats => ("stats", vec![]),
            Verb::LogLevel { filter } => ("log-level", filter.iter().cloned().collect()),
        };
        Request { verb: verb.to_owned(), args }
    }
}

/// Asks, prints the answer, and says how it went.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let request = args.verb.request();
    let answer = match runtime.block_on(ask("the node-proxy worker", &args.admin_socket, &request)) {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("node-proxy: {error}");
            return Ok(ExitCode::from(error.exit_code()));
        }
    };
    let text = match args.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&answer)?),
        Output::Table => tables::render(&request.verb, &answer),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

//! The verbs of `culvert-lab`, those for people and the internal ones that run inside nodes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};
use lab::apps::{client, server};
use lab::{Families, interrupt};

use crate::{completion, story, verbs};

/// The whole mesh on one machine, without Kubernetes.
///
/// Without a verb it tells the story: makes two nodes, adds pods through the real CNI chain, drives traffic, shows what
/// happened, cleans up. The machine's own network, firewall and sysctls are never touched.
#[derive(Debug, Parser)]
#[command(name = "culvert-lab", version, args_conflicts_with_subcommands = true, after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    story: Story,
}

const AFTER: &str = "Examples:
  culvert-lab                          tell the story and clean up
  culvert-lab --keep --pods 50         leave it up afterwards
  culvert-lab up                       two nodes and some pods, no story
  culvert-lab exec shop/cart -- curl -s http://web.shop/
  culvert-lab policy deny.yaml         put a policy in place
  culvert-lab capture --marker hello   look at the wire
  culvert-lab down                     take it away";

/// How the lab is made.
#[derive(Clone, Debug, Args)]
pub(crate) struct Topology {
    /// Name of the lab; labs of different names can stand side by side
    #[arg(long, default_value = "lab", global = true)]
    pub(crate) name: String,
    /// Nodes
    #[arg(long, default_value_t = 2)]
    pub(crate) nodes: usize,
    /// IPv4 only
    #[arg(long, conflicts_with_all = ["ipv6", "dual"])]
    ipv4: bool,
    /// IPv6 only
    #[arg(long, conflicts_with = "dual")]
    ipv6: bool,
    /// Both families (the default)
    #[arg(long)]
    dual: bool,
    /// Plain nodes: the reference CNI chain, no mesh
    #[arg(long)]
    pub(crate) no_mesh: bool,
}

impl Topology {
    pub(crate) fn families(&self) -> Families {
        match (self.ipv4, self.ipv6) {
            (true, _) => Families::V4,
            (_, true) => Families::V6,
            _ => Families::Dual,
        }
    }
}

/// The story's settings.
#[derive(Clone, Debug, Args)]
pub(crate) struct Story {
    #[command(flatten)]
    pub(crate) topology: Topology,
    /// Pods added on node 1 to measure memory and time per pod
    #[arg(long, default_value_t = 10)]
    pub(crate) pods: usize,
    /// Leave the lab up and print what to try
    #[arg(long)]
    pub(crate) keep: bool,
    /// Write the outcome: {"ok", "steps": [{"name", "ok", "detail"}], "figures": {}}
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make nodes, mesh and a few pods, and leave them up
    Up(Topology),
    /// Take a lab away, also one that was killed or interrupted
    Down {
        /// Which; the one named "lab" when absent
        lab: Option<String>,
        /// The same
        #[arg(long, default_value = "lab", conflicts_with = "lab")]
        name: String,
        /// Every recorded lab
        #[arg(long, conflicts_with_all = ["lab", "name"])]
        all: bool,
    },
    /// What stands: nodes, pods, services, processes
    Status {
        /// The lab
        #[arg(long, default_value = "lab")]
        name: String,
    },
    /// Run any program of this machine in a pod's network, service names resolvable
    Exec {
        /// The lab
        #[arg(long, default_value = "lab")]
        name: String,
        /// NAMESPACE/POD, or a node: node-1, fabric
        place: String,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// Add a pod
    Add(verbs::Add),
    /// Take a pod away
    Rm {
        /// The lab
        #[arg(long, default_value = "lab")]
        name: String,
        /// NAMESPACE/POD
        pod: String,
    },
    /// Show what crosses the fabric: by sender, receiver and port, payload counted, markers looked for
    Capture {
        /// The lab
        #[arg(long, default_value = "lab")]
        name: String,
        /// Seconds to look
        #[arg(long = "for", default_value_t = 5)]
        seconds: u64,
        /// Text to look for in clear
        #[arg(long)]
        marker: Vec<String>,
    },
    /// Put manifests in place (a file, or - for standard input), or take them away
    Policy(verbs::Policy),
    /// Print a completion script
    Completion {
        /// bash or zsh
        #[arg(value_parser = ["bash", "zsh"])]
        shell: String,
    },
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
    let ended = run(Cli::parse());
    interrupt::wait_if_stopping();
    ended.unwrap_or_else(|error| lab::out::end("culvert-lab", &error))
}

fn run(cli: Cli) -> Result<ExitCode> {
    let Some(verb) = cli.verb else { return story::run(&cli.story) };
    match verb {
        Verb::Up(topology) => verbs::up(&topology),
        Verb::Down { lab, name, all } => verbs::down(&lab.unwrap_or(name), all),
        Verb::Status { name } => verbs::status(&name),
        Verb::Exec { name, place, argv } => return verbs::exec(&name, &place, &argv),
        Verb::Add(add) => verbs::add(add),
        Verb::Rm { name, pod } => verbs::rm(&name, &pod),
        Verb::Capture { name, seconds, marker } => verbs::capture(&name, seconds, &marker),
        Verb::Policy(policy) => verbs::policy(policy),
        Verb::Completion { shell } => completion::print(&Cli::command(), &shell),
        Verb::App { name, stats, servers } => server::run(&name, stats, &servers),
        Verb::Client(client) => client::run(client),
        Verb::NodeInit { boot } => lab::init::run(&boot),
        Verb::SpawnAs { spec } => lab::spawn_as::run(&spec).map(|never| match never {}),
        Verb::Pause => lab::init::pause(),
    }?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn down_takes_the_lab_that_was_named_either_way_and_no_other() {
        let named = |args: &[&str]| match Cli::try_parse_from(args).map(|cli| cli.verb) {
            Ok(Some(Verb::Down { lab, name, all: false })) => Some(lab.unwrap_or(name)),
            _ => None,
        };
        assert_eq!(named(&["culvert-lab", "down", "--name", "mine"]).as_deref(), Some("mine"));
        assert_eq!(named(&["culvert-lab", "down", "mine"]).as_deref(), Some("mine"));
        assert_eq!(named(&["culvert-lab", "down"]).as_deref(), Some("lab"));
        assert_eq!(named(&["culvert-lab", "down", "mine", "--name", "yours"]), None);
        assert_eq!(named(&["culvert-lab", "down", "--all", "--name", "mine"]), None);
    }
}

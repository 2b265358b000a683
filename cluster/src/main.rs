//! `culvert-cluster`: the verbs of `cargo xtask cluster`, which makes what they need and starts this.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use cluster::demo::{self, Demo};
use cluster::mesh::Mesh;
use cluster::{Cluster, Config, status};
use lab::out::say;
use lab::{interrupt, state};

/// A real Kubernetes on this machine: two nodes and a control plane, dual stack.
///
/// The machine's own network, firewall and kernel settings are not touched. The first call builds Kubernetes (minutes) and keeps it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask cluster", bin_name = "cargo xtask cluster", version, after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Name of the cluster
    #[arg(long, default_value = "cluster", global = true)]
    name: String,
}

const AFTER: &str = "Examples:
  cargo xtask cluster up
  cargo xtask cluster up --mesh                      # with Culvert installed
  cargo xtask cluster up --demo                      # and a small shop in it
  cargo xtask cluster status
  cargo xtask cluster shell                          # KUBECONFIG set, kubectl in PATH
  cargo xtask cluster shell -- kubectl get pods -A
  cargo xtask cluster down

docs/cluster.md says what it is made of, and what to do when it does not come up.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make it and leave it up; returns when every node is Ready
    Up {
        /// Nodes
        #[arg(long, default_value_t = 2)]
        nodes: usize,
        /// Install Culvert as well, as built from this checkout
        #[arg(long)]
        mesh: bool,
        /// And a small shop in it: three services and a PostgreSQL
        #[arg(long)]
        demo: bool,
    },
    /// Give every node an image from an archive (docker save, cargo xtask image)
    Load {
        /// The archives
        #[arg(required = true)]
        archives: Vec<std::path::PathBuf>,
    },
    /// Take it away, in whatever state it is
    Down,
    /// What stands: nodes, programs, logs. Ends with 1 when something is not well
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// A shell, or a program, that finds the cluster
    Shell {
        /// The program and its arguments; $SHELL when absent
        #[arg(last = true)]
        argv: Vec<OsString>,
    },
    /// Only make what a cluster needs, and print where it is (done by cargo xtask before this program starts)
    Parts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

fn main() -> ExitCode {
    let Cli { verb, name } = Cli::parse();
    let ended = run(verb, &name);
    interrupt::wait_if_stopping();
    ended.unwrap_or_else(|error| lab::out::end("cluster", &error))
}

fn run(verb: Verb, name: &str) -> Result<ExitCode> {
    match verb {
        Verb::Up { nodes, mesh, demo } => up(name, nodes, mesh || demo, demo)?,
        Verb::Load { archives } => {
            let cluster = Cluster::attach(name)?;
            archives.iter().try_for_each(|archive| cluster.load(archive))?;
        }
        Verb::Down => down(name)?,
        Verb::Status { output } => return show(name, output),
        Verb::Shell { argv } => return shell(name, argv),
        Verb::Parts => drop(cluster::parts::Parts::find()?),
    }
    Ok(ExitCode::SUCCESS)
}

fn up(name: &str, nodes: usize, mesh: bool, has_demo: bool) -> Result<()> {
    let (mesh, demo) = (mesh.then(Mesh::find).transpose()?, has_demo.then(Demo::find).transpose()?);
    interrupt::take_down_on_signal(&state::Dir::of(name)?)?;
    let config = Config { name: name.to_owned(), nodes };
    let cluster = Cluster::up(&config, tell)?;
    if let Some(mesh) = mesh {
        cluster.install(&mesh, tell)?;
    }
    let named = if name == "cluster" { String::new() } else { format!(" --name {name}") };
    if let Some(demo) = demo {
        cluster.demo(&demo, tell)?;
    }
    cluster.keep()?;
    if has_demo {
        say(&shop(&named))?;
    }
    say(&format!(
        "cluster {name} is up. Try:\n  cargo xtask cluster{named} shell -- kubectl get nodes -o wide\n  \
         cargo xtask cluster{named} status\n  cargo xtask cluster{named} down"
    ))
}

/// A step, for whoever waits; nobody need.
fn tell(step: &str) {
    let _ = writeln!(std::io::stderr(), "cluster: {step}");
}

/// What to look at in the demo.
fn shop(named: &str) -> String {
    let kubectl = format!("cargo xtask cluster{named} shell -- kubectl");
    let (shop, mesh) = (demo::NAMESPACE, cluster::mesh::NAMESPACE);
    format!(
        "In the namespace {shop}: front (node 1) asks cart (node 2), which asks stock and writes into PostgreSQL (node 1). Look:\n  \
         {kubectl} logs -n {shop} front --tail 3\n  \
         {kubectl} exec -n {shop} cart -- psql -h db -U shop postgres -c 'select count(*) from orders'\n  \
         {kubectl} exec -n {shop} front -- psql -h db -U shop postgres     # refused: only cart may\n  \
         {kubectl} logs -n {mesh} daemonset/culvert-node-proxy -c worker --tail 5\n"
    )
}

fn down(name: &str) -> Result<()> {
    let dir = state::Dir::of(name)?;
    if let Some(pid) = dir.held_by() {
        anyhow::bail!("cluster {name} is being made by process {pid}: end that first (Ctrl-C there, or kill {pid})");
    }
    dir.down().with_context(|| format!("take cluster {name} down"))?;
    let left = state::leftovers(name);
    ensure!(left.is_empty(), "of cluster {name} is left: {}", left.join(", "));
    say(&format!("cluster {name} is down, nothing is left"))
}

fn show(name: &str, output: Format) -> Result<ExitCode> {
    let status = status::of(&Cluster::attach(name)?);
    match output {
        Format::Table => say(&status.to_string())?,
        Format::Json => say(&serde_json::to_string_pretty(&status)?)?,
    }
    Ok(if status.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// In the control plane's network namespace and nothing else: files, home and processes are the person's own.
fn shell(name: &str, argv: Vec<OsString>) -> Result<ExitCode> {
    let cluster = Cluster::attach(name)?;
    let shell = || vec![std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())];
    let argv = if argv.is_empty() { shell() } else { argv };
    let (program, args) = argv.split_first().context("an empty command")?;
    let kubectl = cluster.parts().kubectl.parent().context("kubectl lies in a directory")?.to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(kubectl).chain(std::env::split_paths(&path)))?;
    let mut command = cluster.command(program.as_ref());
    command.args(args).env("PATH", path).env("CULVERT_CLUSTER", name);
    let start = || command.spawn().with_context(|| format!("start {}", program.display()));
    let status = cluster.lab().fabric().in_netns(start)?.wait()?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

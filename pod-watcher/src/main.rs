//! `pod-watcher`: the node's daemon for pods.
//!
//! Read in the order in which a pod meets it: [`cni`] takes the plugin's call, [`node`] owns what is known and steps [`enrol`],
//! [`sandbox`] works in the pod's netns, [`keepers`] tells node-proxy; [`source`] and [`watch`] say what the world wants; [`install`] puts the plugin
//! on the node. It holds
//! no pod key, parses nothing from the network but what the API server says, and never changes the node's own netns.

mod admin;
mod args;
mod cni;
mod counter;
mod enrol;
mod facts;
mod install;
mod keepers;
mod metrics;
mod node;
mod privileges;
mod sandbox;
mod serve;
mod settle;
mod source;
mod state_dir;
mod status;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use args::{Cli, Command};
use clap::Parser;

/// Blocking work at a time: rules and listeners of pods. Each is well below a millisecond of CPU, and a commit waits for the
/// kernel's grace period; more would only queue there.
const BLOCKING_THREADS: usize = 16;
/// A thread that had nothing to do for so long ends, and with it the free memory that it keeps to itself. Audits come every three
/// seconds and in turn to all threads there are: with a longer time, all that a burst of pods needed would stay.
const BLOCKING_IDLE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Admin(args)) => runtime().and_then(|runtime| runtime.block_on(admin::run(&args))),
        Some(Command::Uninstall(args)) => uninstall(&args).map(|()| ExitCode::SUCCESS),
        None => daemon(cli.run).map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            mesh_daemon::logs::failed("pod-watcher", &error);
            ExitCode::FAILURE
        }
    }
}

fn daemon(args: args::RunArgs) -> anyhow::Result<()> {
    let format = match args.log_format {
        args::LogFormat::Text => mesh_daemon::logs::Format::Text,
        args::LogFormat::Json => mesh_daemon::logs::Format::Json,
    };
    // Sixteen threads that mostly wait for the kernel: with a heap each they kept 25 MB after two hundred pods were gone.
    mesh_net::memory::one_heap();
    // Before any thread exists: capabilities are per thread.
    privileges::limit()?;
    mesh_daemon::logs::init("pod-watcher", format);
    privileges::raise_file_limit();
    runtime()?
        .block_on(serve::run(args))
        .inspect_err(|error| tracing::error!(error = format!("{error:#}"), "pod-watcher ends"))
}

fn uninstall(args: &args::UninstallArgs) -> anyhow::Result<()> {
    mesh_daemon::logs::init("pod-watcher", mesh_daemon::logs::Format::Text);
    let args::UninstallArgs { cni_conf_dir, cni_bin_dir, cni_socket, state_dir, status_dir } = args;
    let _lock = runtime()?.block_on(serve::lock(&cni_socket.with_file_name("pod-watcher.lock")))?;
    let done = install::take_out(cni_conf_dir, cni_bin_dir)?;
    let cleared = install::rules::take_out(status_dir).context("look for pods of this node")?;
    cleared.failed.iter().for_each(|failed| tracing::error!(failed, "rules stay in a pod; they go with it"));
    state_dir::remove(state_dir).with_context(|| format!("remove {}", state_dir.display()))?;
    tracing::info!(dir = %cni_conf_dir.display(), was_there = done, "our plugin is in no CNI chain of this node");
    Ok(())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(BLOCKING_THREADS).thread_keep_alive(BLOCKING_IDLE);
    Ok(builder.build()?)
}

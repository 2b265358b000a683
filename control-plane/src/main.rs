//! Culvert's control plane: watches Kubernetes objects (of the API server or of a directory of manifests), compiles them into the records that the node
//! proxies judge and route by, serves these over delta xDS, and signs workload certificates.
//!
//! The path of a change: `source` → `compile` → `snapshot` → `ads`, and what became of a policy: `compile` → `statuses`. The path of a certificate: `tokens` → `ca` → `mesh_tls`.
//! The authority's key is in this process and in no other; no pod's key ever is.

mod ads;
mod args;
mod ca;
mod compile;
mod incoming;
mod kept;
mod lease;
mod metrics;
mod save;
mod serve;
mod services;
mod snapshot;
mod source;
mod statuses;
mod table;
mod tokens;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser as _;

fn main() -> ExitCode {
    let Cli { command, log_format } = Cli::parse();
    mesh_daemon::logs::init("control-plane", log_format);
    let done = match command {
        Command::Serve(args) => serve(args),
        Command::Compile(args) => save::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: args::ServeArgs) -> anyhow::Result<()> {
    // It holds the signing key: nothing it may ever execute gains more than it has (as every process of the mesh).
    rustix::thread::set_no_new_privs(true)?;
    // Nor may the key end up in a core file, or be read by another process of the same user.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve::run(args))
}

#[cfg(test)]
mod tests;

//! `node-proxy`: one binary, three roles. `keeper` holds what needs capabilities, `worker` moves bytes and holds keys, `admin` asks a
//! running worker. The roles share no memory and trust each other as little as they can.

mod admin;
mod harden;
mod keeper;
mod own_state;
mod seccomp;
mod supervisor;
mod worker;

use std::process::ExitCode;

#[cfg(feature = "jemalloc")]
use anyhow::Context as _;
use clap::{Parser, Subcommand};

// glibc's and other allocators lose a factor of 2-3 in unlucky alignments; this one also gives memory back.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(name = "node-proxy", version, about = "The data plane of one node")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Hold network namespaces and listeners, hand them to the worker (root with SYS_ADMIN and NET_ADMIN).
    Keeper(keeper::Args),
    /// Supervise and run the worker (uid 65532, no capabilities).
    Worker(Box<WorkerArgs>),
    /// Ask the running worker.
    Admin(admin::Args),
    /// Give the worker's user the directory of the last good configuration, once, before the worker starts (root with CHOWN).
    OwnState(own_state::Args),
}

#[derive(clap::Args)]
struct WorkerArgs {
    /// Be the worker itself rather than its supervisor.
    #[arg(long, hide = true)]
    child: bool,
    #[command(flatten)]
    worker: worker::Args,
}

fn main() -> ExitCode {
    let ended = match Cli::parse().role {
        Role::Keeper(args) => keeper::run(args),
        Role::Worker(args) if args.child => be_the_worker(args.worker),
        Role::Worker(args) => supervisor::run(args.worker.log_format),
        Role::OwnState(args) => own_state::run(&args),
        Role::Admin(args) => return admin::run(&args).unwrap_or_else(|error| failed(&error)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    mesh_daemon::logs::failed("node-proxy", error);
    ExitCode::FAILURE
}

/// Hardens this process, then becomes the worker. No thread exists yet: the filters hold for all that come.
fn be_the_worker(args: worker::Args) -> anyhow::Result<()> {
    supervisor::harden_child()?;
    seccomp::install(seccomp::Role::Worker)?;
    #[cfg(feature = "jemalloc")]
    mesh_net::memory::give_back_when_idle().context("start the allocator's thread")?;
    worker::run(args, supervisor::starts())
}

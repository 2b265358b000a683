//! The keeper: holds what needs capabilities (pods' namespaces, their listeners, sockets made there) and hands it to whichever worker
//! is alive. It outlives workers, reads nothing from a network, and believes the worker nothing.
//!
//! Top down: [`serve`] is the loop, [`watcher`] and [`worker`] its two links, [`place`] where the worker dials, [`state`] what it decides, [`hands`] what it holds,
//! [`handover`] how a successor comes by that, [`highest`] what a worker must not go back behind, [`counts`] what it tells of itself.

mod bucket;
mod counts;
mod handover;
mod hands;
mod highest;
mod outbox;
mod place;
mod privileges;
mod serve;
mod state;
mod watcher;
mod worker;

use std::path::PathBuf;

use crate::seccomp;
use anyhow::Context as _;

/// Flags of `node-proxy keeper`; each may also come from the environment.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where pod-watcher listens.
    #[arg(long, env = "CULVERT_WATCHER_SOCKET", default_value = mesh_api::link::proxy::SOCKET)]
    watcher_socket: PathBuf,
    /// Where the worker dials; in a directory that both containers see and only root writes to, setgid to the worker's group.
    #[arg(long, env = "CULVERT_KEEPER_SOCKET", default_value = "/run/node-proxy/keeper.sock")]
    worker_socket: PathBuf,
    /// The user that the worker runs as; nobody else is served.
    #[arg(long, env = "CULVERT_WORKER_UID", default_value_t = 65532)]
    worker_uid: u32,
    /// How this process logs.
    #[arg(long, env = "CULVERT_LOG_FORMAT", default_value = "text")]
    log_format: mesh_daemon::logs::Format,
}

/// Runs the keeper on the calling thread, the only one of its process.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { watcher_socket, worker_socket, worker_uid, log_format } = args;
    mesh_daemon::logs::init("keeper", log_format);
    privileges::settle()?;
    place::close_directory(&worker_socket)?;
    seccomp::install(seccomp::Role::Keeper)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let place = place::Place::take(&worker_socket).with_context(|| {
            format!("listen at {}; does its directory exist, owned by root?", worker_socket.display())
        })?;
        let stop = async {
            match mesh_daemon::signals::stop().await {
                Ok(signal) => signal,
                Err(error) => {
                    tracing::error!(%error, "signals cannot be received");
                    std::future::pending().await
                }
            }
        };
        tracing::info!(socket = %worker_socket.display(), watcher = %watcher_socket.display(), worker_uid, "keeper is up");
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(16) as u8);
        let keeper = serve::Keeper::new(
            state::State::new(threads),
            hands::Hands::new()?,
            watcher::WatcherLink::new(watcher_socket),
            worker::WorkerLink::new(place, worker_uid),
        );
        keeper.run(stop).await;
        Ok(())
    })
}

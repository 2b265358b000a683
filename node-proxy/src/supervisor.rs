//! pid 1 of the worker's container: starts the worker, starts it again at once when it dies, passes SIGTERM and SIGHUP on, reaps.
//!
//! It runs as the worker's user, reads no input and holds nothing: a crash of the worker costs one exec, not a container restart.

mod restarts;

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mesh_daemon::logs::{self, Format};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};

use crate::harden;
use crate::worker::Starts;
use restarts::Restarts;

/// How many workers in a row ended within ten seconds of their start, told to the next one.
const CRASHES: &str = "CULVERT_WORKER_CRASHES";
/// How many workers ended unasked, told to the next one.
const RESTARTS: &str = "CULVERT_WORKER_RESTARTS";
/// The supervisor's pid, for [`harden_child`].
const SUPERVISOR: &str = "CULVERT_SUPERVISOR_PID";

/// In the worker: what became of those before it. From three that ended within ten seconds of their start on, what it loads is suspect.
pub fn starts() -> Starts {
    let told = |name| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    Starts { crashes: told(CRASHES), restarts: told(RESTARTS) }
}

/// In the worker, before its filters: hardens it and ties its life to the supervisor's.
pub fn harden_child() -> anyhow::Result<()> {
    harden::process()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("tie life to the supervisor's")?;
    // The supervisor may have died before the line above; a worker started by hand has none.
    let supervisor = std::env::var(SUPERVISOR).ok().and_then(|text| text.parse::<i32>().ok());
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    anyhow::ensure!(supervisor.is_none() || parent == supervisor, "the supervisor is gone");
    Ok(())
}

/// Supervises until it is asked to stop and the worker has ended.
pub fn run(format: Format) -> anyhow::Result<()> {
    logs::init("supervisor", format);
    harden::process()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let last = runtime.block_on(supervise(&worker_command()?))?;
    match last {
        // Ending by the very signal is how a worker ends that was asked before it listened for it.
        Some(status) if !status.success() && status.signal() != Some(Signal::TERM.as_raw()) => {
            anyhow::bail!("the worker ended badly while stopping: {status}")
        }
        _ => Ok(()),
    }
}

/// What starts a worker: this very binary with the same flags.
#[derive(Debug)]
struct Worker {
    binary: std::path::PathBuf,
    flags: Vec<std::ffi::OsString>,
}

fn worker_command() -> anyhow::Result<Worker> {
    let binary = std::env::current_exe().context("find this binary")?;
    // `node-proxy worker FLAGS…` → `node-proxy worker --child FLAGS…`
    Ok(Worker { binary, flags: std::env::args_os().skip(2).collect() })
}

impl Worker {
    fn start(&self, restarts: &Restarts) -> anyhow::Result<Pid> {
        let mut command = Command::new(&self.binary);
        command.arg0("node-proxy").arg("worker").arg("--child").args(&self.flags);
        command.env(CRASHES, restarts.quick().to_string()).env(RESTARTS, restarts.all().to_string());
        command.env(SUPERVISOR, std::process::id().to_string());
        let child = command.spawn().with_context(|| format!("start {}", self.binary.display()))?;
        // Reaped below together with orphans, which pid 1 inherits.
        Pid::from_raw(i32::try_from(child.id())?).context("a started process has a pid")
    }
}

async fn supervise(worker: &Worker) -> anyhow::Result<Option<ExitStatus>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut children = signal(SignalKind::child())?;
    let mut restarts = Restarts::default();
    let begin = Instant::now();
    let mut running: Option<(Pid, Instant)> = None;
    let mut start_at = Some(begin);
    let mut stopping = false;
    loop {
        // Every branch may be dropped half-way: a signal stays pending for the next call, and a timer loses nothing.
        tokio::select! {
            _ = terminate.recv() => stopping = true,
            _ = interrupt.recv() => stopping = true,
            _ = hangup.recv() => {
                // For the worker's access log. Fails only when it has just ended; the next one opens its file anyway.
                let _ = running.map(|(pid, _)| rustix::process::kill_process(pid, Signal::HUP));
            }
            _ = children.recv() => {}
            () = until(start_at) => {
                start_at = None;
                match worker.start(&restarts) {
                    Ok(pid) => {
                        tracing::info!(pid = pid.as_raw_nonzero().get(), quick_crashes = restarts.quick(), "worker started");
                        running = Some((pid, Instant::now()));
                    }
                    Err(error) => {
                        let wait = restarts.ended(begin.elapsed(), Duration::ZERO);
                        tracing::error!(error = format!("{error:#}"), ?wait, "worker cannot be started");
                        start_at = Some(Instant::now() + wait.max(restarts::LONGEST));
                    }
                }
            }
        }
        let mut last = None;
        while let Some((pid, status)) = reap() {
            let Some((_, since)) = running.take_if(|(worker, _)| *worker == pid) else { continue };
            last = Some(status);
            if stopping {
                break;
            }
            let lived = since.elapsed();
            let wait = restarts.ended(begin.elapsed(), lived);
            tracing::error!(%status, ?lived, ?wait, "worker ended; starting it again");
            start_at = Some(Instant::now() + wait);
        }
        if stopping {
            match running {
                None => return Ok(last),
                Some((pid, _)) => {
                    tracing::info!("asked to stop; passing it on to the worker");
                    // Fails only when it has just ended, which the next reaping finds.
                    let _ = rustix::process::kill_process(pid, Signal::TERM);
                    start_at = None;
                }
            }
        }
    }
}

/// One child that has ended, ours or an orphan's.
fn reap() -> Option<(Pid, ExitStatus)> {
    // An error is ECHILD: there are no children at all.
    let (pid, status): (Pid, WaitStatus) = rustix::process::wait(WaitOptions::NOHANG).ok().flatten()?;
    Some((pid, ExitStatus::from_raw(status.as_raw())))
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

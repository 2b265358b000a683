//! The bench's own client and server: as little between the clock and the socket as there can be, so that what is measured is
//! the path and not the tool. One thread each, blocking or epoll, pinned; no runtime.

mod bulk;
mod connect;
mod exchange;
mod hold;
mod latency;
mod pace;
mod poll;
mod server;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};
use serde::{Deserialize, Serialize};

pub use hold::now;
pub use latency::Latency;
pub use server::serve;

/// What a client is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Given back in the report, so that no report is taken for another's.
    pub id: u64,
    /// The core to stay on.
    pub core: usize,
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub work: Work,
}

/// Kinds of load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Work {
    /// Sends `size` bytes and waits until they are back, over and over on open connections.
    Exchange {
        /// Bytes each way.
        size: usize,
        /// Connections.
        connections: usize,
        /// For how long.
        lasts: Duration,
        /// So many exchanges per second, each counted from the moment it was due; `None`: as fast as answers come.
        rate: Option<f64>,
    },
    /// Connects, sends `size` bytes, waits until they are back, closes.
    Connect {
        /// Bytes each way.
        size: usize,
        /// Connections at a time.
        at_once: usize,
        /// For how long at most.
        lasts: Duration,
        /// So many connections per second; `None`: as fast as they come.
        rate: Option<f64>,
        /// Ends after so many.
        limit: Option<u64>,
        /// Reports the rate of each block of so many.
        block: Option<u64>,
    },
    /// Moves as many bytes as go.
    Bulk {
        /// Connections.
        streams: usize,
        /// From the server to the client.
        down: bool,
        /// For how long.
        lasts: Duration,
    },
    /// One exchange on one connection that nothing has gone before; then waits to be told to end.
    First {
        /// Bytes each way.
        size: usize,
    },
    /// Opens connections, sees one byte come back on each, and then holds them open in silence until told to end or until all
    /// have been cut.
    Hold {
        /// Connections.
        connections: usize,
    },
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// [`Spec::id`]
    pub id: u64,
    /// Exchanges or connections that succeeded, or connections that were open.
    pub done: u64,
    /// Those that failed.
    pub failed: u64,
    /// Why the first of them failed.
    pub error: Option<String>,
    /// Payload bytes that arrived.
    pub bytes: u64,
    /// How long it took, seconds.
    pub seconds: f64,
    /// Times of each.
    pub latency: Option<Latency>,
    /// Rate of each block, 1/s; of the last one too if it did not come to its end.
    pub blocks: Vec<f64>,
    /// The moments (`CLOCK_MONOTONIC`, ns) at which a first connection was begun and answered.
    pub span: Option<(u64, u64)>,
    /// Connections found cut, with the moments (`CLOCK_MONOTONIC`, ns) of the first and the last.
    pub cut: Option<(u64, u64, u64)>,
}

/// The line with which a client says that its connections are open.
pub const READY: &str = "ready";
/// The line that lets it begin.
pub const GO: &str = "go";
/// The line with which [`Work::First`] says that it had its answer.
pub const ANSWERED: &str = "answered";
/// The line that lets [`Work::First`] and [`Work::Hold`] end.
pub const END: &str = "end";

/// Descriptors a client or server may have open: twice the 10,000 connections it holds at most.
const DESCRIPTORS: u64 = 20_000;

/// Longest a connection may take to come to be before it counts as failed.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
/// Longest the peer may be silent.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);

/// Runs the verb `client`.
pub fn client(spec: &str) -> Result<()> {
    let spec: Spec = serde_json::from_str(spec).context("parse the client's task")?;
    raise_descriptors()?;
    let mut cores = CpuSet::new();
    cores.set(spec.core);
    sched_setaffinity(None, &cores).with_context(|| format!("stay on core {}", spec.core))?;
    // By default the kernel may wake a thread 50 us after its timer was due.
    set_current_timer_slack(NonZeroU64::new(1)).context("ask for exact timers")?;
    let mut report = match &spec.work {
        Work::Exchange { size, connections: 1, lasts, rate: None } => exchange::one(spec.to, *size, *lasts)?,
        Work::Exchange { size, connections, lasts, rate } => {
            exchange::many(spec.to, *size, *connections, *lasts, *rate)?
        }
        Work::Connect { size, at_once: 1, lasts, rate: None, limit: None, block: None } => {
            connect::one(spec.to, *size, *lasts)?
        }
        Work::Connect { size, at_once, lasts, rate, limit, block } => {
            let plan = connect::Plan {
                size: *size,
                at_once: *at_once,
                lasts: *lasts,
                rate: *rate,
                limit: *limit,
                block: *block,
            };
            connect::many(spec.to, &plan)?
        }
        Work::Bulk { streams, down, lasts } => bulk::run(spec.to, *streams, *down, *lasts)?,
        Work::First { size } => connect::first(spec.to, *size)?,
        Work::Hold { connections } => hold::run(spec.to, *connections)?,
    };
    report.id = spec.id;
    say(&serde_json::to_string(&report)?)
}

/// One line on standard output, at once.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("write to standard output")
}

/// Says that everything is open and waits to be told to begin.
fn ready() -> Result<()> {
    say(READY)?;
    let told = told()?;
    anyhow::ensure!(told == GO, "told {told:?} instead of {GO}");
    Ok(())
}

/// The next line of standard input and not a byte beyond it: a client that was slow finds [`GO`] and [`END`] there together, and
/// what lies in a buffer of ours wakes no epoll. Empty at the end of the input.
fn told() -> Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    let mut next =
        || rustix::io::retry_on_intr(|| rustix::io::read(std::io::stdin(), &mut byte)).map(|got| (got, byte));
    while let (1, [byte]) = next().context("read standard input")? {
        if byte == b'\n' {
            break;
        }
        line.push(byte);
    }
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}

/// For this process alone. A machine may not let even root go beyond its hard limit; then that is what there is.
fn raise_descriptors() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let set =
        |limit: u64| setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit.max(maximum)) });
    set(DESCRIPTORS).or_else(|_| set(maximum.min(DESCRIPTORS))).context("raise the limit of descriptors")
}

/// A connection as every client here makes it.
fn dial(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, CONNECT).with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// Whether `lasts` has passed.
fn over(start: Instant, lasts: Duration) -> bool {
    start.elapsed() >= lasts
}

impl Report {
    /// Counts a failure; the first one's reason is kept.
    fn fail(&mut self, error: impl std::fmt::Display) {
        self.failed += 1;
        self.error.get_or_insert_with(|| error.to_string());
    }
}

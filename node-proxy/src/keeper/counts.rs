//! What the keeper counts. It has no network: pod-watcher is told over the link, and offers it to whoever scrapes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_api::link::proxy::KeeperStats;
use mesh_daemon::process::{self, Usage};
use mesh_model::Reason;
use tokio::time::Instant;

/// Between two reports: under the shortest interval that people scrape with.
const PERIOD: Duration = Duration::from_secs(5);

/// Counts since the start, and when they are told next.
#[derive(Debug)]
pub struct Counts {
    /// What is only ever counted up; the rest is filled in by [`Counts::report`].
    pub so_far: KeeperStats,
    next: Instant,
}

/// What the keeper holds now.
#[derive(Clone, Copy, Debug)]
pub struct Holding {
    /// Pods.
    pub pods: usize,
    /// Spare sock_diag sockets.
    pub spare_diag: usize,
    /// Whether certificates are kept.
    pub certificates: bool,
}

impl Counts {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let so_far = KeeperStats {
            start_millis: u64::try_from(start.as_millis()).unwrap_or(u64::MAX),
            version: process::VERSION.to_owned(),
            ..KeeperStats::default()
        };
        Self { so_far, next: Instant::now() }
    }

    /// When the next report is due.
    pub fn due(&self) -> Instant {
        self.next
    }

    /// The next report is due at once: somebody new listens.
    pub fn soon(&mut self) {
        self.next = Instant::now();
    }

    /// Sockets were made, and perhaps fewer than the worker asked for.
    pub fn minted(&mut self, sockets: usize, short: Option<Reason>) {
        self.so_far.mint_requests += 1;
        self.so_far.minted += sockets as u64;
        if let Some(reason) = short {
            add(&mut self.so_far.mint_short, reason.as_str());
        }
    }

    /// The state refused a request of the worker by itself.
    pub fn mint_refused(&mut self, reason: &str) {
        self.so_far.mint_requests += 1;
        add(&mut self.so_far.mint_short, reason);
    }

    /// A request of pod-watcher was refused.
    pub fn refused(&mut self, reason: &str) {
        add(&mut self.so_far.refused, reason);
    }

    /// The whole, with what is held and used now.
    pub fn report(&mut self, holding: Holding) -> KeeperStats {
        self.next = Instant::now() + PERIOD;
        let Holding { pods, spare_diag, certificates } = holding;
        let Usage { cpu, resident_bytes, virtual_bytes: _, open_fds, max_fds, start_seconds: _, threads: _ } =
            Usage::now();
        KeeperStats {
            pods: pods as u64,
            spare_diag: spare_diag as u64,
            certificates_kept: certificates,
            worker_up: self.so_far.workers > self.so_far.workers_lost,
            cpu_micros: u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX),
            resident_bytes,
            open_fds,
            max_fds,
            ..self.so_far.clone()
        }
    }
}

fn add(to: &mut BTreeMap<String, u64>, reason: &str) {
    // Reasons are the closed set of our own code: the map cannot grow beyond it.
    *to.entry(reason.to_owned()).or_default() += 1;
}

//! What one HTTP/2 connection, its driver and its streams share: how many streams are open, and how it ended.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use mesh_model::Reason;
use tokio::sync::Notify;
use tokio::time::Instant;

/// State of one connection, on one thread; atomics only because futures must be `Send`.
#[derive(Debug)]
pub(super) struct Shared {
    streams: AtomicUsize,
    opened: AtomicU64,
    idle_since: Mutex<Instant>,
    gone: AtomicBool,
    fault: OnceLock<Reason>,
    /// The driver looks at the number of streams again.
    pub(super) changed: Notify,
    /// The driver ends the connection at once.
    pub(super) kill: Notify,
}

impl Shared {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            streams: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            idle_since: Mutex::new(Instant::now()),
            gone: AtomicBool::new(false),
            fault: OnceLock::new(),
            changed: Notify::new(),
            kill: Notify::new(),
        })
    }

    /// Counts one more stream if there are fewer than `limit`. Callers hold the pool's lock or are the only driver.
    pub(super) fn reserve(self: &Arc<Self>, limit: usize) -> Option<Open> {
        let before = self.streams.load(Ordering::Relaxed);
        if before >= limit || self.gone.load(Ordering::Relaxed) {
            return None;
        }
        self.streams.store(before + 1, Ordering::Relaxed);
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
        Some(Open(self.clone()))
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// How many streams were ever opened.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Since when no stream has been open; `None` while one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.streams() == 0).then(|| *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes no new streams from now on.
    pub(super) fn retire(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Notes why the connection failed; the first cause counts.
    pub(super) fn fail(&self, reason: Reason) {
        let _ = self.fault.set(reason);
    }

    /// Why it failed, as far as the TLS layer said.
    pub(super) fn fault(&self) -> Option<Reason> {
        self.fault.get().copied()
    }
}

/// One open stream, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        self.0.changed.notify_one();
    }
}

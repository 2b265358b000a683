//! What is known of each identity, behind a short lock; shared by those who ask and the task that makes attempts.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_model::Identity;
use mesh_tls::WorkloadCert;
use rand::Rng;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::schedule::{self, Priority, WAITING_RETRY};
use super::{CertConfig, Credentials};

/// An identity without a pod is forgotten after this time: long enough for a pod that is replaced and for the snapshot after a
/// start, in which pods arrive one by one.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(30);

/// The wall clock.
pub(super) type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// See the module.
pub(super) struct Inner {
    pub(super) config: CertConfig,
    pub(super) has_signer: bool,
    pub(super) table: Mutex<BTreeMap<Identity, Entry>>,
    /// The task looks at the table again.
    pub(super) changed: Notify,
    /// The wall clock, for the age of certificates.
    pub(super) clock: Clock,
    pub(super) attempts: AtomicU64,
    pub(super) failures: AtomicU64,
}

/// One identity.
pub(super) struct Entry {
    pub(super) wanted: bool,
    pub(super) unwanted_since: Instant,
    pub(super) current: Option<Arc<Credentials>>,
    pub(super) running: bool,
    /// The next attempt by backoff or half-life.
    pub(super) next: Instant,
    pub(super) failed_at: Option<Instant>,
    /// When `current` was put in place.
    pub(super) installed_at: Option<Instant>,
    pub(super) failures: u32,
    pub(super) last_error: Option<String>,
    pub(super) waiting: usize,
    pub(super) news: watch::Sender<u64>,
}

/// A connection that waits, counted until it is dropped.
pub(super) struct Waiter {
    inner: Arc<Inner>,
    identity: Identity,
    pub(super) news: watch::Receiver<u64>,
}

impl Waiter {
    pub(super) fn new(inner: &Arc<Inner>, identity: &Identity) -> Self {
        let news = {
            let mut table = inner.lock();
            let entry = table.entry(identity.clone()).or_insert_with(Entry::new);
            entry.waiting += 1;
            entry.news.subscribe()
        };
        inner.changed.notify_one();
        Self { inner: inner.clone(), identity: identity.clone(), news }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(entry) = self.inner.lock().get_mut(&self.identity) {
            entry.waiting = entry.waiting.saturating_sub(1);
            entry.unwanted_since = Instant::now();
        }
    }
}

impl Entry {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            wanted: false,
            unwanted_since: now,
            current: None,
            running: false,
            next: now,
            failed_at: None,
            installed_at: None,
            failures: 0,
            last_error: None,
            waiting: 0,
            news: watch::Sender::new(0),
        }
    }

    /// What should be done for it and when; `None`: nothing, or it is being done.
    pub(super) fn due(&self, usable: bool) -> Option<(Priority, Instant)> {
        if self.running {
            return None;
        }
        if self.waiting > 0 && !usable {
            // One that was put in place and is not usable was overtaken by the wall clock: `next` is of a clock that may have stood still.
            let last = self.failed_at.max(self.installed_at);
            let soon = last.map_or(self.next, |at| self.next.min(at + WAITING_RETRY));
            return Some((Priority::Waiting, soon));
        }
        let priority = if self.current.is_some() { Priority::Renewal } else { Priority::Prefetch };
        self.wanted.then_some((priority, self.next))
    }
}

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<Identity, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn usable(&self, identity: &Identity) -> Option<Arc<Credentials>> {
        let table = self.lock();
        let current = table.get(identity)?.current.as_ref()?;
        (!current.cert.expired((self.clock)())).then(|| current.clone())
    }

    /// Puts a certificate in place and tells those who wait.
    pub(super) fn install(&self, cert: WorkloadCert, now: SystemTime) {
        let life = cert.not_after().duration_since(cert.not_before()).unwrap_or_default();
        let until_half = cert.half_life().duration_since(now).unwrap_or_default();
        let renew = schedule::renew_in(until_half, life, rand::rng().random());
        let credentials = Arc::new(Credentials::new(cert, &self.config.trust_domains));
        let mut table = self.lock();
        let entry = table.entry(credentials.identity.clone()).or_insert_with(Entry::new);
        entry.current = Some(credentials);
        entry.next = Instant::now() + renew;
        entry.failed_at = None;
        entry.installed_at = Some(Instant::now());
        entry.failures = 0;
        entry.last_error = None;
        entry.news.send_modify(|count| *count += 1);
    }
}

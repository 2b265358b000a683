//! The manager: what others ask it, and the one task that makes attempts in the order of `schedule`.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mesh_daemon::{causes, tasks};
use mesh_model::Identity;
use mesh_tls::WorkloadCert;
use rand::Rng;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fetch::{self, ControlPlaneSigner, SignError, Signer};
use super::keep::{self, Keep, RestoreError};
use super::schedule::{self, Priority};
use super::table::{Clock, Entry, FORGET_AFTER, Inner, Waiter};
use super::{CertConfig, CertError, CertState, Credentials};

/// Certificates that come within this time go into one memfd.
const KEEP_DEBOUNCE: Duration = Duration::from_millis(100);

/// The certificates of this node's identities. Clones share them.
#[derive(Clone)]
pub struct Certificates {
    inner: Arc<Inner>,
}

/// Starts the manager's task in the group.
pub fn start(config: CertConfig, keep: Option<Keep>, group: &tasks::Handle) -> Certificates {
    let signer = config.control_plane.clone().map(|plane| Arc::new(ControlPlaneSigner::new(plane)) as Arc<dyn Signer>);
    start_with(config, signer, keep, Arc::new(SystemTime::now), group)
}

/// [`start`] with a signer and a clock of the caller's.
pub(in crate::worker) fn start_with(
    config: CertConfig,
    signer: Option<Arc<dyn Signer>>,
    keep: Option<Keep>,
    clock: Clock,
    group: &tasks::Handle,
) -> Certificates {
    let inner = Arc::new(Inner {
        config,
        has_signer: signer.is_some(),
        table: Mutex::default(),
        changed: Notify::new(),
        clock,
        attempts: Default::default(),
        failures: Default::default(),
    });
    let task = Task { inner: inner.clone(), signer, keep, running: JoinSet::new(), keep_at: None };
    group.spawn("certificates", task.run());
    Certificates { inner }
}

impl Certificates {
    /// The credentials of an identity, at once if they are there, else within `wait`.
    pub async fn get(&self, identity: &Identity, wait: Duration) -> Result<Arc<Credentials>, CertError> {
        if let Some(have) = self.inner.usable(identity) {
            return Ok(have);
        }
        Box::pin(self.wait_for(identity, wait)).await
    }

    async fn wait_for(&self, identity: &Identity, wait: Duration) -> Result<Arc<Credentials>, CertError> {
        if self.inner.has_signer {
            let mut waiter = Waiter::new(&self.inner, identity);
            let had = tokio::time::timeout(wait, async {
                loop {
                    if let Some(have) = self.inner.usable(identity) {
                        return have;
                    }
                    if waiter.news.changed().await.is_err() {
                        // The entry was replaced: join the new one.
                        waiter = Waiter::new(&self.inner, identity);
                    }
                }
            });
            if let Ok(have) = had.await {
                return Ok(have);
            }
        }
        let table = self.inner.lock();
        let entry = table.get(identity);
        let identity = identity.clone();
        let last = match entry.and_then(|entry| entry.last_error.clone()) {
            None if !self.inner.has_signer => Some("no control plane is configured".to_owned()),
            last => last,
        };
        Err(match entry.and_then(|entry| entry.current.as_ref()) {
            Some(_) => CertError::Expired { identity, last },
            None => CertError::Unavailable { identity, waited: wait, last },
        })
    }

    /// The identities of this node's pods: those without a certificate are fetched, those no longer named are forgotten a
    /// little later.
    pub fn want(&self, identities: &BTreeSet<Identity>) {
        let now = Instant::now();
        let mut table = self.inner.lock();
        for (identity, entry) in table.iter_mut() {
            let wanted = identities.contains(identity);
            if entry.wanted && !wanted {
                entry.unwanted_since = now;
            }
            entry.wanted = wanted;
        }
        for identity in identities {
            table.entry(identity.clone()).or_insert_with(Entry::new).wanted = true;
        }
        drop(table);
        self.inner.changed.notify_one();
    }

    /// Takes over what an earlier worker left with the keeper; how many certificates are usable.
    pub fn restore(&self, memfd: OwnedFd) -> Result<usize, RestoreError> {
        let (certs, unreadable) = keep::read(memfd)?;
        let now = (self.inner.clock)();
        let mut usable = 0;
        for cert in certs {
            let newer = {
                let table = self.inner.lock();
                let held = table.get(cert.identity()).and_then(|entry| entry.current.as_ref());
                held.is_none_or(|held| held.cert.not_after() < cert.not_after())
            };
            // The trust domain may have been reconfigured between the two workers.
            let ours = self.inner.config.trust_domains.accepts(cert.identity().trust_domain());
            if newer && ours && !cert.expired(now) {
                usable += 1;
                self.inner.install(cert, now);
            }
        }
        tracing::info!(usable, unreadable, "kept certificates restored");
        self.inner.changed.notify_one();
        Ok(usable)
    }

    /// All identities, for the admin socket.
    pub fn state(&self) -> Vec<CertState> {
        let now = Instant::now();
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let describe = |(identity, entry): (&Identity, &Entry)| CertState {
            identity: identity.to_string(),
            wanted: entry.wanted,
            serial: entry.current.as_ref().map(|current| current.cert.serial()),
            not_before: entry.current.as_ref().map(|current| seconds(current.cert.not_before())),
            not_after: entry.current.as_ref().map(|current| seconds(current.cert.not_after())),
            next_attempt_in: (!entry.running).then(|| entry.next.saturating_duration_since(now).as_secs()),
            waiting: entry.waiting,
            failures: entry.failures,
            last_error: entry.last_error.clone(),
        };
        self.inner.lock().iter().map(describe).collect()
    }

    /// Attempts made and attempts failed so far.
    pub fn counters(&self) -> (u64, u64) {
        use std::sync::atomic::Ordering::Relaxed;
        (self.inner.attempts.load(Relaxed), self.inner.failures.load(Relaxed))
    }
}

/// The manager's task.
struct Task {
    inner: Arc<Inner>,
    signer: Option<Arc<dyn Signer>>,
    keep: Option<Keep>,
    running: JoinSet<(Identity, Result<WorkloadCert, SignError>)>,
    keep_at: Option<Instant>,
}

impl Task {
    async fn run(mut self) {
        loop {
            self.forget();
            let wake = self.start_due();
            let wake = [wake, self.keep_at].into_iter().flatten().min();
            // Safe to drop half-way: `join_next` and `notified` lose nothing, the rest is a clock.
            tokio::select! {
                () = self.inner.changed.notified() => {}
                Some(done) = self.running.join_next(), if !self.running.is_empty() => self.note(done),
                () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
            if self.keep_at.is_some_and(|at| at <= Instant::now()) {
                self.keep_at = None;
                self.hand_over().await;
            }
        }
    }

    /// Starts every attempt that is due and has room; when to look again.
    fn start_due(&mut self) -> Option<Instant> {
        let signer = self.signer.clone()?;
        let now = Instant::now();
        let wall = (self.inner.clock)();
        let mut table = self.inner.lock();
        let mut due: Vec<(Priority, Instant, Identity)> = Vec::new();
        let mut later: Option<Instant> = None;
        for (identity, entry) in table.iter() {
            let usable = entry.current.as_ref().is_some_and(|current| !current.cert.expired(wall));
            match entry.due(usable) {
                Some((priority, at)) if at <= now => due.push((priority, at, identity.clone())),
                Some((_, at)) => later = Some(later.map_or(at, |before| before.min(at))),
                None => {}
            }
            if !entry.wanted && entry.waiting == 0 && !entry.running {
                let at = entry.unwanted_since + FORGET_AFTER;
                later = Some(later.map_or(at, |before| before.min(at)));
            }
        }
        due.sort();
        for (priority, _, identity) in due {
            if self.running.len() >= priority.limit() {
                // Looked at again when an attempt ends.
                break;
            }
            let Some(entry) = table.get_mut(&identity) else { continue };
            entry.running = true;
            self.inner.attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let (signer, validity) = (signer.clone(), self.inner.config.validity);
            self.running.spawn(async move {
                let result = fetch::attempt(&*signer, &identity, validity).await;
                (identity, result)
            });
        }
        later
    }

    /// Records the end of an attempt.
    fn note(&mut self, done: Result<(Identity, Result<WorkloadCert, SignError>), tokio::task::JoinError>) {
        let (identity, result) = match done {
            Ok(done) => done,
            Err(error) => {
                // Only a panic ends an attempt so. Which identity it was is not known: all that run count as not running, and
                // the worst is one attempt too many.
                tracing::error!(%error, "an attempt at a certificate panicked");
                self.inner.lock().values_mut().for_each(|entry| entry.running = false);
                return;
            }
        };
        let now = Instant::now();
        let failed = {
            let mut table = self.inner.lock();
            let Some(entry) = table.get_mut(&identity) else { return };
            entry.running = false;
            match &result {
                Ok(_) => None,
                Err(error) => {
                    entry.failures = entry.failures.saturating_add(1);
                    entry.failed_at = Some(now);
                    entry.next = now + schedule::backoff(entry.failures, entry.current.is_some(), rand::rng().random());
                    entry.last_error = Some(causes(error));
                    Some(entry.failures)
                }
            }
        };
        match (result, failed) {
            (Ok(cert), _) => {
                tracing::info!(%identity, serial = cert.serial(), "certificate");
                self.inner.install(cert, (self.inner.clock)());
                self.keep_at.get_or_insert(now + KEEP_DEBOUNCE);
            }
            (Err(error), failures) => {
                self.inner.failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tracing::warn!(%identity, error = causes(&error), failures, "no certificate");
            }
        }
    }

    /// Drops what no pod has had for a while.
    fn forget(&mut self) {
        let now = Instant::now();
        let mut dropped = false;
        self.inner.lock().retain(|identity, entry| {
            let stays = entry.wanted || entry.waiting > 0 || entry.running || now < entry.unwanted_since + FORGET_AFTER;
            if !stays {
                tracing::info!(%identity, "identity forgotten with its last pod");
                dropped |= entry.current.is_some();
            }
            stays
        });
        if dropped {
            self.keep_at.get_or_insert(now + KEEP_DEBOUNCE);
        }
    }

    /// Gives all certificates to the keeper.
    async fn hand_over(&mut self) {
        let Some(keep) = &self.keep else { return };
        let certs: Vec<Arc<Credentials>> =
            self.inner.lock().values().filter_map(|entry| entry.current.clone()).collect();
        let result = match keep::write(certs.iter().map(|credentials| &*credentials.cert)) {
            Ok(memfd) => tokio::time::timeout(Duration::from_secs(1), keep(memfd)).await.unwrap_or_else(|_| {
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the keeper does not take it"))
            }),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "certificates are not kept for a successor");
        }
    }
}

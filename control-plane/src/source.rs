//! The file source: a watched directory of manifests and the token file, read again when anything changes there.
//!
//! Everything is read and compiled anew on each change: thousands of objects take milliseconds, and there is no state that could
//! drift. What does not differ from before is not published.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::manifests::{Objects, load_dir};
use mesh_daemon::{dir, drain, ready};
use tokio::sync::watch;

use crate::compile::{CompileConfig, compile};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::tokens;

/// Looks again without being told, for what notification misses (a directory replaced as a whole, an overflow, a network file
/// system). Nothing is published if nothing changed.
const ANYWAY: Duration = Duration::from_secs(30);

/// What the source reads and where it goes.
pub struct Source {
    dir: PathBuf,
    config: Arc<CompileConfig>,
    tokens: tokens::Writer,
    snapshots: watch::Sender<Arc<Snapshot>>,
    metrics: Metrics,
    last: Arc<Objects>,
    /// Complaints already logged, so that each is logged when it appears and not at every reload.
    known: BTreeSet<String>,
    tokens_broken: bool,
    waiting: Option<ready::Latch>,
}

impl Source {
    /// Reads nothing yet.
    pub fn new(
        dir: &Path,
        config: CompileConfig,
        tokens: tokens::Writer,
        metrics: Metrics,
        readiness: &ready::Readiness,
    ) -> (Self, watch::Receiver<Arc<Snapshot>>) {
        let (snapshots, receiver) = watch::channel(Arc::default());
        let source = Self {
            dir: dir.to_owned(),
            config: Arc::new(config),
            tokens,
            snapshots,
            metrics,
            last: Arc::default(),
            known: BTreeSet::new(),
            tokens_broken: false,
            waiting: Some(readiness.latch("manifests")),
        };
        (source, receiver)
    }

    /// Reads, then follows until the drain is asked for.
    pub async fn run(mut self, drain: drain::Watch) {
        loop {
            // Watching before reading: a change in between is not lost.
            let watched = self.watch();
            self.read().await;
            let mut watched = match watched {
                Ok(watched) => Some(watched),
                Err(error) => {
                    tracing::error!(dir = %self.dir.display(), %error, "watch manifests; looking again every 30 s");
                    None
                }
            };
            let told = async {
                match &mut watched {
                    Some((manifests, Some(tokens))) => tokio::select! {
                        changed = manifests.changed() => changed,
                        changed = tokens.changed() => changed,
                    },
                    Some((manifests, None)) => manifests.changed().await,
                    None => std::future::pending().await,
                }
            };
            // Each branch may be dropped: what changed is found by reading, not by the notification.
            tokio::select! {
                biased;
                () = drain.asked() => return,
                changed = told => if let Err(error) = changed {
                    tracing::warn!(dir = %self.dir.display(), %error, "watching the manifests failed; starting over");
                },
                () = tokio::time::sleep(ANYWAY) => {}
            }
        }
    }

    /// Watches the manifests' directory, and the tokens' one where it is another.
    fn watch(&self) -> io::Result<(dir::Watch, Option<dir::Watch>)> {
        let manifests = dir::Watch::new(&self.dir)?;
        let elsewhere =
            self.tokens.path().parent().filter(|parent| *parent != self.dir && !parent.as_os_str().is_empty());
        Ok((manifests, elsewhere.map(dir::Watch::new).transpose()?))
    }

    async fn read(&mut self) {
        match self.tokens.reload() {
            Ok(count) => {
                self.metrics.tokens_good.set(1);
                if self.tokens_broken {
                    tracing::info!(count, "tokens can be read again");
                }
                self.tokens_broken = false;
            }
            Err(error) => {
                self.metrics.tokens_good.set(0);
                if !self.tokens_broken {
                    tracing::error!(%error, "tokens cannot be read; those known before stay");
                }
                self.tokens_broken = true;
            }
        }
        let started = Instant::now();
        let (dir, last, config) = (self.dir.clone(), self.last.clone(), self.config.clone());
        let before = self.snapshots.borrow().clone();
        let worked = tokio::task::spawn_blocking(move || {
            let (objects, rejected) = load_dir(&dir, &last);
            let compiled = compile(&objects, &rejected, &config);
            let snapshot = Snapshot::new(&compiled, &before);
            (objects, rejected, compiled.problems, snapshot)
        });
        let (objects, rejected, problems, snapshot) = match worked.await {
            Ok(done) => done,
            Err(error) => {
                // A panic while compiling: a bug, but not one that may take the last good configuration away.
                tracing::error!(%error, "compiling the manifests failed; the configuration before stays");
                return;
            }
        };
        self.last = Arc::new(objects);
        self.metrics.source_read();
        self.metrics.rejected.set(rejected.len() as i64);
        self.metrics.problems.set(problems.len() as i64);
        self.complain(rejected.iter().map(ToString::to_string), problems.iter().map(ToString::to_string));
        self.publish(snapshot, started);
    }

    /// Logs what is new among the complaints, and what is over.
    fn complain(&mut self, rejected: impl Iterator<Item = String>, problems: impl Iterator<Item = String>) {
        let mut now = BTreeSet::new();
        for text in rejected {
            if !self.known.contains(&text) {
                tracing::error!("document refused: {text}");
            }
            now.insert(text);
        }
        for text in problems {
            if !self.known.contains(&text) {
                tracing::warn!("{text}");
            }
            now.insert(text);
        }
        for over in self.known.difference(&now) {
            tracing::info!("no longer: {over}");
        }
        self.known = now;
    }

    fn publish(&mut self, snapshot: Snapshot, started: Instant) {
        let first = self.waiting.take();
        let (generation, addresses, policies) =
            (snapshot.generation, snapshot.addresses.len(), snapshot.policies.len());
        let changed = self.snapshots.send_if_modified(|current| {
            let changed = current.generation == 0 || !current.same_as(&snapshot);
            if changed {
                *current = Arc::new(snapshot);
            }
            changed
        });
        if changed {
            let took = started.elapsed();
            self.metrics.compile_seconds.observe(took.as_secs_f64());
            self.metrics.published(generation, addresses, policies);
            tracing::info!(generation, addresses, policies, took = ?took, "configuration published");
        }
        drop(first);
    }
}

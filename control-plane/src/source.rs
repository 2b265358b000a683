//! From the source of objects to what is served: whatever changed there is compiled, and what differs is published.
//!
//! What a change may have touched is compiled again ([`Compiler`]). A compilation that takes long is followed by as long a rest, in which
//! changes gather.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::Rejected;
use mesh_daemon::{drain, ready};
use mesh_kube::Source;
use tokio::sync::watch;

use crate::compile::{CompileConfig, Compiler};
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::statuses::{Needed, needed};

/// Longest rest between compilations: well below the second in which a policy must bite.
const REST: Duration = Duration::from_millis(300);
/// After a compilation that panicked: a bug, and of an object that may change.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// What is compiled and where it goes.
pub struct Compiling<S> {
    source: S,
    config: Arc<CompileConfig>,
    /// Away while it compiles; if that panics, a new one compiles everything.
    compiler: Compiler,
    snapshots: watch::Sender<Arc<Snapshot>>,
    metrics: Metrics,
    /// Complaints already logged, so that each is logged when it appears and not at every reload.
    known: BTreeSet<String>,
    /// Where what has to be told of objects goes, if they are on an API server.
    statuses: Option<watch::Sender<Arc<Vec<Needed>>>>,
    waiting: Option<ready::Latch>,
}

impl<S: Source> Compiling<S> {
    /// Reads nothing yet.
    pub fn new(
        source: S,
        config: CompileConfig,
        metrics: Metrics,
        readiness: &ready::Readiness,
    ) -> (Self, watch::Receiver<Arc<Snapshot>>) {
        let (snapshots, receiver) = watch::channel(Arc::default());
        let waiting = Some(readiness.latch("manifests"));
        let config = Arc::new(config);
        let compiling = Self {
            source,
            config,
            compiler: Compiler::default(),
            snapshots,
            metrics,
            known: BTreeSet::new(),
            statuses: None,
            waiting,
        };
        (compiling, receiver)
    }

    /// What has to be told of objects, each time it was compiled.
    pub fn statuses(&mut self) -> watch::Receiver<Arc<Vec<Needed>>> {
        let (send, receive) = watch::channel(Arc::default());
        self.statuses = Some(send);
        receive
    }

    /// Reads, then follows until the drain is asked for.
    pub async fn run(mut self, drain: drain::Watch) {
        loop {
            // Each branch may be dropped: what changed is found by reading.
            tokio::select! {
                biased;
                () = drain.asked() => return,
                () = self.source.changed() => {}
            }
            let begun = Instant::now();
            let rest = match self.read(begun).await {
                Ok(()) => begun.elapsed().min(REST),
                Err(mesh_kube::Ended) => AFTER_PANIC,
            };
            tokio::select! {
                biased;
                () = drain.asked() => return,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    async fn read(&mut self, started: Instant) -> Result<(), mesh_kube::Ended> {
        let (config, before) = (self.config.clone(), self.snapshots.borrow().clone());
        let has_statuses = self.statuses.is_some();
        let mut compiler = std::mem::take(&mut self.compiler);
        let compiled = self.source.read(move |objects, rejected| {
            let changes = compiler.compile(objects, rejected, &config);
            let snapshot = before.after(&changes);
            let needed = match has_statuses {
                true => needed(objects, rejected, &compiler, Timestamp::now()),
                false => Vec::new(),
            };
            (rejected.to_vec(), compiler, changes.namespaces.len(), snapshot, needed)
        });
        // A panic while compiling may not take the last good configuration away.
        let (rejected, compiler, namespaces, snapshot, needed) = compiled.await?;
        self.compiler = compiler;
        self.metrics.source_read();
        self.metrics.rejected.set(rejected.len() as i64);
        self.complain(&rejected);
        self.publish(snapshot, namespaces, started);
        if let Some(statuses) = &self.statuses {
            statuses.send_if_modified(|last| {
                let changed = **last != needed;
                if changed {
                    *last = Arc::new(needed);
                }
                changed
            });
        }
        Ok(())
    }

    /// Logs what is new among the complaints, and what is over.
    fn complain(&mut self, rejected: &[Rejected]) {
        let refused: BTreeSet<String> = rejected.iter().map(ToString::to_string).collect();
        let problems: BTreeSet<String> = self.compiler.problems().map(ToString::to_string).collect();
        self.metrics.problems.set(problems.len() as i64);
        for text in refused.difference(&self.known) {
            tracing::error!("document refused: {text}");
        }
        for text in problems.difference(&self.known) {
            tracing::warn!("{text}");
        }
        let now = &refused | &problems;
        for over in self.known.difference(&now) {
            tracing::info!("no longer: {over}");
        }
        self.known = now;
    }

    fn publish(&mut self, snapshot: Snapshot, namespaces: usize, started: Instant) {
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
            tracing::info!(generation, addresses, policies, namespaces, took = ?took, "configuration published");
        }
        drop(first);
    }
}

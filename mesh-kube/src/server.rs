//! The API source: everything that is followed, in one [`Store`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::manifests::{Change, Kind, Objects, Rejected, Store};
use mesh_daemon::tasks;
use mesh_model::PodName;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::api::Api;
use crate::backoff::Backoff;
use crate::follow::{Follow, Following, Heard, Timing};
use crate::metrics::Metrics;
use crate::paths;
use crate::source::{Ended, Source};

/// What waits to be kept: events, or pages of a list. Who follows waits when it is full, and the server's own buffers behind it.
const QUEUE: usize = 64;
/// Changes within this time are one; small against the second in which a policy must bite.
const BURST: Duration = Duration::from_millis(10);
/// A burst is told of after this time even if it goes on.
const BURST_MAX: Duration = Duration::from_millis(100);
/// Pods looked up by name at a time. A full node starts 110 at once; more than these wait for the watch.
const LOOKUPS: usize = 32;
/// Tries of one look-up: within the five seconds for which an ADD waits.
const TRIES: u32 = 3;

/// The API server as a source.
pub struct Server {
    api: Api,
    store: Store,
    heard: mpsc::Receiver<Heard>,
    tell: mpsc::Sender<Heard>,
    /// Kinds that have not been heard completely yet.
    missing: BTreeSet<Kind>,
    /// Whether something was heard since the last reading.
    dirty: bool,
    /// Only pods of this node are followed.
    node: Option<String>,
    group: tasks::Handle,
    lookups: Arc<Semaphore>,
    metrics: Metrics,
}

impl Server {
    /// Begins to follow. Ends what it began when it is dropped.
    pub fn start(api: Api, follow: &[Following], timing: Timing, metrics: Metrics, group: &tasks::Handle) -> Self {
        let (tell, heard) = mpsc::channel(QUEUE);
        for what in follow {
            let follow =
                Follow { api: api.clone(), what: what.clone(), timing, tell: tell.clone(), metrics: metrics.clone() };
            group.spawn("API watch", follow.run());
        }
        let missing = follow.iter().map(|what| what.kind).collect();
        let lookups = Arc::new(Semaphore::new(LOOKUPS));
        let node = follow.iter().find(|what| what.kind == Kind::Pod).and_then(|what| what.node.clone());
        let (store, group) = (Store::default(), group.clone());
        Self { api, store, heard, tell, missing, dirty: false, node, group, lookups, metrics }
    }

    /// Kinds that have not been heard completely yet: until there are none, nothing is told.
    pub fn missing(&self) -> impl Iterator<Item = Kind> + '_ {
        self.missing.iter().copied()
    }

    /// Whether what is known may differ now.
    fn keep(&mut self, heard: Heard) -> bool {
        let (kind, change) = match heard {
            Heard::List(kind) => {
                self.store.list(kind);
                return false;
            }
            Heard::Items(kind, items) => {
                for item in items {
                    let change = self.store.item(kind, item);
                    self.noted(kind, &change);
                }
                return true;
            }
            Heard::Listed(kind, version) => {
                self.store.listed(kind, &version);
                self.missing.remove(&kind);
                return true;
            }
            // Of what is known nothing is taken away: a definition that is deleted takes its objects along, one by one.
            Heard::Absent(kind) => return self.missing.remove(&kind),
            Heard::Bookmark(kind, version) => {
                self.store.heard(kind, &version);
                return false;
            }
            Heard::Changed(kind, object) => (kind, self.store.changed(kind, object)),
            Heard::Gone(kind, object) => (kind, self.store.gone(kind, &object)),
            // The watch would never say that a pod of another node is gone.
            Heard::Found(Kind::Pod, object) if !self.is_followed(&object) => return false,
            Heard::Found(kind, object) => (kind, self.store.learn(kind, object)),
        };
        self.noted(kind, &change);
        change != Change::Old
    }

    fn is_followed(&self, pod: &serde_json::Value) -> bool {
        let node = pod.pointer("/spec/nodeName").and_then(serde_json::Value::as_str);
        self.node.is_none() || self.node.as_deref() == node
    }

    fn noted(&self, kind: Kind, change: &Change) {
        if let Change::Refused(rejected) = change {
            self.metrics.bad(kind);
            tracing::debug!(object = %rejected, "object of the API server cannot be used");
        }
    }
}

impl Source for Server {
    async fn changed(&mut self) {
        while !self.dirty || !self.missing.is_empty() {
            // Never `None`: one end is ours.
            if let Some(heard) = self.heard.recv().await {
                self.dirty |= self.keep(heard);
            }
        }
        let until = Instant::now() + BURST_MAX;
        while let Ok(Some(heard)) = tokio::time::timeout_at(until.min(Instant::now() + BURST), self.heard.recv()).await
        {
            // Dirty already.
            self.keep(heard);
        }
    }

    async fn read<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Objects, &[Rejected]) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        self.dirty = false;
        // Shared for the time of the work: a panic of it must not take what is known along.
        let store = Arc::new(std::mem::take(&mut self.store));
        let read = store.clone();
        let worked = tokio::task::spawn_blocking(move || {
            let made = work(read.objects(), &read.rejected());
            drop(read);
            made
        });
        let worked = worked.await.map_err(|error| {
            tracing::error!(%error, "reading what the API server said ended badly");
            Ended
        });
        self.store = Arc::unwrap_or_clone(store);
        worked
    }

    fn fetch(&mut self, pod: &PodName) {
        let Ok(permit) = self.lookups.clone().try_acquire_owned() else {
            self.metrics.lookup("busy");
            return;
        };
        let (api, tell, metrics, pod) = (self.api.clone(), self.tell.clone(), self.metrics.clone(), pod.clone());
        self.group.spawn("pod look-up", async move {
            let _permit = permit;
            // Its namespace too: a label that was set just before the pod was made may be on its way as well.
            let namespace = look(&api, paths::object(Kind::Namespace, "", &pod.namespace)).await;
            if let Ok(Some(object)) = namespace {
                let _ = tell.send(Heard::Found(Kind::Namespace, object)).await; // an error: the source has ended
            }
            match look(&api, paths::object(Kind::Pod, &pod.namespace, &pod.name)).await {
                Ok(Some(object)) => {
                    metrics.lookup("found");
                    tracing::debug!(%pod, "pod looked up: its ADD is ahead of the watch");
                    let _ = tell.send(Heard::Found(Kind::Pod, object)).await;
                }
                Ok(None) => metrics.lookup("missing"),
                Err(error) => {
                    metrics.lookup("failed");
                    tracing::warn!(%pod, %error, "pod cannot be looked up; its ADD waits for the watch");
                }
            }
        });
    }
}

async fn look(api: &Api, path: String) -> Result<Option<serde_json::Value>, crate::Error> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
    loop {
        match api.get(&path).await {
            // Refused will be refused again.
            Err(error) if error.code().is_none() && backoff.failures() + 1 < TRIES => {
                tokio::time::sleep(backoff.failed()).await;
            }
            answer => return answer,
        }
    }
}

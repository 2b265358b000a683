//! Tasks that look at the outside and tell the node: the source of pods, the plugin's markers, processes, the node's addresses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::link::state_dir::{Marker, Namespaces, VERSION};
use mesh_daemon::dir;
use mesh_kube::{Ended, Source};
use mesh_model::PodName;
use mesh_net::NetnsId;
use mesh_net::procfs::{self, PodProcess};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::node::{Input, Inputs};
use crate::settle::Settle;
use crate::source::{Records, Scope};
use crate::{facts, state_dir};

/// The markers are read again after this time even if nothing was seen to change.
const RELOAD: Duration = Duration::from_secs(30);
/// After a reading that panicked: a bug, and what was known stays; it may be of one object that will change.
const AFTER_PANIC: Duration = Duration::from_secs(5);
/// Gone pods are to be let go of within ten seconds: two scans must both miss them.
const SCAN: Duration = Duration::from_secs(3);
/// Memory is given back after each of so many looks: the last of a gone pod's is freed some seconds after its processes have ended.
const TRIMS: u32 = 4;
/// Addresses of a node change rarely, and are read at each ADD as well; a probe from a new one is judged as a stranger's until then.
const FACTS: Duration = Duration::from_secs(5);

/// Follows the source and keeps the file that the plugin decides by.
#[derive(Debug)]
pub struct Watching<S> {
    source: S,
    scope: Scope,
    state_dir: PathBuf,
    settle: Settle,
    last: Records,
    /// What stands in the namespaces file.
    written: Option<Namespaces>,
    told: BTreeSet<String>,
    metrics: Metrics,
}

impl<S: Source> Watching<S> {
    /// Reads nothing yet.
    pub fn new(source: S, scope: Scope, state_dir: PathBuf, metrics: Metrics) -> Self {
        let (settle, last, told) = (Settle::default(), Records::default(), BTreeSet::new());
        Self { source, scope, state_dir, settle, last, written: None, told, metrics }
    }

    /// The first records: once the source has been heard completely.
    pub async fn first(&mut self) -> Records {
        loop {
            self.source.changed().await;
            if self.read().await.is_ok() {
                return self.last.clone();
            }
        }
    }

    /// Tells the node whenever the source says something else. An ADD that waits for its pod's record has it looked for at once: the
    /// source may be behind, and while many pods come, changes that go on would put a reading off.
    pub async fn run(mut self, mut wanted: mpsc::Receiver<PodName>, inputs: Inputs) {
        let mut again = None;
        loop {
            // Each may be dropped: the reading that follows serves all of them.
            let is_wanted = tokio::select! {
                () = self.source.changed() => false,
                () = due(again) => false,
                pod = wanted.recv() => match pod {
                    Some(pod) => {
                        self.source.fetch(&pod);
                        true
                    }
                    None => return,
                },
            };
            // One reading for all that wait.
            while is_wanted && let Ok(pod) = wanted.try_recv() {
                self.source.fetch(&pod);
            }
            let before = self.last.clone();
            again = match self.read().await {
                Ok(again) => again,
                Err(Ended) => Some(Instant::now() + AFTER_PANIC),
            };
            if self.last != before {
                inputs.send(Input::Records(self.last.clone())).await;
            }
        }
    }

    /// Reads and settles. When to do so again, though nothing changes.
    async fn read(&mut self) -> Result<Option<Instant>, Ended> {
        let scope = self.scope.clone();
        let read = self.source.read(move |objects, rejected| (scope.records(objects), rejected.to_vec())).await;
        let (records, rejected) = read?;
        self.metrics.manifests_read(&rejected);
        let texts: BTreeSet<String> = rejected.iter().map(ToString::to_string).collect();
        for text in texts.difference(&self.told) {
            tracing::warn!(manifest = text, "object refused; the last good version of it stays");
        }
        self.told = texts;
        let (records, again) = self.settle.settle(records, &self.last, Instant::now());
        self.write_namespaces(&records).await;
        self.last = records;
        Ok(again)
    }

    async fn write_namespaces(&mut self, records: &Records) {
        let namespaces = Namespaces { version: VERSION, namespaces: records.namespaces.clone() };
        if self.written.as_ref() == Some(&namespaces) {
            return;
        }
        let dir = self.state_dir.clone();
        let written = tokio::task::spawn_blocking(move || {
            state_dir::write_namespaces(&dir, &namespaces).map(|()| namespaces).map_err(|error| error.to_string())
        });
        match written.await.map_err(|error| error.to_string()).flatten() {
            Ok(namespaces) => self.written = Some(namespaces),
            Err(error) => {
                tracing::warn!(error, dir = %self.state_dir.display(), "namespaces file not written: with pod-watcher down the plugin decides by the old one");
            }
        }
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Tells the node of each marker, and removes it.
pub async fn markers(state: PathBuf, inputs: Inputs) {
    let pending = Marker::dir(&state);
    loop {
        let watch = watch(&pending);
        match state_dir::markers(&state) {
            Ok(found) => {
                for (path, marker) in found {
                    inputs.send(Input::Marker(marker)).await;
                    if let Err(error) = std::fs::remove_file(&path) {
                        tracing::warn!(%error, marker = %path.display(), "marker of the CNI plugin not removed");
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, dir = %pending.display(), "markers of the CNI plugin cannot be listed")
            }
        }
        changed(watch, RELOAD).await;
    }
}

/// Made anew before each reading: a directory that was replaced is found again, and what changes after this is seen.
fn watch(dir: &Path) -> Option<dir::Watch> {
    dir::Watch::new(dir)
        .inspect_err(|error| tracing::warn!(%error, dir = %dir.display(), "directory cannot be watched"))
        .ok()
}

/// A change that is lost by the timer is met by the reading that follows it.
async fn changed(watch: Option<dir::Watch>, at_most: Duration) {
    match watch {
        Some(mut watch) => drop(tokio::time::timeout(at_most, watch.changed()).await),
        None => tokio::time::sleep(Duration::from_secs(1)).await,
    }
}

/// What a look at all processes found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Processes of pods, oldest first.
    pub processes: Vec<PodProcess>,
    /// Namespaces that the runtime holds by a file.
    pub mounted: BTreeSet<NetnsId>,
}

impl Scan {
    /// Looks. Blocking.
    pub fn now() -> std::io::Result<Self> {
        let processes = procfs::pods()?;
        // Not there in a container without the mount: then processes alone decide.
        let entries = std::fs::read_dir("/run/netns").into_iter().flatten().filter_map(Result::ok);
        let mounted = entries.filter_map(|entry| NetnsId::of_path(&entry.path()).ok()).collect();
        Ok(Self { processes, mounted })
    }
}

/// Tells the node every three seconds and when asked to look. After pods have gone, memory that they took is given back.
pub async fn processes(look: Arc<Notify>, inputs: Inputs) {
    let (mut seen, mut trims) = (0, 0);
    loop {
        // Either may be dropped: the look that follows serves both.
        let _ = tokio::time::timeout(SCAN, look.notified()).await;
        match tokio::task::spawn_blocking(Scan::now).await {
            Ok(Ok(scan)) => {
                if scan.processes.len() < seen {
                    trims = TRIMS;
                }
                seen = scan.processes.len();
                inputs.send(Input::Scan(scan)).await;
                if trims > 0 {
                    trims -= 1;
                    let _ = tokio::task::spawn_blocking(mesh_net::memory::give_back).await; // it cannot panic
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "processes cannot be listed"),
            Err(error) => tracing::error!(%error, "listing processes ended badly"),
        }
    }
}

/// Tells the node when its addresses change.
pub async fn node_facts(node: String, inputs: Inputs) {
    let mut last = None;
    loop {
        match facts::read(&node) {
            Ok(facts) if Some(&facts) != last.as_ref() => {
                last = Some(facts.clone());
                inputs.send(Input::Facts(facts)).await;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "addresses of the node cannot be read"),
        }
        tokio::time::sleep(FACTS).await;
    }
}

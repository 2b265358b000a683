//! Tasks that look at the outside and tell the node: the source directory, the plugin's markers, processes, the node's addresses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::link::state_dir::{Marker, Namespaces, VERSION};
use mesh_api::manifests::{self, Objects};
use mesh_daemon::dir;
use mesh_net::NetnsId;
use mesh_net::procfs::{self, PodProcess};
use tokio::sync::Notify;

use crate::metrics::Metrics;
use crate::node::{Input, Inputs};
use crate::source::{Records, Scope};
use crate::{facts, state_dir};

/// The source is read again after this time even if nothing was seen to change.
const RELOAD: Duration = Duration::from_secs(30);
/// Gone pods are to be let go of within ten seconds: two scans must both miss them.
const SCAN: Duration = Duration::from_secs(3);
/// Memory is given back after each of so many looks: the last of a gone pod's is freed some seconds after its processes have ended.
const TRIMS: u32 = 4;
/// Addresses of a node change rarely, and are read at each ADD as well; a probe from a new one is judged as a stranger's until then.
const FACTS: Duration = Duration::from_secs(5);

/// Reads the source and keeps the file that the plugin decides by.
#[derive(Debug)]
pub struct Source {
    dir: PathBuf,
    scope: Scope,
    state_dir: PathBuf,
    objects: Objects,
    told: BTreeSet<String>,
    metrics: Metrics,
}

impl Source {
    /// For this directory.
    pub fn new(dir: PathBuf, scope: Scope, state_dir: PathBuf, metrics: Metrics) -> Self {
        Self { dir, scope, state_dir, objects: Objects::default(), told: BTreeSet::new(), metrics }
    }

    /// Loads once. Blocking.
    pub fn load(&mut self) -> Records {
        let (objects, rejected) = manifests::load_dir(&self.dir, &self.objects);
        self.objects = objects;
        self.metrics.manifests_read(&rejected);
        let texts: BTreeSet<String> = rejected.iter().map(ToString::to_string).collect();
        for text in texts.difference(&self.told) {
            tracing::warn!(manifest = text, "manifest refused; the last good version of its object stays");
        }
        self.told = texts;
        let records = self.scope.records(&self.objects);
        let namespaces = Namespaces { version: VERSION, namespaces: records.namespaces.clone() };
        if let Err(error) = state_dir::write_namespaces(&self.state_dir, &namespaces) {
            tracing::warn!(%error, dir = %self.state_dir.display(), "namespaces file not written: with pod-watcher down the plugin decides by the old one");
        }
        records
    }
}

/// Tells the node whenever the source says something else. An ADD that waits for its pod's record has the source read at once:
/// while many pods come, changes that go on would put a reading off.
pub async fn source(mut source: Source, mut last: Records, wanted: Arc<Notify>, inputs: Inputs) {
    loop {
        let watch = watch(&source.dir);
        let loaded = tokio::task::spawn_blocking(move || {
            let records = source.load();
            (source, records)
        });
        let Ok((back, records)) = loaded.await else {
            return tracing::error!("reading the source ended badly; pods keep their last records");
        };
        source = back;
        if records != last {
            last.clone_from(&records);
            inputs.send(Input::Records(records)).await;
        }
        // Either may be dropped: the reading that follows serves both.
        tokio::select! {
            () = changed(watch, RELOAD) => {}
            () = wanted.notified() => {}
        }
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

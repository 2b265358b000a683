//! Our plugin on the node: its binary where the runtime looks for plugins, and its entry in the chain of whatever network is configured.
//!
//! [`chain`] knows one configuration as a text ([`json`] finds its parts), [`plan`] the directory of them; both are pure. [`disk`]
//! carries plans out, [`keep`] sees to it that they stay carried out. [`fate`] says at the end whether a successor comes: if not, the
//! entry is taken out before anything else ends. [`taint`] tells the scheduler, [`news`] whoever looks at the node's events. Binary before entry on the way in, entry before binary
//! on the way out: at no moment does the runtime look for a plugin that is not there.

pub mod chain;
mod disk;
mod fate;
mod json;
mod keep;
mod news;
mod plan;
pub mod rules;
mod taint;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_daemon::ready::Latch;
use mesh_daemon::{drain, tasks};
use mesh_kube::{Api, Known, Method, Reporter, Single};
use serde_json::Value;
use tokio::sync::watch;

use crate::metrics::chain::Metrics;
use chain::Entry;
pub use disk::NotDone;
use fate::Fate;
use news::News;
use plan::Chain;

/// For the questions at the end: kubelet waits 30 s for us by default, and what is answered later would be too late.
const ASK: Duration = Duration::from_secs(3);
/// For a look at the disk that is going on.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// Where what belongs on the node.
#[derive(Clone, Debug)]
pub struct Install {
    /// Network configurations.
    pub conf_dir: PathBuf,
    /// Plugins.
    pub bin_dir: PathBuf,
    /// Our plugin's binary, to be copied.
    pub plugin: PathBuf,
    /// Its settings.
    pub entry: Entry,
}

/// Takes our plugin out of the node: entry first. Blocking. Whether there was something to do.
pub fn take_out(conf_dir: &std::path::Path, bin_dir: &std::path::Path) -> Result<bool, NotDone> {
    let carried = disk::settle(conf_dir, plan::take_out)?;
    for left in &carried.plan.left {
        tracing::warn!(file = left.name, why = left.why, "network configuration left alone");
    }
    disk::remove_binary(bin_dir)?;
    Ok(carried.steps > 0)
}

/// Whom to ask about ourselves.
struct Asking {
    api: Api,
    set: (Single, watch::Receiver<Known>),
    node: (Single, watch::Receiver<Known>),
}

/// An installation in the course of the daemon's life.
pub struct Installation {
    install: Arc<Install>,
    asking: Option<Asking>,
    stop: (drain::Trigger, drain::Watch),
    /// Closed once nobody keeps the chain any more.
    ready: Option<watch::Receiver<bool>>,
    seen: watch::Sender<Value>,
}

impl Installation {
    /// Follows our DaemonSet (`namespace/name`) and node from now on; touches nothing yet.
    pub fn new(
        install: Install,
        api: Option<(Api, &str, (&str, &str))>,
        group: &tasks::Group,
        stop: &drain::Watch,
    ) -> Self {
        let follow = |what: &'static str, api: &Api, single: Single| {
            let (tell, known) = watch::channel(Known::default());
            group.spawn(what, single.clone().follow(api.clone(), tell, stop.clone()));
            (single, known)
        };
        let asking = api.map(|(api, node, (namespace, name))| Asking {
            set: follow("own daemonset", &api, Single::daemon_set(namespace, name)),
            node: follow("own node", &api, Single::node(node)),
            api,
        });
        let seen = keep::shown(&install, &Chain::Out("nobody has looked yet".to_owned()), &[]);
        Self { install: Arc::new(install), asking, stop: drain::pair(), ready: None, seen: watch::Sender::new(seen) }
    }

    /// What the last look at the chain found, for `pod-watcher admin chain`.
    pub fn seen(&self) -> watch::Receiver<Value> {
        self.seen.subscribe()
    }

    /// Puts the plugin in and keeps it there. `first` is released when it is in place for the first time.
    pub fn begin(&mut self, first: Latch, metrics: Metrics, reporter: Option<Reporter>, group: &tasks::Group) {
        let (tell, ready) = watch::channel(false);
        let stop = self.stop.1.clone();
        let (install, tell) = (self.install.clone(), (tell, self.seen.clone()));
        group.spawn("cni chain", keep::keep(install, tell, first, metrics, News::new(reporter), stop));
        if let Some(Asking { api, node: (node, known), .. }) = &self.asking {
            group.spawn("taint", taint::keep(api.clone(), node.clone(), known.clone(), ready.clone()));
        }
        self.ready = Some(ready);
    }

    /// pod-watcher ends. If for good, our plugin is taken out while everything else still works. Whether it was.
    pub async fn end(self) -> bool {
        let Self { install, asking, stop: (trigger, watch), ready, seen: _ } = self;
        let asked = match &asking {
            Some(asking) => asking.ask().await,
            None => (Known::Unknown, Known::Unknown),
        };
        let why = match fate::fate(&asked.0, &asked.1) {
            Fate::Stay(why) => {
                tracing::info!(why, "the CNI chain stays as it is");
                return false;
            }
            Fate::Leave(why) => why,
        };
        trigger.ask();
        drop(watch);
        // It would put back what is taken out.
        if let Some(mut ready) = ready
            && tokio::time::timeout(LAST_LOOK, async { while ready.changed().await.is_ok() {} }).await.is_err()
        {
            tracing::error!("the CNI chain is still being written; it stays as it is");
            return false;
        }
        let of = install.clone();
        match tokio::task::spawn_blocking(move || take_out(&of.conf_dir, &of.bin_dir)).await {
            Ok(Ok(_)) => tracing::info!(why, dir = %install.conf_dir.display(), "taken out of the CNI chain"),
            Ok(Err(error)) => {
                tracing::error!(%error, why, "our plugin cannot be taken out of the CNI chain: pods of the mesh will not start here");
                return false;
            }
            Err(error) => {
                tracing::error!(%error, "taking our plugin out of the CNI chain ended badly");
                return false;
            }
        }
        if let Some(asking) = &asking {
            asking.untaint(asked.1).await;
        }
        true
    }
}

impl Asking {
    /// What is known of the DaemonSet and of the node, asked once more.
    async fn ask(&self) -> (Known, Known) {
        let before = (self.set.1.borrow().clone(), self.node.1.borrow().clone());
        let ask = async { tokio::join!(self.set.0.ask(&self.api, &before.0), self.node.0.ask(&self.api, &before.1)) };
        tokio::time::timeout(ASK, ask).await.unwrap_or(before)
    }

    /// Nobody would take it off later, and no pod would come here any more.
    async fn untaint(&self, mut node: Known) {
        let work = async {
            loop {
                let Known::There(object) = &node else { return };
                let Some(patch) = taint::change(object, true) else { return };
                match self.api.write(Method::Patch, &self.node.0.path(), &patch).await {
                    Ok(_) => return,
                    // Somebody else wrote the node meanwhile.
                    Err(error) if error.code() == Some(409) => node = self.node.0.ask(&self.api, &node).await,
                    Err(error) => {
                        tracing::error!(%error, taint = taint::KEY, "taint stays on the node: kubectl taint node takes it off");
                        return;
                    }
                }
            }
        };
        if tokio::time::timeout(ASK, work).await.is_err() {
            tracing::error!(taint = taint::KEY, "no answer in time: whether the taint is on the node is not known");
        }
    }
}

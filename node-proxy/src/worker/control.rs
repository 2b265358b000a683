//! What the keeper says, made true: pods come and go, and each message is acknowledged when it has taken effect.
//!
//! One task reads the link in order. A pod is acknowledged only when its listeners are registered and accepting: from then on
//! pod-watcher lets traffic be redirected to them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::link::PodFacts;
use mesh_daemon::ready::Latch;
use mesh_daemon::tasks;
use mesh_model::{Mesh, Reason};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::accept::Listening;
use super::link::{Event, Link, LinkDown};
use super::live;
use super::pods::Pod;
use super::threads::{Proxy, Threads};

/// How long closing a pod's listeners may take: their loops only have to be scheduled.
const CLOSING: Duration = Duration::from_secs(2);
/// A listed policy that has not arrived gets this long before it ends live connections: lists and policies travel apart. The sum
/// of this and the control plane's debounce stays under the second that is promised.
const MISSING_POLICY: Duration = Duration::from_millis(300);

/// Keeps pods in step with the keeper.
pub struct Control {
    proxy: Arc<Proxy>,
    threads: Threads,
    link: Link,
    tasks: tasks::Handle,
    // Connections one pod may have open.
    pod_budget: usize,
    listening: HashMap<u32, Listening>,
    diags: usize,
    snapshot: Option<Latch>,
    leaving: bool,
}

impl Control {
    /// `snapshot` is released when the keeper has named all pods.
    pub fn new(
        proxy: Arc<Proxy>,
        threads: Threads,
        link: Link,
        tasks: tasks::Handle,
        pod_budget: usize,
        snapshot: Latch,
    ) -> Self {
        let listening = HashMap::new();
        Self { proxy, threads, link, tasks, pod_budget, listening, diags: 0, snapshot: Some(snapshot), leaving: false }
    }

    /// Takes no more pods: the worker is going away.
    pub fn leave(&mut self) {
        self.leaving = true;
        self.listening.clear();
    }

    /// Follows the link until it ends.
    pub async fn follow(&mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), LinkDown> {
        // Dropped between two events, or half-way through one when the worker goes away and the keeper starts over with the next.
        while let Some(event) = events.recv().await {
            self.apply(event).await?;
        }
        Ok(())
    }

    async fn apply(&mut self, event: Event) -> Result<(), LinkDown> {
        match event {
            Event::Node(facts, diags) => {
                self.proxy.pods.node(&facts);
                for diag in diags {
                    if self.diags < self.threads.len() {
                        self.threads.diag(self.diags, diag).await;
                        self.diags += 1;
                    }
                }
                tracing::info!(node = facts.name, addresses = facts.addresses.len(), diags = self.diags, "node facts");
                Ok(())
            }
            Event::Certificates(memfd) => {
                match self.proxy.certificates.restore(memfd) {
                    Ok(usable) => tracing::info!(usable, "certificates of an earlier worker"),
                    Err(error) => tracing::warn!(%error, "certificates of an earlier worker cannot be used"),
                }
                Ok(())
            }
            Event::Pod { id, slot, facts, listeners } => match self.add(slot, &facts, listeners).await {
                Ok(()) => self.link.ack(id).await,
                Err(reason) => self.link.nack(id, reason).await,
            },
            Event::Update { id, slot, facts } => {
                if update(&self.proxy, slot, &facts) {
                    self.link.ack(id).await
                } else {
                    self.link.nack(id, Reason::NotReady).await
                }
            }
            Event::Gone { id, slot, drain } => {
                self.remove(slot, drain).await;
                self.link.ack(id).await
            }
            Event::SnapshotEnd { id } => {
                let pods = self.proxy.pods.table().pods().count();
                tracing::info!(pods, "all pods of the keeper are served");
                self.proxy.pods.complete();
                self.snapshot = None;
                self.link.ack(id).await
            }
        }
    }

    async fn add(&mut self, slot: u32, facts: &PodFacts, listeners: [std::os::fd::OwnedFd; 3]) -> Result<(), Reason> {
        if self.leaving {
            return Err(Reason::Draining);
        }
        if self.proxy.pods.table().slot(slot).is_some() {
            tracing::error!(slot, "the keeper names a slot twice");
            return Err(Reason::Conflict);
        }
        let domain = self.proxy.settings.trust.own();
        let metrics = &self.proxy.sinks.metrics;
        let pod = Pod::new(slot, facts, domain, self.pod_budget, |name| metrics.pod(slot, name)).map_err(|error| {
            tracing::error!(%error, slot, "pod refused");
            error.reason()
        })?;
        let pod = Arc::new(pod);
        // In the table first: what is accepted must find its own pod.
        self.proxy.pods.add(pod.clone());
        match self.threads.listen(&pod, listeners).await {
            Ok(listening) => {
                self.listening.insert(slot, listening);
                self.want_certificates();
                tracing::info!(pod = %pod.name(), uid = %pod.uid(), slot, "pod served");
                Ok(())
            }
            Err(error) => {
                self.proxy.pods.remove(slot);
                metrics.gone(pod.meter());
                tracing::error!(%error, pod = %pod.name(), "listeners cannot be registered");
                Err(Reason::Kernel)
            }
        }
    }

    async fn remove(&mut self, slot: u32, drain: bool) {
        let Some(pod) = self.proxy.pods.remove(slot) else { return };
        pod.go();
        self.proxy.sinks.metrics.gone(pod.meter());
        if let Some(mut listening) = self.listening.remove(&slot)
            && tokio::time::timeout(CLOSING, listening.closed()).await.is_err()
        {
            tracing::error!(pod = %pod.name(), "listeners are not closed in time");
        }
        self.want_certificates();
        let deadline = if drain { self.proxy.settings.opt_out } else { Duration::ZERO };
        tracing::info!(pod = %pod.name(), uid = %pod.uid(), slot, drain, open = pod.live().len(), "pod no longer served");
        let (proxy, threads) = (self.proxy.clone(), self.threads.clone());
        let end = async move {
            if !deadline.is_zero() {
                // Whatever is left at the deadline is cut.
                let _ = tokio::time::timeout(deadline, pod.live().emptied()).await;
            }
            pod.live().cut_all(Reason::Draining);
            threads.forget(slot).await;
            proxy.mint.forget(slot);
        };
        if drain {
            self.tasks.spawn("pod drain", end);
        } else {
            end.await;
        }
    }

    fn want_certificates(&self) {
        let table = self.proxy.pods.table();
        let identities: BTreeSet<_> = table.pods().map(|pod| pod.identity().clone()).collect();
        self.proxy.certificates.want(&identities);
        self.proxy.sinks.metrics.plain.pods.set(table.pods().count() as i64);
    }
}

/// New facts of a pod; `false` when it is not served.
pub fn update(proxy: &Proxy, slot: u32, facts: &PodFacts) -> bool {
    let Some(pod) = proxy.pods.table().slot(slot).cloned() else { return false };
    let before = pod.facts().mark;
    if !proxy.pods.update(slot, facts) {
        return false;
    }
    if before != facts.mark {
        tracing::info!(pod = %pod.name(), slot, "another mark: sockets that carry the one before are closed");
        proxy.mint.renew(slot);
    }
    true
}

/// Judges open connections again whenever the mesh changes; runs as long as the mesh is published.
pub async fn judge_again(proxy: Arc<Proxy>) {
    let mut published = proxy.published.clone();
    published.mark_changed();
    // When those that wait for a listed policy are looked at for the last time.
    let mut deadline: Option<Instant> = None;
    loop {
        let last_call = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        // Every branch may be dropped half-way: a change stays one, the deadline and whoever waits are kept outside.
        tokio::select! {
            changed = published.changed() => {
                if changed.is_err() {
                    return;
                }
                let (mesh, received) = {
                    let published = published.borrow_and_update();
                    (published.mesh.clone(), published.received)
                };
                for pod in proxy.pods.table().pods() {
                    if sweep(&proxy, &mesh, pod, false) {
                        proxy.waiting.add(pod);
                    }
                }
                if let Some(received) = received {
                    proxy.sinks.metrics.plain.config_push.observe(received.elapsed().as_secs_f64());
                }
            }
            () = proxy.waiting.added() => {
                deadline.get_or_insert_with(|| Instant::now() + MISSING_POLICY);
            }
            () = last_call => {
                deadline = None;
                let mesh = proxy.mesh();
                for pod in proxy.waiting.take() {
                    sweep(&proxy, &mesh, &pod, true);
                }
            }
        }
    }
}

fn sweep(proxy: &Proxy, mesh: &Mesh, pod: &Pod, last_call: bool) -> bool {
    let swept = live::sweep(mesh, pod, last_call);
    proxy.sinks.metrics.plain.judged_again.inc_by(swept.judged as u64);
    if swept.cut > 0 {
        tracing::info!(pod = %pod.name(), judged = swept.judged, cut = swept.cut, "connections ended by a change");
    }
    swept.waiting
}

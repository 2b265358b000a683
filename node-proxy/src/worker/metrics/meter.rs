//! What one pod of this node costs and moves: time its connections took on our threads, memory they hold, bytes by how far they
//! went. Unlike the traffic series these carry the pod's own name, so that a greedy pod can be named.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_model::{PodName, Tunnel, Workload};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::family::{Spec, pair};
use super::labels::End;
use super::threads::{Count, PerThread};
use super::traffic::Shared;

const WORK: Spec = Spec {
    name: "culvert_pod_work_seconds_total",
    help: "Seconds that this proxy's threads spent on the pod's connections and tunnels: wall clock around each step of their \
           tasks. It is not the kernel's CPU time: time in which the thread was preempted counts too, work that the kernel does \
           later for a socket does not. A connection between two pods of this node counts for the caller.",
};
const MEMORY: Spec = Spec {
    name: "culvert_pod_memory_bytes",
    help: "Estimate of this proxy's memory for the pod: sizes of its connections' tasks and records, and the copy buffers that \
           hold bytes now. Left out: buffers of TLS and HTTP/2, short-lived boxes, the kernel's socket buffers.",
};
const BYTES: Spec = Spec {
    name: "culvert_pod_bytes_total",
    help: "Bytes of the pod's applications that passed through this proxy, by direction as the pod sees it and by scope: how \
           far the other end is. other_node is a mesh pod of another node whose zone, or our own, is not known.",
};

/// How far the other end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// On this node.
    SameNode,
    /// On another node of the same zone.
    SameZone,
    /// In another zone.
    CrossZone,
    /// On another node; one of the zones is not known.
    OtherNode,
    /// Not in the mesh.
    Outside,
}

impl Scope {
    const ALL: [Scope; 5] = [Scope::SameNode, Scope::SameZone, Scope::CrossZone, Scope::OtherNode, Scope::Outside];

    const fn as_str(self) -> &'static str {
        match self {
            Scope::SameNode => "same_node",
            Scope::SameZone => "same_zone",
            Scope::CrossZone => "cross_zone",
            Scope::OtherNode => "other_node",
            Scope::Outside => "outside",
        }
    }

    /// Between a pod of node `node` and another end.
    pub fn between(node: &str, own: Option<&Workload>, far: Option<&Workload>) -> Self {
        let Some(far) = far.filter(|far| far.tunnel == Tunnel::Hbone) else { return Scope::Outside };
        if far.node == node {
            return Scope::SameNode;
        }
        let zone = |workload: &Workload| {
            let names = &workload.telemetry;
            (!names.zone.is_empty()).then(|| (names.region.clone(), names.zone.clone()))
        };
        match (own.and_then(zone), zone(far)) {
            (Some(own), Some(far)) if own == far => Scope::SameZone,
            (Some(_), Some(_)) => Scope::CrossZone,
            _ => Scope::OtherNode,
        }
    }
}

/// The numbers of one pod on one thread.
#[derive(Debug, Default)]
struct Local {
    // Nanoseconds.
    work: Count,
    tasks: Count,
    buffers: Count,
    // By scope: sent, received, as the pod sees it.
    bytes: [[Count; 2]; 5],
}

/// One pod's meter.
#[derive(Debug)]
pub struct Meter {
    slot: u32,
    name: PodName,
    on: bool,
    local: PerThread<Local>,
    // The traffic table it last counted in.
    table: Mutex<Option<(End, Shared)>>,
    gone: AtomicBool,
}

impl Meter {
    /// All at zero. With `on` false nothing of it is kept.
    pub fn new(slot: u32, name: PodName, threads: usize, on: bool) -> Arc<Self> {
        // What is never written needs no lines of its own.
        let local = PerThread::new(if on { threads } else { 0 }, Local::default);
        Arc::new(Self { slot, name, on, local, table: Mutex::default(), gone: AtomicBool::new(false) })
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// The keeper's number of the pod.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// A thread has worked for it.
    pub fn worked(&self, time: Duration) {
        self.local.here().work.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// A task of this size has begun for it; [`Meter::released`] on the same thread ends it.
    pub fn holds(&self, bytes: usize) {
        if self.on {
            self.local.here().tasks.add(bytes as u64);
        }
    }

    /// See [`Meter::holds`].
    pub fn released(&self, bytes: usize) {
        if self.on {
            self.local.here().tasks.sub(bytes as u64);
        }
    }

    /// Copy buffers that held `before` bytes of room hold `now`.
    pub fn buffers(&self, before: usize, now: usize) {
        let local = self.local.here();
        local.buffers.add(now as u64);
        local.buffers.sub(before as u64);
    }

    /// Its application sent or received bytes.
    pub fn bytes(&self, scope: Scope, sent: bool, bytes: u64) {
        self.local.here().bytes[scope as usize][usize::from(!sent)].add(bytes);
    }

    /// Whether nothing was ever counted for it.
    fn is_zero(&self) -> bool {
        let bytes = || self.local.iter().flat_map(|local| local.bytes.iter().flatten());
        self.local.iter().all(|local| local.work.get() == 0) && bytes().all(|count| count.get() == 0)
    }

    /// The traffic table of these names, `join`ed if it is another than before; `None` when the pod is gone.
    pub(super) fn table(&self, own: &End, join: impl FnOnce() -> Shared) -> Option<Shared> {
        let mut table = lock(&self.table);
        if self.gone.load(Ordering::Relaxed) {
            return None;
        }
        match &*table {
            Some((known, shared)) if known == own => Some(shared.clone()),
            _ => {
                let shared = join();
                *table = Some((own.clone(), shared.clone()));
                Some(shared)
            }
        }
    }

    /// The pod is gone: its connections that are left join no table any more.
    pub(super) fn leave(&self) {
        let mut table = lock(&self.table);
        self.gone.store(true, Ordering::Relaxed);
        *table = None;
    }
}

/// Since when a pod is gone, and how many scrapes there had been.
#[derive(Debug)]
struct Kept {
    meter: Arc<Meter>,
    gone: Option<(Instant, u64)>,
}

/// The meters of all pods.
#[derive(Debug, Default)]
pub struct Meters(Mutex<BTreeMap<u32, Kept>>);

impl Meters {
    /// A pod came.
    pub fn add(&self, meter: &Arc<Meter>) {
        lock(&self.0).insert(meter.slot, Kept { meter: meter.clone(), gone: None });
    }

    /// The meter of this slot.
    pub fn get(&self, slot: u32) -> Option<Arc<Meter>> {
        lock(&self.0).get(&slot).map(|kept| kept.meter.clone())
    }

    /// Drops the meters of pods that are gone, by the rule of the traffic tables ([`super::series::Table::is_over`]).
    pub fn sweep(&self, now: Instant, scrapes: u64, over: impl Fn(Duration, bool) -> bool) {
        lock(&self.0).retain(|_, kept| {
            // Held by the pod or by one of its connections.
            if Arc::strong_count(&kept.meter) > 1 {
                kept.gone = None;
                return true;
            }
            // A pod that never had a connection has nothing that a scrape should still see.
            if kept.meter.is_zero() {
                return false;
            }
            let (since, before) = *kept.gone.get_or_insert((now, scrapes));
            !over(now.saturating_duration_since(since), scrapes > before)
        });
    }
}

/// What is scraped of the meters.
impl Collector for Meters {
    fn desc(&self) -> Vec<&Desc> {
        static DESCS: std::sync::LazyLock<Vec<Desc>> =
            std::sync::LazyLock::new(|| [WORK, MEMORY, BYTES].map(Spec::desc).into());
        DESCS.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let meters: Vec<Arc<Meter>> =
            lock(&self.0).values().filter(|kept| kept.meter.on).map(|kept| kept.meter.clone()).collect();
        // A pod and its successor of the same name (a StatefulSet's) are one series.
        let mut by_name: BTreeMap<&PodName, Vec<&Meter>> = BTreeMap::new();
        for meter in &meters {
            by_name.entry(&meter.name).or_default().push(meter);
        }
        let (mut work, mut memory, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for (name, meters) in by_name {
            let labels = vec![pair("namespace", &name.namespace), pair("pod", &name.name)];
            let sum = |of: fn(&Local) -> &Count| -> u64 { meters.iter().map(|meter| meter.local.sum(of)).sum() };
            work.push((labels.clone(), sum(|local| &local.work) as f64 / 1e9));
            memory.push((labels.clone(), (sum(|local| &local.tasks) + sum(|local| &local.buffers)) as f64));
            for scope in Scope::ALL {
                for (index, direction) in ["sent", "received"].into_iter().enumerate() {
                    let total: u64 =
                        meters.iter().map(|meter| meter.local.sum(|local| &local.bytes[scope as usize][index])).sum();
                    let of_scope = [pair("scope", scope.as_str()), pair("direction", direction)];
                    bytes.push((labels.iter().cloned().chain(of_scope).collect(), total as f64));
                }
            }
        }
        vec![WORK.counters(work), MEMORY.gauges(memory), BYTES.counters(bytes)]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

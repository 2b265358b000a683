//! The one task that owns what is known: records, pods, keepers, calls that wait. Everything reaches it as an [`Input`], one after
//! the other; it steps the pure machines of [`crate::enrol`] and carries their actions out. It never blocks and never waits.

mod act;
mod calls;
mod entry;
mod follow;
mod timers;
mod uncaptured;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::link::NodeFacts;
use mesh_api::link::proxy::Refused;
use mesh_api::link::state_dir::Marker;
use mesh_daemon::ready::Latch;
use mesh_daemon::tasks;
use mesh_model::{PodName, PodUid};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::cni::Call;
use crate::enrol::{self, Delivered, Event, KeeperId, RequestId};
use crate::keepers::KeeperHandle;
use crate::metrics::Metrics;
use crate::sandbox::{Done, Kernel};
use crate::source::{Records, Scope};
use crate::status::Status;
use crate::watch::Scan;
use calls::{Reply, Waiting};
use entry::Entry;
use timers::{Due, Timers};

/// Inputs that wait for the node: more than 250 pods' audits, so that a burst does not stop those who report.
const QUEUE: usize = 1024;

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The plugin asks.
    Cni(Call),
    /// The source says something else.
    Records(Records),
    /// A keeper greeted.
    KeeperUp {
        /// Its number.
        keeper: KeeperId,
        /// How to reach it.
        handle: KeeperHandle,
    },
    /// A keeper's connection ended.
    KeeperDown {
        /// Its number.
        keeper: KeeperId,
    },
    /// A keeper was asked to stop, and drains.
    KeeperLeaving {
        /// Its number.
        keeper: KeeperId,
    },
    /// A keeper answered.
    KeeperAnswer {
        /// Its number.
        keeper: KeeperId,
        /// Which message.
        id: u64,
        /// `None`: done.
        refused: Option<Refused>,
    },
    /// Something was done, or found, in a pod's netns.
    Sandbox {
        /// Whose.
        uid: PodUid,
        /// Which sandbox of the pod.
        serial: u64,
        /// What.
        done: Done,
    },
    /// All processes were looked at.
    Scan(Scan),
    /// The node's addresses changed.
    Facts(NodeFacts),
    /// The plugin left a marker.
    Marker(Marker),
    /// A person asks.
    Admin {
        /// What.
        request: mesh_daemon::admin::Request,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<serde_json::Value, String>>,
    },
}

/// The way to the node.
#[derive(Clone, Debug)]
pub struct Inputs(mpsc::Sender<Input>);

impl Inputs {
    /// A way, and its end.
    pub fn new() -> (Self, mpsc::Receiver<Input>) {
        let (send, receive) = mpsc::channel(QUEUE);
        (Self(send), receive)
    }

    /// Waits for room. When the node has ended, nothing matters any more.
    pub async fn send(&self, input: Input) {
        let _ = self.0.send(input).await;
    }
}

/// What the node is made with.
#[derive(Debug)]
pub struct Parts {
    /// Which pods are ours.
    pub scope: Scope,
    /// How rules are made.
    pub kernel: Kernel,
    /// How long drain rules stay.
    pub linger: Duration,
    /// What the source said first.
    pub records: Records,
    /// Addresses of the node.
    pub facts: NodeFacts,
    /// Files for people.
    pub status: Status,
    /// Numbers for people.
    pub metrics: Metrics,
    /// Where sandboxes run.
    pub group: tasks::Handle,
    /// The way back.
    pub inputs: Inputs,
    /// Asks for a look at the processes.
    pub look: Arc<Notify>,
    /// Asks the source for a pod whose ADD is ahead of it.
    pub wanted: mpsc::Sender<PodName>,
    /// Released when every pod that was there before us has been read back.
    pub adopted: Latch,
    /// The same, for whoever opens the sockets.
    pub adoption: oneshot::Sender<()>,
}

/// A message that a keeper has not answered.
#[derive(Debug)]
struct Unanswered {
    keeper: KeeperId,
    uid: PodUid,
    epoch: u32,
    /// `None`: new facts, whose answer changes nothing.
    what: Option<Delivered>,
}

/// See the module.
#[derive(Debug)]
pub struct Node {
    scope: Scope,
    kernel: Kernel,
    linger: Duration,
    records: Records,
    facts: NodeFacts,
    status: Status,
    metrics: Metrics,
    group: tasks::Handle,
    inputs: Inputs,
    look: Arc<Notify>,
    wanted: mpsc::Sender<PodName>,
    /// Until the first scan has been worked off: pods whose rules are being read.
    adopting: Option<Adopting>,
    pods: BTreeMap<PodUid, Entry>,
    /// Pods that were there before us and whose rules could not be read: also what is plain may have some.
    unread: BTreeSet<PodUid>,
    keepers: BTreeMap<KeeperId, KeeperHandle>,
    /// Of these, who drains: asked for nothing new.
    leaving: BTreeSet<KeeperId>,
    unanswered: BTreeMap<u64, Unanswered>,
    waiting: Vec<Waiting>,
    replies: BTreeMap<RequestId, Reply>,
    timers: Timers,
    /// Keepers that could not be reached while a step was carried out.
    lost: VecDeque<KeeperId>,
    next: u64,
}

#[derive(Debug)]
struct Adopting {
    scanned: bool,
    reading: BTreeSet<PodUid>,
    adopted: Latch,
    adoption: oneshot::Sender<()>,
}

impl Node {
    /// Knows what the parts say, and nothing of the kernel yet.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            scope,
            kernel,
            linger,
            records,
            facts,
            status,
            metrics,
            group,
            inputs,
            look,
            wanted,
            adopted,
            adoption,
        } = parts;
        let mut node = Self {
            scope,
            kernel,
            linger,
            records: Records::default(),
            facts,
            status,
            metrics,
            group,
            inputs,
            look,
            wanted,
            adopting: Some(Adopting { scanned: false, reading: BTreeSet::new(), adopted, adoption }),
            pods: BTreeMap::new(),
            unread: BTreeSet::new(),
            keepers: BTreeMap::new(),
            leaving: BTreeSet::new(),
            unanswered: BTreeMap::new(),
            waiting: Vec::new(),
            replies: BTreeMap::new(),
            timers: Timers::default(),
            lost: VecDeque::new(),
            next: 0,
        };
        node.records(records);
        node
    }

    /// Works until the stop is asked for. Rules stay as they are: pods are captured with or without us.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: mesh_daemon::drain::Watch) {
        loop {
            // Each branch takes something whole or nothing.
            tokio::select! {
                biased;
                () = stop.asked() => return,
                () = self.timers.wait() => {
                    for due in self.timers.due() {
                        self.due(due);
                    }
                }
                input = inputs.recv() => match input {
                    Some(input) => self.on(input),
                    None => return,
                },
            }
            while let Some(keeper) = self.lost.pop_front() {
                self.keeper_down(keeper);
            }
            self.gauge();
        }
    }

    fn on(&mut self, input: Input) {
        match input {
            Input::Cni(call) => self.call(call),
            Input::Records(records) => self.records(records),
            Input::KeeperUp { keeper, handle } => self.keeper_up(keeper, handle),
            Input::KeeperLeaving { keeper } => self.keeper_leaving(keeper),
            Input::KeeperDown { keeper } => self.keeper_down(keeper),
            Input::KeeperAnswer { keeper, id, refused } => self.keeper_answer(keeper, id, refused),
            Input::Sandbox { uid, serial, done } => self.sandbox(&uid, serial, done),
            Input::Scan(scan) => self.scan(&scan),
            Input::Facts(facts) => self.node_facts(facts),
            Input::Marker(marker) => self.marker(marker),
            Input::Admin { request, reply } => self.admin(&request, reply),
        }
    }

    fn due(&mut self, due: Due) {
        match due {
            Due::Pod { uid, epoch, timer } => self.step(&uid, Event::Timeout { epoch, timer }),
            Due::Answer(id) => self.unanswered_in_time(id),
            Due::Waiting(request) => self.record_never_came(request),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// One event for one pod, and what follows from it.
    fn step(&mut self, uid: &PodUid, event: Event) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        tracing::debug!(pod = %entry.record.name, ?event, phase = ?entry.machine.phase(), "event");
        let before = entry.machine.phase();
        let (machine, actions) = enrol::step(entry.machine.clone(), event);
        entry.machine = machine;
        self.passed_stage(uid, before);
        for action in actions {
            self.act(uid, action);
        }
        self.settle(uid);
    }
}

//! What the keeper decides: a pure state machine over pods, the watcher's messages and the worker's answers.
//!
//! No descriptor is in here: a pod is a slot, and the rim ([`super::hands`]) keeps what belongs to it. Time comes in with each
//! event. A slot is never used twice, so a late message about a pod that is gone can hit nobody else.

mod messages;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use mesh_api::link::proxy::{FromKeeper, Refused};
use mesh_api::link::worker::{Family, Purpose, ToWorker};
use mesh_api::link::{NodeFacts, PodFacts};
use mesh_model::{Mark, Reason};
use mesh_net::NetnsId;

use super::bucket::Bucket;

/// How long a message of the watcher may wait for the worker's answer. Below the CNI plugin's 15 s, so that the plugin hears why.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a pod that the worker has refused waits to be offered again: soon for its callers, who find nobody, and seldom for a log that
/// names it each time. Guessed.
const OFFER_AGAIN: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The watcher's link is up; its snapshot begins.
    WatcherUp,
    /// It is down.
    WatcherDown,
    /// Facts of the node.
    Node(NodeFacts),
    /// The rim took this many spare sock_diag sockets.
    Diag(u8),
    /// Serve a pod; the rim holds its netns ready for [`Action::Open`].
    Add { id: u64, pod: PodFacts, netns: NetnsId },
    /// Answer to [`Action::Open`].
    Opened { slot: u32, refused: Option<Refused> },
    /// Facts of a pod changed.
    Update { id: u64, pod: PodFacts },
    /// Stop serving a pod.
    Del { id: u64, uid: String, drain: bool },
    /// Every pod has been named.
    SnapshotEnd { id: u64 },
    /// A worker has greeted us.
    WorkerUp { threads: u8 },
    /// It is gone.
    WorkerDown,
    /// A predecessor has handed over certificates.
    Inherited,
    /// It did what the message said.
    Acked { id: u64 },
    /// It did not.
    Nacked { id: u64, reason: Reason },
    /// It wants sockets.
    Mint { request: u32, slot: u32, family: Family, purpose: Purpose, count: u8 },
    /// Time has passed.
    Tick,
}

/// What the rim is to do, in this order.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Open the listeners of a new pod in the netns that came with the current event, and say how it went.
    Open { slot: u32 },
    /// Let go of everything of this slot.
    Close { slot: u32 },
    /// Tell the watcher.
    ToWatcher(FromKeeper),
    /// Tell the worker, with these descriptors.
    ToWorker(ToWorker, Fds),
    /// Say that a pod which is held has nobody who serves it.
    Unserved { slot: u32, reason: Reason },
    /// Leave the certificates of an earlier worker with this one, if there are any.
    Certificates,
    /// Mint, and answer the worker.
    Mint { request: u32, slot: u32, family: Family, purpose: Purpose, mark: Mark, count: u8, asked: u8 },
}

/// Descriptors that go with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fds {
    /// None.
    None,
    /// This many spare sock_diag sockets.
    Diag(u8),
    /// The listeners of a slot.
    Listeners(u32),
}

/// What the current worker knows of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Sent(u64),
    Serving,
    /// It would not have it. When it is offered again.
    Refused(Duration),
}

/// A message of the watcher that waits for the worker.
#[derive(Debug)]
struct Owed {
    id: u64,
    deadline: Duration,
    /// The message to the worker whose answer settles it; without one, any acknowledgement of the pod does.
    on: Option<u64>,
}

#[derive(Debug)]
struct Pod {
    facts: PodFacts,
    mark: Mark,
    netns: NetnsId,
    /// Named by the watcher since its link came up.
    named: bool,
    /// Some worker has acknowledged it: from then on it is held until it is taken back, whatever happens to workers.
    settled: bool,
    told: Told,
    owed: Vec<Owed>,
    bucket: Bucket,
}

/// What a message to the worker was about.
#[derive(Clone, Copy, Debug)]
enum Sent {
    Pod(u32),
    Update(u32),
    Gone(Option<(u64, Duration)>),
    SnapshotEnd,
}

#[derive(Debug)]
struct Worker {
    /// It has been given the node's facts and the pods.
    introduced: bool,
    snapshot_ended: bool,
    /// sock_diag sockets it would still like.
    diag_owed: u8,
}

/// Everything the keeper knows.
#[derive(Debug)]
pub struct State {
    pods: BTreeMap<u32, Pod>,
    slots: HashMap<String, u32>,
    last_slot: u32,
    last_id: u64,
    node: Option<NodeFacts>,
    /// A snapshot has been complete once in this keeper's life: a worker may then be told "these are all".
    complete: bool,
    watcher_up: bool,
    worker: Option<Worker>,
    sent: BTreeMap<u64, Sent>,
    diag: Stock,
}

/// Spare sock_diag sockets.
#[derive(Debug)]
struct Stock {
    spare: u8,
    asked: bool,
    /// For the next worker.
    reserve: u8,
}

/// Most sockets that one message of the watcher carries.
const DIAG_BATCH: u8 = 16;

impl State {
    /// Nothing is known. `threads`: how many the worker is expected to run, until one has said.
    pub fn new(threads: u8) -> Self {
        Self {
            pods: BTreeMap::new(),
            slots: HashMap::new(),
            last_slot: 0,
            last_id: 0,
            node: None,
            complete: false,
            watcher_up: false,
            worker: None,
            sent: BTreeMap::new(),
            diag: Stock { spare: 0, asked: false, reserve: threads },
        }
    }

    /// The one way in.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::WatcherUp => self.watcher_up(&mut out),
            Event::WatcherDown => self.watcher_down(),
            Event::Node(facts) => self.node(facts, &mut out),
            Event::Diag(count) => self.diag(count, &mut out),
            Event::Add { id, pod, netns } => self.add(now, id, pod, netns, &mut out),
            Event::Opened { slot, refused } => self.opened(slot, refused, &mut out),
            Event::Update { id, pod } => self.update(now, id, pod, &mut out),
            Event::Del { id, uid, drain } => self.del(now, id, &uid, drain, &mut out),
            Event::SnapshotEnd { id } => self.snapshot_end(id, &mut out),
            Event::WorkerUp { threads } => self.worker_up(threads, &mut out),
            Event::Inherited => self.inherited(&mut out),
            Event::WorkerDown => self.worker_down(&mut out),
            Event::Acked { id } => self.acked(id, &mut out),
            Event::Nacked { id, reason } => self.nacked(now, id, reason, &mut out),
            Event::Mint { request, slot, family, purpose, count } => {
                out.push(self.mint(now, request, slot, family, purpose, count));
            }
            Event::Tick => self.tick(now, &mut out),
        }
        out
    }

    /// When [`Event::Tick`] is due.
    pub fn next_deadline(&self) -> Option<Duration> {
        let owed = self.pods.values().flat_map(|pod| pod.owed.iter().map(|owed| owed.deadline));
        let gone = self.sent.values().filter_map(|sent| match sent {
            Sent::Gone(Some((_, deadline))) => Some(*deadline),
            _ => None,
        });
        let again = self.pods.values().filter_map(|pod| match pod.told {
            Told::Refused(again) => Some(again),
            _ => None,
        });
        owed.chain(gone).chain(again).min()
    }

    /// Slot, uid and netns of every pod that is held.
    pub fn held(&self) -> impl Iterator<Item = (u32, &str, NetnsId)> {
        self.pods.iter().map(|(slot, pod)| (*slot, pod.facts.uid.as_str(), pod.netns))
    }

    /// Whether this pod is held, in this netns.
    pub fn holds(&self, uid: &str, netns: NetnsId) -> bool {
        self.slots.get(uid).and_then(|slot| self.pods.get(slot)).is_some_and(|pod| pod.netns == netns)
    }

    /// Namespace and name of a pod that is held.
    pub fn name(&self, slot: u32) -> Option<String> {
        self.pods.get(&slot).map(|pod| format!("{}/{}", pod.facts.namespace, pod.facts.name))
    }

    /// How many pods are held.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    fn mint(&mut self, now: Duration, request: u32, slot: u32, family: Family, purpose: Purpose, asked: u8) -> Action {
        let short = |reason: Reason| {
            Action::ToWorker(ToWorker::Minted { request, short: Some(reason.as_str().to_owned()) }, Fds::None)
        };
        let Some(pod) = self.pods.get_mut(&slot) else { return short(Reason::NotReady) };
        match pod.bucket.take(now, u32::from(asked)) {
            0 => short(Reason::Overloaded),
            // `take` grants at most what was asked, which is a u8.
            count => Action::Mint { request, slot, family, purpose, mark: pod.mark, count: count as u8, asked },
        }
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        let (reason, why) = match self.worker {
            None => {
                (Reason::LinkDown, "no worker came in time; look at the worker container of node-proxy on this node")
            }
            Some(Worker { introduced: false, .. }) => (Reason::NotReady, "the node's facts have not been sent yet"),
            Some(_) => (Reason::NotReady, "the worker did not answer in time; look at its log"),
        };
        let mut failed = Vec::new();
        for (slot, pod) in &mut self.pods {
            let (late, rest): (Vec<_>, Vec<_>) = pod.owed.drain(..).partition(|owed| owed.deadline <= now);
            pod.owed = rest;
            for owed in &late {
                out.push(refuse(owed.id, reason, format!("pod {}/{}: {why}", pod.facts.namespace, pod.facts.name)));
            }
            // What was refused is not served: a pod that no worker ever took is let go, so that nothing is left behind.
            if !late.is_empty() && pod.owed.is_empty() && !pod.settled {
                failed.push(*slot);
            }
        }
        for slot in failed {
            self.let_go(slot, false, None, out);
        }
        for sent in self.sent.values_mut() {
            if let Sent::Gone(owed) = sent
                && let Some((id, _)) = owed.take_if(|(_, deadline)| *deadline <= now)
            {
                out.push(refuse(
                    id,
                    reason,
                    "the worker has not confirmed that the pod's listeners are closed".to_owned(),
                ));
            }
        }
        let mut refused = Vec::new();
        for (slot, pod) in &mut self.pods {
            if let Told::Refused(again) = &mut pod.told
                && *again <= now
            {
                *again = now + OFFER_AGAIN;
                refused.push(*slot);
            }
        }
        for slot in refused {
            self.send_pod(slot, out);
        }
    }

    /// Forgets a pod and has its descriptors closed, here and at the worker. `owed`: whom to tell when the worker is done.
    fn let_go(&mut self, slot: u32, drain: bool, owed: Option<(u64, Duration)>, out: &mut Vec<Action>) {
        let Some(pod) = self.pods.remove(&slot) else { return };
        if self.slots.get(&pod.facts.uid) == Some(&slot) {
            self.slots.remove(&pod.facts.uid);
        }
        out.push(Action::Close { slot });
        for waiting in pod.owed {
            let message = format!("pod {}/{} was taken back before it was served", pod.facts.namespace, pod.facts.name);
            out.push(refuse(waiting.id, Reason::Draining, message));
        }
        match pod.told {
            Told::Sent(_) | Told::Serving => {
                let id = self.send(Sent::Gone(owed));
                out.push(Action::ToWorker(ToWorker::Gone { id, slot, drain }, Fds::None));
            }
            Told::Nothing | Told::Refused(_) => out.extend(owed.map(|(id, _)| done(id))),
        }
    }

    fn send(&mut self, what: Sent) -> u64 {
        self.last_id += 1;
        self.sent.insert(self.last_id, what);
        self.last_id
    }
}

fn done(id: u64) -> Action {
    Action::ToWatcher(FromKeeper::Ack { id, refused: None })
}

fn refuse(id: u64, reason: Reason, message: String) -> Action {
    Action::ToWatcher(FromKeeper::Ack { id, refused: Some(Refused { reason: reason.as_str().to_owned(), message }) })
}

#[cfg(test)]
mod tests;

//! Both far ends of the keeper and its rim, as far as they can be seen from the messages. Panics when a promise is broken.

use std::collections::{BTreeMap, BTreeSet};

use super::super::*;

pub const NOW: Duration = Duration::from_secs(1);

pub fn facts(uid: &str, mark: u32) -> PodFacts {
    PodFacts {
        uid: uid.to_owned(),
        namespace: "shop".to_owned(),
        name: uid.to_owned(),
        service_account: "default".to_owned(),
        addresses: Vec::new(),
        mark,
        probe_ports: Vec::new(),
    }
}

pub fn netns(ino: u64) -> NetnsId {
    NetnsId { dev: 4, ino }
}

/// Both far ends and the rim, as far as they can be seen from the messages. Panics when a promise is broken.
pub struct World {
    pub state: State,
    pub now: Duration,
    pub next_id: u64,
    pub watcher: Option<WatcherEnd>,
    pub worker: Option<WorkerEnd>,
    pub open: BTreeSet<u32>,
    pub ever: BTreeSet<u32>,
    pub spare: u8,
    pub refuse_open: bool,
    pub heard: Vec<(u64, Option<String>)>,
    pub minted: Vec<(u32, u8)>,
    pub unserved: Vec<u32>,
}

#[derive(Default)]
pub struct WatcherEnd {
    pub unanswered: BTreeMap<u64, Ask>,
    pub wanted: Option<u8>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    Serve(String),
    Take(Option<u32>),
    End,
}

#[derive(Default)]
pub struct WorkerEnd {
    pub threads: u8,
    pub introduced: bool,
    pub ended: bool,
    pub diag: u8,
    pub pods: BTreeSet<u32>,
    pub acked: BTreeSet<u32>,
    pub unanswered: Vec<(u64, Option<u32>)>,
}

impl World {
    pub fn new() -> Self {
        Self {
            state: State::new(2),
            now: NOW,
            next_id: 100,
            watcher: None,
            worker: None,
            open: BTreeSet::new(),
            ever: BTreeSet::new(),
            spare: 0,
            refuse_open: false,
            heard: Vec::new(),
            minted: Vec::new(),
            unserved: Vec::new(),
        }
    }

    pub fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.state.step(self.now, event) {
                self.act(action, &mut events);
            }
        }
        assert_eq!(self.open, self.state.pods.keys().copied().collect(), "descriptors are held exactly for held pods");
        assert_eq!(self.state.slots.len(), self.state.pods.len());
    }

    pub fn act(&mut self, action: Action, events: &mut Vec<Event>) {
        match action {
            Action::Open { slot } => {
                assert!(self.ever.insert(slot), "slot {slot} was used before");
                let refused =
                    self.refuse_open.then(|| Refused { reason: "Conflict".to_owned(), message: String::new() });
                // The rim holds nothing for a refused pod; the state lets go of it.
                self.open.insert(slot);
                events.push(Event::Opened { slot, refused });
            }
            Action::Close { slot } => assert!(self.open.remove(&slot), "slot {slot} was closed before"),
            Action::ToWatcher(FromKeeper::Ack { id, refused }) => {
                let watcher = self.watcher.as_mut().expect("nobody to tell");
                let ask = watcher.unanswered.remove(&id).expect("answered once");
                match (&ask, &refused) {
                    (Ask::Serve(uid), None) => {
                        let slot = self.state.slots[uid];
                        assert!(
                            self.worker.as_ref().expect("a worker").acked.contains(&slot),
                            "acked before the worker did"
                        );
                    }
                    (Ask::Take(Some(slot)), None) => assert!(!self.open.contains(slot)),
                    _ => {}
                }
                self.heard.push((id, refused.map(|refused| refused.reason)));
            }
            Action::ToWatcher(FromKeeper::WantDiag { count }) => {
                let watcher = self.watcher.as_mut().expect("nobody to ask");
                assert!((1..=16).contains(&count));
                assert_eq!(watcher.wanted.replace(count), None, "one request at a time");
            }
            Action::ToWatcher(
                FromKeeper::Hello(_) | FromKeeper::Leaving | FromKeeper::Stats(_) | FromKeeper::Counter { .. },
            ) => {
                panic!("the rim's own")
            }
            Action::Unserved { slot, .. } => {
                assert!(self.open.contains(&slot) && !self.worker.as_ref().expect("a worker").pods.contains(&slot));
                self.unserved.push(slot);
            }
            Action::Certificates => assert!(self.worker.as_ref().is_some_and(|worker| worker.introduced)),
            Action::Mint { request, slot, count, .. } => {
                assert!(self.open.contains(&slot));
                self.minted.push((request, count));
            }
            Action::ToWorker(message, fds) => self.tell_worker(message, fds),
        }
    }

    pub fn tell_worker(&mut self, message: ToWorker, fds: Fds) {
        let worker = self.worker.as_mut().expect("no worker to tell");
        assert!(
            worker.introduced || matches!(message, ToWorker::Node(_) | ToWorker::Minted { .. }),
            "the node comes first"
        );
        match (message, fds) {
            (ToWorker::Node(_), Fds::Diag(count)) => {
                worker.introduced = true;
                worker.diag += count;
                assert!(worker.diag <= worker.threads);
                self.spare = self.spare.checked_sub(count).expect("never more than there are");
            }
            (ToWorker::Pod { id, slot, .. }, Fds::Listeners(of)) => {
                assert!(slot == of && self.open.contains(&slot) && worker.pods.insert(slot));
                worker.unanswered.push((id, Some(slot)));
            }
            (ToWorker::Update { id, slot, .. }, Fds::None) => {
                assert!(worker.pods.contains(&slot));
                worker.unanswered.push((id, None));
            }
            (ToWorker::Gone { id, slot, .. }, Fds::None) => {
                assert!(worker.pods.remove(&slot) && !self.open.contains(&slot));
                worker.unanswered.push((id, None));
            }
            (ToWorker::SnapshotEnd { id }, Fds::None) => {
                assert!(!std::mem::replace(&mut worker.ended, true));
                worker.unanswered.push((id, None));
            }
            (ToWorker::Minted { request, short: Some(_) }, Fds::None) => self.minted.push((request, 0)),
            other => panic!("{other:?}"),
        }
    }

    pub fn ask(&mut self, ask: Ask, event: impl FnOnce(u64) -> Event) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        let Some(watcher) = &mut self.watcher else { return id };
        watcher.unanswered.insert(id, ask);
        self.step(event(id));
        id
    }

    pub fn add(&mut self, uid: &str, ino: u64, mark: u32) -> u64 {
        let pod = facts(uid, mark);
        self.ask(Ask::Serve(uid.to_owned()), |id| Event::Add { id, pod, netns: netns(ino) })
    }

    pub fn update(&mut self, uid: &str, mark: u32) -> u64 {
        let pod = facts(uid, mark);
        self.ask(Ask::Serve(uid.to_owned()), |id| Event::Update { id, pod })
    }

    pub fn del(&mut self, uid: &str) -> u64 {
        let name = uid.to_owned();
        self.ask(Ask::Take(self.state.slots.get(uid).copied()), |id| Event::Del { id, uid: name, drain: false })
    }

    pub fn end(&mut self) -> u64 {
        self.ask(Ask::End, |id| Event::SnapshotEnd { id })
    }

    pub fn watcher_up(&mut self) {
        self.watcher = Some(WatcherEnd::default());
        self.step(Event::WatcherUp);
        self.step(Event::Node(NodeFacts { name: "node-1".to_owned(), addresses: Vec::new() }));
    }

    pub fn watcher_down(&mut self) {
        if self.watcher.take().is_some() {
            self.step(Event::WatcherDown);
        }
    }

    pub fn worker_up(&mut self, threads: u8) {
        self.worker_down();
        self.worker = Some(WorkerEnd { threads, ..WorkerEnd::default() });
        self.step(Event::WorkerUp { threads });
    }

    pub fn worker_down(&mut self) {
        if self.worker.is_some() {
            // Its descriptors are closed before the keeper hears of it.
            self.worker = None;
            self.step(Event::WorkerDown);
        }
    }

    pub fn diag(&mut self, count: u8) {
        if let Some(watcher) = &mut self.watcher {
            watcher.wanted = None;
            self.spare += count;
            self.step(Event::Diag(count));
        }
    }

    pub fn answer(&mut self, index: usize, refused: Option<Reason>) {
        let Some(worker) = &mut self.worker else { return };
        if worker.unanswered.is_empty() {
            return;
        }
        let (id, slot) = worker.unanswered.remove(index % worker.unanswered.len());
        match (refused, slot) {
            (None, Some(slot)) => {
                worker.acked.insert(slot);
            }
            (Some(_), Some(slot)) => {
                worker.pods.remove(&slot);
            }
            (_, None) => {}
        }
        self.step(match refused {
            None => Event::Acked { id },
            Some(reason) => Event::Nacked { id, reason },
        });
    }

    pub fn answer_all(&mut self) {
        while self.worker.as_ref().is_some_and(|worker| !worker.unanswered.is_empty()) {
            self.answer(0, None);
        }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.state.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.step(Event::Tick);
        }
    }

    pub fn held(&self) -> BTreeSet<String> {
        self.state.slots.keys().cloned().collect()
    }

    pub fn heard(&self, id: u64) -> Option<Option<&str>> {
        self.heard.iter().find(|(heard, _)| *heard == id).map(|(_, refused)| refused.as_deref())
    }
}

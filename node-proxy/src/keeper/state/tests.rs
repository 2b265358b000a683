//! Cases by name, then random orders of events against a model of both links.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1);

fn facts(uid: &str, mark: u32) -> PodFacts {
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

fn netns(ino: u64) -> NetnsId {
    NetnsId { dev: 4, ino }
}

/// Both far ends and the rim, as far as they can be seen from the messages. Panics when a promise is broken.
struct World {
    state: State,
    now: Duration,
    next_id: u64,
    watcher: Option<WatcherEnd>,
    worker: Option<WorkerEnd>,
    open: BTreeSet<u32>,
    ever: BTreeSet<u32>,
    spare: u8,
    refuse_open: bool,
    heard: Vec<(u64, Option<String>)>,
    minted: Vec<(u32, u8)>,
}

#[derive(Default)]
struct WatcherEnd {
    unanswered: BTreeMap<u64, Ask>,
    wanted: Option<u8>,
}

#[derive(Clone, Debug, PartialEq)]
enum Ask {
    Serve(String),
    Take(Option<u32>),
    End,
}

#[derive(Default)]
struct WorkerEnd {
    threads: u8,
    introduced: bool,
    ended: bool,
    diag: u8,
    pods: BTreeSet<u32>,
    acked: BTreeSet<u32>,
    unanswered: Vec<(u64, Option<u32>)>,
}

impl World {
    fn new() -> Self {
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
        }
    }

    fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.state.step(self.now, event) {
                self.act(action, &mut events);
            }
        }
        assert_eq!(self.open, self.state.pods.keys().copied().collect(), "descriptors are held exactly for held pods");
        assert_eq!(self.state.slots.len(), self.state.pods.len());
    }

    fn act(&mut self, action: Action, events: &mut Vec<Event>) {
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
            Action::ToWatcher(FromKeeper::Hello(_)) => panic!("greetings are the rim's"),
            Action::Certificates => assert!(self.worker.as_ref().is_some_and(|worker| worker.introduced)),
            Action::Mint { request, slot, count, .. } => {
                assert!(self.open.contains(&slot));
                self.minted.push((request, count));
            }
            Action::ToWorker(message, fds) => self.tell_worker(message, fds),
        }
    }

    fn tell_worker(&mut self, message: ToWorker, fds: Fds) {
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

    fn ask(&mut self, ask: Ask, event: impl FnOnce(u64) -> Event) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        let Some(watcher) = &mut self.watcher else { return id };
        watcher.unanswered.insert(id, ask);
        self.step(event(id));
        id
    }

    fn add(&mut self, uid: &str, ino: u64, mark: u32) -> u64 {
        let pod = facts(uid, mark);
        self.ask(Ask::Serve(uid.to_owned()), |id| Event::Add { id, pod, netns: netns(ino) })
    }

    fn update(&mut self, uid: &str, mark: u32) -> u64 {
        let pod = facts(uid, mark);
        self.ask(Ask::Serve(uid.to_owned()), |id| Event::Update { id, pod })
    }

    fn del(&mut self, uid: &str) -> u64 {
        let name = uid.to_owned();
        self.ask(Ask::Take(self.state.slots.get(uid).copied()), |id| Event::Del { id, uid: name, drain: false })
    }

    fn end(&mut self) -> u64 {
        self.ask(Ask::End, |id| Event::SnapshotEnd { id })
    }

    fn watcher_up(&mut self) {
        self.watcher = Some(WatcherEnd::default());
        self.step(Event::WatcherUp);
        self.step(Event::Node(NodeFacts { name: "node-1".to_owned(), addresses: Vec::new() }));
    }

    fn watcher_down(&mut self) {
        if self.watcher.take().is_some() {
            self.step(Event::WatcherDown);
        }
    }

    fn worker_up(&mut self, threads: u8) {
        self.worker_down();
        self.worker = Some(WorkerEnd { threads, ..WorkerEnd::default() });
        self.step(Event::WorkerUp { threads });
    }

    fn worker_down(&mut self) {
        if self.worker.is_some() {
            // Its descriptors are closed before the keeper hears of it.
            self.worker = None;
            self.step(Event::WorkerDown);
        }
    }

    fn diag(&mut self, count: u8) {
        if let Some(watcher) = &mut self.watcher {
            watcher.wanted = None;
            self.spare += count;
            self.step(Event::Diag(count));
        }
    }

    fn answer(&mut self, index: usize, refused: Option<Reason>) {
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

    fn answer_all(&mut self) {
        while self.worker.as_ref().is_some_and(|worker| !worker.unanswered.is_empty()) {
            self.answer(0, None);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.state.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.step(Event::Tick);
        }
    }

    fn held(&self) -> BTreeSet<String> {
        self.state.slots.keys().cloned().collect()
    }

    fn heard(&self, id: u64) -> Option<Option<&str>> {
        self.heard.iter().find(|(heard, _)| *heard == id).map(|(_, refused)| refused.as_deref())
    }
}

fn both_up() -> World {
    let mut world = World::new();
    world.watcher_up();
    world.worker_up(2);
    world
}

#[test]
fn a_pod_is_acked_only_when_the_worker_has_it() {
    let mut world = both_up();
    let add = world.add("a", 1, 7);
    assert_eq!(world.heard(add), None);
    world.answer_all();
    assert_eq!(world.heard(add), Some(None));
    assert_eq!(world.add("a", 1, 7), world.heard.last().expect("acked at once: nothing changed").0);
}

#[test]
fn a_pod_added_while_no_worker_is_there_is_acked_when_one_comes_in_time() {
    let mut world = World::new();
    world.watcher_up();
    let add = world.add("a", 1, 7);
    world.pass(PATIENCE / 2);
    world.worker_up(2);
    world.answer_all();
    assert_eq!(world.heard(add), Some(None));
}

#[test]
fn a_pod_that_no_worker_takes_in_time_is_refused_and_let_go() {
    let mut world = World::new();
    world.watcher_up();
    let add = world.add("a", 1, 7);
    world.pass(PATIENCE);
    assert_eq!(world.heard(add), Some(Some("LinkDown")));
    assert!(world.open.is_empty());

    let mut world = both_up();
    let add = world.add("a", 1, 7);
    world.pass(PATIENCE);
    assert_eq!(world.heard(add), Some(Some("NotReady")));
    assert!(world.open.is_empty() && world.worker.expect("worker").pods.is_empty(), "the worker lets go as well");
}

#[test]
fn a_served_pod_is_held_through_the_loss_of_worker_and_watcher() {
    let mut world = both_up();
    world.add("a", 1, 7);
    world.end();
    world.answer_all();
    world.worker_down();
    world.watcher_down();
    world.pass(Duration::from_secs(3600));
    assert_eq!(world.open.len(), 1);
    world.worker_up(2);
    let worker = world.worker.as_ref().expect("worker");
    assert!(worker.pods == world.open && worker.ended, "the next worker gets it at once, with nobody asked");
    world.answer(0, Some(Reason::Internal));
    assert_eq!(world.open.len(), 1, "listeners stay for a worker that can serve it");
}

#[test]
fn a_pod_that_cannot_be_opened_is_refused_with_the_reason_and_leaves_nothing() {
    let mut world = both_up();
    world.refuse_open = true;
    let add = world.add("a", 1, 7);
    assert_eq!(world.heard(add), Some(Some("Conflict")));
    assert!(world.open.is_empty());
}

#[test]
fn what_a_snapshot_does_not_name_is_let_go() {
    let mut world = both_up();
    for (uid, ino) in [("a", 1), ("b", 2)] {
        world.add(uid, ino, 7);
    }
    world.end();
    world.answer_all();
    world.watcher_down();
    world.watcher_up();
    world.add("b", 2, 7);
    assert_eq!(world.open.len(), 2, "not before the end");
    let end = world.end();
    assert_eq!(world.heard(end), Some(None));
    assert_eq!(world.held(), BTreeSet::from(["b".to_owned()]));
    assert_eq!(world.worker.expect("worker").pods, world.open);
}

#[test]
fn the_same_pod_in_another_netns_gets_a_new_slot() {
    let mut world = both_up();
    world.add("a", 1, 7);
    world.answer_all();
    let first = world.open.clone();
    let again = world.add("a", 2, 7);
    world.answer_all();
    assert_eq!(world.heard(again), Some(None));
    assert!(world.open.len() == 1 && world.open.is_disjoint(&first));
}

#[test]
fn a_pod_is_taken_back_when_the_worker_says_so_or_dies() {
    let mut world = both_up();
    for (uid, ino) in [("a", 1), ("b", 2)] {
        world.add(uid, ino, 7);
    }
    world.answer_all();
    let del = world.del("a");
    assert_eq!(world.heard(del), None);
    world.answer_all();
    assert_eq!(world.heard(del), Some(None));
    let del = world.del("b");
    world.worker_down();
    assert_eq!(world.heard(del), Some(None));
    let unknown = world.del("c");
    assert_eq!(world.heard(unknown), Some(None), "twice is the same as once");
}

#[test]
fn a_worker_of_a_fresh_keeper_is_not_told_that_its_snapshot_is_whole() {
    let mut world = World::new();
    world.worker_up(2);
    assert!(!world.worker.as_ref().expect("worker").introduced, "the node is not known yet");
    world.watcher_up();
    world.add("a", 1, 7);
    assert!(!world.worker.as_ref().expect("worker").ended);
    world.end();
    assert!(world.worker.as_ref().expect("worker").ended);
}

#[test]
fn sock_diag_sockets_reach_the_worker_and_spares_are_kept_for_the_next() {
    let mut world = both_up();
    for _ in 0..4 {
        let Some(wanted) = world.watcher.as_ref().and_then(|watcher| watcher.wanted) else { break };
        world.diag(wanted);
    }
    assert_eq!(world.watcher.as_ref().and_then(|watcher| watcher.wanted), None, "asking comes to an end");
    assert_eq!((world.worker.as_ref().expect("worker").diag, world.spare), (2, 2));
    world.watcher_down();
    world.worker_up(2);
    assert_eq!((world.worker.as_ref().expect("worker").diag, world.spare), (2, 0));
}

#[test]
fn mint_requests_are_bounded_and_unknown_slots_get_nothing() {
    let mut world = both_up();
    world.add("a", 1, 7);
    let slot = *world.open.first().expect("open");
    let mint =
        |request, slot| Event::Mint { request, slot, family: Family::V4, purpose: Purpose::TowardsApp, count: 64 };
    world.step(mint(0, slot + 1));
    for request in 1..=100 {
        world.step(mint(request, slot));
    }
    assert_eq!(world.minted[0], (0, 0));
    assert_eq!(world.minted.iter().map(|(_, count)| u32::from(*count)).sum::<u32>(), 4096);
    world.add("b", 2, 7);
    let other = *world.open.last().expect("open");
    world.step(mint(101, other));
    assert_eq!(world.minted.last(), Some(&(101, 64)), "one pod's greed is not another's");
}

#[test]
fn a_pod_with_a_mark_or_uid_that_cannot_be_used_is_refused() {
    let mut world = both_up();
    for (uid, mark) in [("a", 0), ("a", 0x539), ("a", 0x8000_0001), ("", 7), ("../a", 7)] {
        let add = world.add(uid, 1, mark);
        assert_eq!(world.heard(add), Some(Some("Malformed")), "{uid:?} {mark}");
    }
    assert!(world.open.is_empty());
}

#[derive(Clone, Debug)]
enum Op {
    WatcherUp,
    WatcherDown,
    WorkerUp(u8),
    WorkerDown,
    Add { uid: usize, ino: u64, mark: u32, fails: bool },
    Update { uid: usize, mark: u32 },
    Del { uid: usize },
    End,
    Diag(u8),
    Answer { index: usize, refused: bool },
    Pass(u64),
    Mint(u32),
}

const UIDS: [&str; 4] = ["a", "b", "c", "d"];

fn op() -> impl Strategy<Value = Op> {
    let uid = 0..UIDS.len();
    prop_oneof![
        1 => Just(Op::WatcherUp),
        1 => Just(Op::WatcherDown),
        1 => (1..5_u8).prop_map(Op::WorkerUp),
        1 => Just(Op::WorkerDown),
        5 => (uid.clone(), 1..3_u64, 1..3_u32, any::<bool>())
            .prop_map(|(uid, ino, mark, fails)| Op::Add { uid, ino, mark, fails }),
        3 => (uid.clone(), 1..3_u32).prop_map(|(uid, mark)| Op::Update { uid, mark }),
        3 => uid.prop_map(|uid| Op::Del { uid }),
        1 => Just(Op::End),
        2 => (0..5_u8).prop_map(Op::Diag),
        8 => (0..8_usize, prop::bool::weighted(0.2)).prop_map(|(index, refused)| Op::Answer { index, refused }),
        2 => (1..8_u64).prop_map(Op::Pass),
        1 => (0..10_u32).prop_map(Op::Mint),
    ]
}

fn apply(world: &mut World, op: Op) {
    match op {
        Op::WatcherUp => {
            world.watcher_down();
            world.watcher_up();
        }
        Op::WatcherDown => world.watcher_down(),
        Op::WorkerUp(threads) => world.worker_up(threads),
        Op::WorkerDown => world.worker_down(),
        Op::Add { uid, ino, mark, fails } => {
            world.refuse_open = fails;
            world.add(UIDS[uid], ino, mark);
        }
        Op::Update { uid, mark } => drop(world.update(UIDS[uid], mark)),
        Op::Del { uid } => drop(world.del(UIDS[uid])),
        Op::End => drop(world.end()),
        Op::Diag(count) => world.diag(count),
        Op::Answer { index, refused } => world.answer(index, refused.then_some(Reason::NotReady)),
        Op::Pass(seconds) => world.pass(Duration::from_secs(seconds)),
        Op::Mint(slot) => {
            if world.worker.is_some() {
                let (family, purpose) = (Family::V6, Purpose::TowardsPeer);
                world.step(Event::Mint { request: 0, slot, family, purpose, count: 1 });
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every promise of `World::act` holds in any order of events, and afterwards one snapshot brings everybody to the same truth.
    #[test]
    fn any_order_of_events_keeps_the_promises_and_a_snapshot_heals(ops in prop::collection::vec(op(), 0..60), want in 0..16_u8) {
        let mut world = World::new();
        for op in ops {
            apply(&mut world, op);
        }
        // Every question is answered by then.
        world.pass(PATIENCE);
        prop_assert!(world.watcher.as_ref().is_none_or(|watcher| watcher.unanswered.is_empty()));
        prop_assert_eq!(world.state.next_deadline(), None);

        world.refuse_open = false;
        world.watcher_down();
        world.watcher_up();
        world.worker_up(2);
        let wanted: BTreeSet<String> =
            UIDS.iter().enumerate().filter(|(bit, _)| want & (1 << bit) != 0).map(|(_, uid)| (*uid).to_owned()).collect();
        for uid in &wanted {
            world.add(uid, 9, 7);
        }
        world.end();
        world.answer_all();
        prop_assert_eq!(world.held(), wanted);
        let worker = world.worker.as_ref().expect("up");
        prop_assert!(worker.pods == world.open && worker.acked.is_superset(&world.open) && worker.ended);
        prop_assert!(world.watcher.as_ref().expect("up").unanswered.is_empty());
        prop_assert!(world.state.sent.is_empty());
    }
}

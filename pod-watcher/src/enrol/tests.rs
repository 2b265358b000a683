//! Random event orders against a small world: one netns, a FIFO of rule jobs, keepers that answer in any order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mesh_model::Reason;
use proptest::prelude::*;

use super::*;

fn failure() -> Failure {
    Failure { reason: Reason::Kernel, message: "as the test says".to_owned(), next: "nothing" }
}

/// What the test does next; numbers pick among what is possible.
#[derive(Clone, Debug)]
enum Op {
    Add { fresh: bool },
    Del,
    NetnsGone,
    Source(Want),
    Facts,
    KeeperUp,
    KeeperLeaving(usize),
    KeeperDown(usize),
    Job { works: bool },
    Answer { which: usize, works: bool },
    Fire(Timer),
    Drift,
    Found,
    Stale(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let want = prop_oneof![4 => Just(Want::Enrolled), 2 => Just(Want::Plain), 1 => Just(Want::Gone)];
    prop_oneof![
        3 => proptest::bool::weighted(0.3).prop_map(|fresh| Op::Add { fresh }),
        1 => Just(Op::Del),
        1 => Just(Op::NetnsGone),
        4 => want.prop_map(Op::Source),
        1 => Just(Op::Facts),
        3 => Just(Op::KeeperUp),
        2 => (0..3_usize).prop_map(Op::KeeperLeaving),
        2 => (0..3_usize).prop_map(Op::KeeperDown),
        12 => proptest::bool::weighted(0.8).prop_map(|works| Op::Job { works }),
        12 => (0..4_usize, proptest::bool::weighted(0.8)).prop_map(|(which, works)| Op::Answer { which, works }),
        2 => prop_oneof![Just(Timer::Deadline), Just(Timer::Retry), Just(Timer::Linger)].prop_map(Op::Fire),
        2 => Just(Op::Drift),
        2 => Just(Op::Found),
        2 => (0..50_usize).prop_map(Op::Stale),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Job {
    Apply(u32, Stage),
    Remove(u32),
    Listeners(u32),
}

struct World {
    pod: Pod,
    in_force: InForce,
    jobs: VecDeque<Job>,
    /// Sent and not answered, in the order sent.
    sent: Vec<(KeeperId, u32, Delivered)>,
    serving: BTreeSet<KeeperId>,
    connected: BTreeSet<KeeperId>,
    leaving: BTreeSet<KeeperId>,
    armed: BTreeMap<Timer, u32>,
    asked: BTreeSet<RequestId>,
    answered: BTreeMap<RequestId, bool>,
    /// Epochs in which an offer was acknowledged, and in which all listeners were read back.
    acked: BTreeSet<u32>,
    seen: BTreeSet<u32>,
    next: u64,
    past: Vec<Event>,
    /// Of each keeper that was told to stop, in that order: whether open connections may live on.
    drains: Vec<bool>,
}

impl World {
    fn new() -> Self {
        Self {
            pod: Pod::new(Want::Plain, []),
            in_force: InForce::Nothing,
            jobs: VecDeque::new(),
            sent: Vec::new(),
            serving: BTreeSet::new(),
            connected: BTreeSet::new(),
            leaving: BTreeSet::new(),
            armed: BTreeMap::new(),
            asked: BTreeSet::new(),
            answered: BTreeMap::new(),
            acked: BTreeSet::new(),
            seen: BTreeSet::new(),
            next: 0,
            past: Vec::new(),
            drains: Vec::new(),
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Add { fresh } => {
                self.next += 1;
                self.asked.insert(self.next);
                if fresh {
                    self.in_force = InForce::Nothing;
                    self.jobs.clear();
                }
                self.event(Event::CniAdd { request: self.next, fresh });
            }
            Op::Del => self.event(Event::CniDel),
            Op::NetnsGone => self.event(Event::NetnsGone),
            Op::Source(want) => self.event(Event::Source(want)),
            Op::Facts => self.event(Event::FactsChanged),
            Op::KeeperUp => {
                self.next += 1;
                self.connected.insert(self.next);
                self.event(Event::KeeperUp(self.next));
            }
            Op::KeeperLeaving(which) => {
                let Some(keeper) = self.connected.iter().nth(which).copied() else { return };
                self.leaving.insert(keeper);
                self.event(Event::KeeperLeaving(keeper));
            }
            Op::KeeperDown(which) => {
                let Some(keeper) = self.connected.iter().nth(which).copied() else { return };
                self.connected.remove(&keeper);
                self.serving.remove(&keeper);
                self.sent.retain(|(to, ..)| *to != keeper);
                self.event(Event::KeeperDown(keeper));
            }
            Op::Job { works } => self.job(works),
            Op::Answer { which, works } => self.answer(which, works),
            Op::Fire(timer) => {
                if let Some(epoch) = self.armed.remove(&timer) {
                    self.event(Event::Timeout { epoch, timer });
                }
            }
            Op::Drift => {
                let epoch = self.pod.epoch();
                if self.pod.is_auditable() {
                    self.event(Event::RulesDrift { epoch });
                }
            }
            Op::Found => {
                if self.pod.phase() == Phase::Absent && self.jobs.is_empty() {
                    self.event(Event::Found(self.in_force));
                }
            }
            Op::Stale(which) => {
                // Something that happened before is told once more; it must not count twice.
                if let Some(event) = self.past.get(which).cloned() {
                    self.event(event);
                }
            }
        }
    }

    fn job(&mut self, works: bool) {
        let Some(job) = self.jobs.pop_front() else { return };
        let event = match (job, works) {
            (Job::Apply(epoch, stage), true) => {
                self.in_force = InForce::Table(stage);
                Event::RulesApplied { epoch, stage }
            }
            (Job::Apply(epoch, stage), false) => Event::RulesFailed { epoch, stage, failure: failure() },
            (Job::Remove(epoch), true) => {
                self.in_force = InForce::Nothing;
                Event::RulesRemoved { epoch }
            }
            (Job::Remove(epoch), false) => Event::RemoveFailed { epoch, failure: failure() },
            (Job::Listeners(epoch), _) => Event::ListenersSeen { epoch, all: !self.serving.is_empty() },
        };
        self.event(event);
    }

    fn answer(&mut self, which: usize, works: bool) {
        if self.sent.is_empty() {
            return;
        }
        let (keeper, epoch, what) = self.sent.remove(which % self.sent.len());
        match what {
            Delivered::Offer if works => self.serving.insert(keeper),
            Delivered::Offer => false,
            Delivered::Withdraw => self.serving.remove(&keeper),
        };
        let failure = failure();
        self.event(if works {
            Event::Ack { keeper, epoch, what }
        } else {
            Event::Nack { keeper, epoch, what, failure }
        });
    }

    fn event(&mut self, event: Event) {
        match &event {
            Event::Ack { epoch, what: Delivered::Offer, .. } => drop(self.acked.insert(*epoch)),
            Event::ListenersSeen { epoch, all: true } => drop(self.seen.insert(*epoch)),
            _ => {}
        }
        let repeatable = matches!(
            event,
            Event::Ack { .. }
                | Event::RulesApplied { .. }
                | Event::RulesFailed { .. }
                | Event::RulesRemoved { .. }
                | Event::Timeout { .. }
        );
        if repeatable && self.past.len() < 50 {
            self.past.push(event.clone());
        }
        let (pod, actions) = step(self.pod.clone(), event.clone());
        self.pod = pod;
        for action in actions {
            self.act(&event, action);
        }
    }

    /// May packets be redirected now, or once the jobs that are queued have run?
    fn may_redirect(&self) -> bool {
        let queued = self.jobs.iter().any(|job| matches!(job, Job::Apply(_, Stage::Redirect)));
        self.in_force == InForce::Table(Stage::Redirect) || queued
    }

    fn act(&mut self, cause: &Event, action: Action) {
        match action {
            Action::Apply { epoch, stage: Stage::Deny } => {
                assert!(matches!(cause, Event::CniAdd { .. }), "a running pod was denied by {cause:?}");
                self.jobs.push_back(Job::Apply(epoch, Stage::Deny));
            }
            Action::Apply { epoch, stage: Stage::Redirect } => {
                let repair = matches!(cause, Event::RulesDrift { .. });
                assert!(
                    repair || (self.acked.contains(&epoch) && self.seen.contains(&epoch)),
                    "redirect before ack and listeners"
                );
                self.jobs.push_back(Job::Apply(epoch, Stage::Redirect));
            }
            Action::Apply { epoch, stage: Stage::Drain } => self.jobs.push_back(Job::Apply(epoch, Stage::Drain)),
            Action::Remove { epoch } => self.jobs.push_back(Job::Remove(epoch)),
            Action::ReadListeners { epoch } => self.jobs.push_back(Job::Listeners(epoch)),
            Action::Offer { keeper, epoch } => {
                assert!(self.connected.contains(&keeper), "offer to a keeper that is not there");
                self.sent.push((keeper, epoch, Delivered::Offer));
            }
            Action::Withdraw { keeper, epoch, drain } => {
                let ends = matches!(cause, Event::CniDel | Event::NetnsGone | Event::CniAdd { fresh: true, .. });
                assert!(ends || !self.may_redirect(), "listeners taken from under a redirect by {cause:?}");
                assert!(!(ends && drain), "connections of a gone pod live on");
                self.sent.push((keeper, epoch, Delivered::Withdraw));
                self.drains.push(drain);
            }
            Action::Answer { request, result } => {
                assert!(self.asked.contains(&request), "answer to nobody");
                assert!(self.answered.insert(request, result.is_ok()).is_none(), "answered twice");
                if result == Ok(true) {
                    assert_eq!(self.pod.phase(), Phase::Captured, "told captured and is not");
                }
            }
            Action::Arm { epoch, timer } => drop(self.armed.insert(timer, epoch)),
            Action::Update { keeper } => assert!(self.connected.contains(&keeper)),
            Action::Release | Action::Report(_) => {}
        }
    }

    /// Everything that was started ends well; then the deadlines pass.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.job(true);
            self.answer(0, true);
        }
        assert!(self.jobs.is_empty() && self.sent.is_empty(), "never comes to rest");
        if let Some(epoch) = self.armed.remove(&Timer::Deadline) {
            self.event(Event::Timeout { epoch, timer: Timer::Deadline });
        }
        for _ in 0..20 {
            self.job(true);
            self.answer(0, true);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_order_of_events_keeps_the_promises(ops in proptest::collection::vec(op(), 0..60)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
        }
        world.settle();
        let unanswered: Vec<_> = world.asked.iter().filter(|request| !world.answered.contains_key(request)).collect();
        prop_assert!(unanswered.is_empty(), "never answered: {unanswered:?} in {:?}", world.pod);
        let lasting = world.connected.difference(&world.leaving).next();
        if let (Phase::Captured, Some(_)) = (world.pod.phase(), lasting) {
            let cared_for = world.pod.is_in_lasting_hands() || world.armed.contains_key(&Timer::Retry);
            prop_assert!(cared_for, "nobody who stays serves, and nobody is asked again: {:?}", world.pod);
        }
    }
}

fn run(world: &mut World, ops: &[Op]) {
    ops.iter().for_each(|op| world.run(op));
}

const WORKS: Op = Op::Job { works: true };
const FAILS: Op = Op::Job { works: false };
const ACK: Op = Op::Answer { which: 0, works: true };
const NACK: Op = Op::Answer { which: 0, works: false };
const ADD: Op = Op::Add { fresh: true };

fn enrolled() -> World {
    let mut world = World::new();
    run(&mut world, &[Op::KeeperUp, Op::Source(Want::Enrolled)]);
    world
}

#[test]
fn an_add_goes_deny_offer_listeners_redirect_answer() {
    let mut world = enrolled();
    world.run(&ADD);
    assert_eq!(world.pod.phase(), Phase::Denying);
    world.run(&WORKS);
    assert_eq!((world.in_force, world.sent.len()), (InForce::Table(Stage::Deny), 1));
    world.run(&ACK);
    assert_eq!(world.pod.phase(), Phase::Listening(Guard::Deny));
    run(&mut world, &[WORKS, WORKS]);
    assert_eq!((world.in_force, world.answered.values().next()), (InForce::Table(Stage::Redirect), Some(&true)));
    assert!(world.pod.is_served());
}

#[test]
fn a_successor_takes_over_what_is_captured_and_gets_new_pods_when_the_first_leaves() {
    let mut world = enrolled();
    run(&mut world, &[ADD, WORKS, ACK, WORKS, WORKS, Op::KeeperUp]);
    assert_eq!(world.sent.len(), 1, "a captured pod is offered to who comes");
    run(&mut world, &[ACK, WORKS]);
    assert_eq!(world.serving.len(), 2);
    run(&mut world, &[Op::KeeperLeaving(0), Op::KeeperDown(0)]);
    assert!(world.pod.is_served() && world.sent.is_empty(), "nothing had to be said");

    // A pod that begins while both are there goes to the one that is known to work; the other follows when that leaves.
    let mut world = enrolled();
    run(&mut world, &[Op::KeeperUp, ADD, WORKS]);
    assert_eq!(world.sent.iter().map(|(keeper, ..)| *keeper).collect::<Vec<_>>(), [1]);
    run(&mut world, &[ACK, WORKS, WORKS]);
    assert!(world.pod.is_served() && world.sent.is_empty());
    world.run(&Op::KeeperLeaving(0));
    assert_eq!(world.sent.iter().map(|(keeper, ..)| *keeper).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_failure_before_the_swap_fails_the_add_and_leaves_deny() {
    for failing in
        [vec![ADD, WORKS, NACK], vec![ADD, WORKS, ACK, WORKS, FAILS], vec![ADD, WORKS, Op::Fire(Timer::Deadline)]]
    {
        let mut world = enrolled();
        run(&mut world, &failing);
        assert_eq!(world.answered.values().next(), Some(&false), "{failing:?}");
        assert_eq!(world.in_force, InForce::Table(Stage::Deny), "{failing:?}");
        world.settle();
        assert!(world.serving.is_empty(), "{failing:?}");
    }
}

#[test]
fn a_running_pod_that_cannot_be_enrolled_is_left_as_it_was_and_tried_again() {
    let mut world = enrolled();
    run(&mut world, &[Op::Found, NACK]);
    assert_eq!((world.in_force, world.jobs.len()), (InForce::Nothing, 0));
    run(&mut world, &[ACK, Op::Fire(Timer::Retry), ACK, WORKS, WORKS]);
    assert!(world.pod.is_served());
}

#[test]
fn opting_out_lets_new_connections_pass_then_drains_then_removes() {
    let mut world = enrolled();
    run(&mut world, &[ADD, WORKS, ACK, WORKS, WORKS, Op::Source(Want::Plain)]);
    assert_eq!((world.pod.phase(), world.sent.len()), (Phase::Undoing, 0));
    world.run(&WORKS);
    assert_eq!((world.in_force, world.sent.len()), (InForce::Table(Stage::Drain), 1));
    world.run(&ACK);
    assert_eq!((world.pod.phase(), world.jobs.len()), (Phase::Parting, 0));
    run(&mut world, &[Op::Fire(Timer::Linger), WORKS]);
    assert_eq!((world.pod.phase(), world.in_force), (Phase::Absent, InForce::Nothing));
}

#[test]
fn after_a_restart_rules_that_are_there_are_adopted_and_offered() {
    let mut world = enrolled();
    world.in_force = InForce::Table(Stage::Redirect);
    world.run(&Op::Found);
    assert_eq!((world.pod.phase(), world.pod.is_served()), (Phase::Captured, false));
    run(&mut world, &[ACK, WORKS]);
    assert!(world.pod.is_served());
    assert!(world.jobs.is_empty());
}

#[test]
fn deny_left_by_a_predecessor_is_finished_under_deny() {
    let mut world = enrolled();
    world.in_force = InForce::Table(Stage::Deny);
    run(&mut world, &[Op::Found, ACK, WORKS]);
    assert_eq!(world.in_force, InForce::Table(Stage::Deny));
    world.run(&WORKS);
    assert_eq!(world.in_force, InForce::Table(Stage::Redirect));
}

#[test]
fn after_a_restart_a_keeper_lets_captured_connections_of_a_pod_that_leaves_live_on() {
    for stage in [Stage::Redirect, Stage::Drain] {
        let mut world = World::new();
        world.in_force = InForce::Table(stage);
        run(&mut world, &[Op::Found, WORKS]);
        assert_eq!((world.pod.phase(), world.in_force), (Phase::Parting, InForce::Table(Stage::Drain)));
        // It comes only now, and ends what it is not told of.
        world.run(&Op::KeeperUp);
        assert_eq!(world.drains, [true]);
        run(&mut world, &[ACK, Op::Fire(Timer::Linger), WORKS]);
        assert_eq!((world.pod.phase(), world.in_force), (Phase::Absent, InForce::Nothing));
    }
}

#[test]
fn a_second_sandbox_of_a_pod_takes_the_place_of_the_first() {
    let mut world = enrolled();
    run(&mut world, &[ADD, WORKS, ACK, WORKS, WORKS, ADD]);
    let kinds: Vec<_> = world.sent.iter().map(|(_, _, what)| *what).collect();
    assert_eq!(kinds, [Delivered::Withdraw]);
    run(&mut world, &[WORKS]);
    assert_eq!(world.sent.last().map(|(_, _, what)| *what), Some(Delivered::Offer));
}

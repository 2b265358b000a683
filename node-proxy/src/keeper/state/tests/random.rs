//! Random orders of events against the model of both links.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::*;
use super::world::World;

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

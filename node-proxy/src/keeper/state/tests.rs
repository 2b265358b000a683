//! Cases by name; random orders of events are in [`random`], the model of both far ends in [`world`].

mod random;
mod world;

use std::collections::BTreeSet;

use super::*;
use world::World;

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
fn a_served_pod_that_the_next_worker_refuses_is_named_and_offered_again_until_it_is_taken() {
    let mut world = both_up();
    let add = world.add("a", 1, 7);
    world.answer_all();
    assert_eq!(world.heard(add), Some(None));
    world.worker_up(2);
    let slot = *world.open.first().expect("held");
    for round in 1..=3 {
        world.answer(0, Some(Reason::Kernel));
        assert_eq!(world.unserved, vec![slot; round]);
        world.pass(OFFER_AGAIN / 2);
        assert!(world.worker.as_ref().expect("worker").unanswered.is_empty(), "not at once");
        world.pass(OFFER_AGAIN / 2);
        assert!(world.worker.as_ref().expect("worker").pods.contains(&slot), "offered again");
        world.pass(Duration::from_secs(3600));
        assert_eq!(world.worker.as_ref().expect("worker").unanswered.len(), 1, "and not twice before it has answered");
    }
    world.answer_all();
    assert_eq!(world.state.next_deadline(), None, "it is served");
    assert_eq!(world.add("a", 1, 7), world.heard.last().expect("acked at once").0);
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

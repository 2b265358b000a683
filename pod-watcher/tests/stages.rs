//! pod-watcher is killed in the middle of each stage and started anew: what was open lives on, each connection with whom it was; nothing
//! goes past the proxy that should not; and the pod ends where its record says. Where a stage lasts only as long as a system call, the
//! table is written by the test as the killed pod-watcher would have left it.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::flows::{APP, FAR, Flow, PROXY, World, talk};
use common::keeper::{Answers, FakeKeeper, connected};
use common::{Node, Pod, Seen, eventually, within};
use mesh_model::Mark;
use mesh_net::capture::{Mode, Session, Spec, Stage, owned_supported};
use serde_json::json;

/// Drain rules stay for longer than any of these tests.
const STAYS: [&str; 2] = ["--linger-seconds", "600"];
const IN: Option<&str> = Some("enabled");
const OUT: Option<&str> = Some("disabled");

/// A pod that runs outside of the mesh, with connections to and from the world.
struct Stand {
    node: Node,
    pod: Pod,
    world: Arc<World>,
    before: Vec<Flow>,
}

impl Stand {
    fn new(flags: &[&str]) -> Self {
        let node = Node::start(flags);
        let mut pod = Pod::new("tools", "runner");
        let world = Arc::new(World::of(&pod));
        node.manifest("runner", &pod.manifest(OUT));
        assert!(node.add(&pod).0);
        pod.start_process();
        let before = world.flows_of(APP, FAR);
        Self { node, pod, world, before }
    }

    /// The same, taken into the mesh, with connections of that time: captured ones.
    fn enrolled(flags: &[&str]) -> (Self, FakeKeeper, Vec<Flow>) {
        let mut stand = Self::new(flags);
        let keeper = connected(&stand.node, Answers::Proxy);
        stand.label(IN);
        stand.is_captured();
        let captured = stand.world.flows_of(PROXY, PROXY);
        talk(&mut stand.before, "enrolled");
        (stand, keeper, captured)
    }

    fn label(&self, mesh: Option<&str>) {
        self.node.manifest("runner", &self.pod.manifest(mesh));
    }

    fn is_captured(&self) {
        eventually("captured and served", || self.node.view(&self.pod).is_some_and(|view| view["served"] == true));
        assert_eq!(self.pod.stage(), Some(Stage::Redirect));
    }

    /// Drain rules are in force, and every keeper has been told.
    fn is_leaving(&self) {
        let leaving = || self.node.view(&self.pod).is_some_and(|view| view["phase"] == "Parting");
        let came = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually("leaving", leaving)));
        assert!(came.is_ok(), "{:?}", self.node.view(&self.pod));
        assert_eq!(self.pod.stage(), Some(Stage::Drain));
    }

    /// As the killed pod-watcher would have written it. Without one, nobody else holds the table.
    fn write(&self, stage: Stage) {
        assert!(self.node.watcher.is_none(), "a pod-watcher runs");
        let mode = if owned_supported() { Mode::Owned } else { Mode::Plain };
        let mut session = Session::open(&self.pod.netns, mode).expect("session");
        let found = session.read().expect("read").and_then(|found| found.spec);
        let new = Spec { stage, mark: Mark::from_random(0x1234_5678).expect("a mark"), generation: 1 };
        let spec = found.map_or(new, |spec| Spec { stage, generation: spec.generation + 1, ..spec });
        session.apply(&spec).expect("written");
        assert_eq!(self.pod.stage(), Some(stage));
    }
}

#[test]
fn killed_while_it_learns_a_pod_that_is_wanted_is_captured_and_keeps_what_was_open() {
    let mut stand = Stand::new(&[]);
    stand.node.kill_watcher();
    stand.write(Stage::Learn);
    // Those that begin now are noted by rules; of the others none is listed yet.
    let mut during = stand.world.flows_of(APP, FAR);
    stand.label(IN);
    stand.node.start_watcher();
    let _keeper = connected(&stand.node, Answers::Proxy);
    stand.is_captured();
    talk(&mut stand.before, "from before");
    talk(&mut during, "begun while pod-watcher was dead");
    stand.world.flows_of(PROXY, PROXY);
}

#[test]
fn killed_while_it_learns_a_pod_that_is_no_longer_wanted_is_left_as_it_was() {
    let mut stand = Stand::new(&["--linger-seconds", "1"]);
    stand.node.kill_watcher();
    stand.write(Stage::Learn);
    let mut during = stand.world.flows_of(APP, FAR);
    stand.node.start_watcher();
    let _keeper = connected(&stand.node, Answers::Proxy);
    eventually("nothing of ours is left", || stand.pod.rules().is_none() && stand.node.view(&stand.pod).is_none());
    talk(&mut stand.before, "from before");
    talk(&mut during, "begun while pod-watcher was dead");
    stand.world.flows_of(APP, FAR);
}

#[test]
fn killed_while_it_notes_what_is_captured_a_pod_that_is_to_leave_leaves_and_loses_nothing() {
    let (mut stand, keeper, mut captured) = Stand::enrolled(&STAYS);
    stand.node.kill_watcher();
    stand.write(Stage::Part);
    let mut during = stand.world.flows_of(PROXY, PROXY);
    stand.label(OUT);
    stand.node.start_watcher();
    let keeper = keeper.again(&stand.node, Answers::Proxy);
    stand.is_leaving();
    told_to_let_connections_live_on(&keeper);
    talk(&mut stand.before, "from before the enrolment");
    talk(&mut captured, "captured");
    talk(&mut during, "captured while pod-watcher was dead");
    stand.world.flows_of(APP, FAR);
}

#[test]
fn killed_while_it_notes_what_is_captured_a_pod_that_is_wanted_again_stays_captured() {
    let (mut stand, keeper, mut captured) = Stand::enrolled(&STAYS);
    stand.node.kill_watcher();
    stand.write(Stage::Part);
    let mut during = stand.world.flows_of(PROXY, PROXY);
    let world = stand.world.clone();
    let ((), judged) = world.unjudged_none(|| {
        stand.node.start_watcher();
        let _keeper = keeper.again(&stand.node, Answers::Proxy);
        stand.is_captured();
        talk(&mut stand.before, "from before the enrolment");
        talk(&mut captured, "captured");
        talk(&mut during, "captured while pod-watcher was dead");
    });
    assert!(judged > 0);
}

#[test]
fn killed_in_deny_while_the_runtime_waits_nothing_passes_until_the_pod_is_captured() {
    let mut node = Node::start(&[]);
    let pod = Pod::new("shop", "cart");
    let world = World::of(&pod);
    node.manifest("cart", &pod.manifest(None));
    let keeper = connected(&node, Answers::Silence);
    std::thread::scope(|scope| {
        let (runtime, pod) = (node.caller(), &pod);
        let add = scope.spawn(move || runtime.cni("ADD", pod, json!({})));
        eventually("offered under deny", || keeper.adds() > 0);
        assert_eq!(pod.stage(), Some(Stage::Deny));
        let ((), judged) = world.unjudged_none(|| {
            node.kill_watcher();
            drop(keeper);
            node.start_watcher();
            let _keeper = connected(&node, Answers::Proxy);
            let (ok, answer, _) = add.join().expect("no panic");
            assert!(ok, "{answer}");
            assert_eq!(pod.stage(), Some(Stage::Redirect));
            world.flows_of(PROXY, PROXY);
        });
        assert!(judged > 0);
    });
}

#[test]
fn killed_in_deny_when_the_runtime_has_given_up_nothing_passes_until_the_pod_is_captured() {
    let mut node = Node::start(&[]);
    let mut pod = Pod::new("shop", "cart");
    let world = World::of(&pod);
    node.manifest("cart", &pod.manifest(None));
    let keeper = connected(&node, Answers::Silence);
    let (ok, answer, _) = node.cni("ADD", &pod, json!({ "timeoutSeconds": 1 }));
    assert!(!ok, "{answer}");
    pod.start_process();
    let ((), judged) = world.unjudged_none(|| {
        node.kill_watcher();
        drop(keeper);
        assert_eq!(pod.stage(), Some(Stage::Deny));
        node.start_watcher();
        let _keeper = connected(&node, Answers::Proxy);
        eventually("captured and served", || node.view(&pod).is_some_and(|view| view["served"] == true));
        assert_eq!(pod.stage(), Some(Stage::Redirect));
        world.flows_of(PROXY, PROXY);
    });
    assert!(judged > 0);
}

#[test]
fn killed_while_the_pod_is_captured_nothing_is_cut_and_nothing_passes_unjudged() {
    let (mut stand, keeper, mut captured) = Stand::enrolled(&[]);
    let world = stand.world.clone();
    let ((), judged) = world.unjudged_none(|| {
        stand.node.kill_watcher();
        let mut during = stand.world.flows_of(PROXY, PROXY);
        stand.node.start_watcher();
        let _keeper = keeper.again(&stand.node, Answers::Proxy);
        stand.is_captured();
        talk(&mut stand.before, "from before the enrolment");
        talk(&mut captured, "captured");
        talk(&mut during, "captured while pod-watcher was dead");
    });
    assert!(judged > 0);
}

#[test]
fn killed_while_a_pod_drains_its_captured_connections_live_on_and_new_ones_pass() {
    // Before the keeper was told, and after.
    for told in [false, true] {
        let (mut stand, keeper, mut captured) = Stand::enrolled(&STAYS);
        if told {
            stand.label(OUT);
            stand.is_leaving();
            told_to_let_connections_live_on(&keeper);
        }
        stand.node.kill_watcher();
        if !told {
            stand.write(Stage::Drain);
            stand.label(OUT);
        }
        let mut during = stand.world.flows_of(APP, FAR);
        stand.node.start_watcher();
        let keeper = keeper.again(&stand.node, Answers::Proxy);
        stand.is_leaving();
        told_to_let_connections_live_on(&keeper);
        talk(&mut stand.before, "from before the enrolment");
        talk(&mut captured, "captured");
        talk(&mut during, "begun while pod-watcher was dead");
        stand.world.flows_of(APP, FAR);
    }
}

#[test]
fn killed_while_a_pod_drains_that_is_wanted_again_it_is_captured_and_loses_nothing() {
    let (mut stand, keeper, mut captured) = Stand::enrolled(&STAYS);
    stand.node.kill_watcher();
    stand.write(Stage::Drain);
    let mut during = stand.world.flows_of(APP, FAR);
    stand.node.start_watcher();
    let _keeper = keeper.again(&stand.node, Answers::Proxy);
    stand.is_captured();
    talk(&mut stand.before, "from before the enrolment");
    talk(&mut captured, "captured before it drained");
    talk(&mut during, "begun while it drained");
    stand.world.flows_of(PROXY, PROXY);
}

/// A keeper that is not told of a pod that it holds ends its connections.
fn told_to_let_connections_live_on(keeper: &FakeKeeper) {
    within(Duration::from_secs(5), "the keeper is told", || {
        keeper.seen().iter().any(|seen| matches!(seen, Seen::Del { drain: true, .. }))
    });
}

#[test]
fn a_pod_that_left_the_mesh_meanwhile_and_cannot_be_looked_at_at_first_is_let_go_when_it_can() {
    assert!(owned_supported(), "it takes a table with an owner");
    let mut stand = Stand::new(&["--linger-seconds", "1"]);
    stand.node.kill_watcher();
    // Somebody else owns its table.
    let mut session = Session::open(&stand.pod.netns, Mode::Owned).expect("session");
    let mark = Mark::from_random(0x1234_5678).expect("a mark");
    session.apply(&Spec { stage: Stage::Redirect, mark, generation: 1 }).expect("written");
    stand.node.start_watcher();
    let _keeper = connected(&stand.node, Answers::Proxy);
    eventually("a look that failed", || stand.node.log().contains("rules of a running pod cannot be read"));
    drop(session);
    eventually("nothing of ours is left", || stand.pod.rules().is_none() && stand.node.view(&stand.pod).is_none());
    talk(&mut stand.before, "from before");
}

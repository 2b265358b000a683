//! Judging again, with a mesh that changes.

use std::collections::BTreeMap;

use mesh_model::policy::{Action, Clause, Facts, Match, Rule, Scope, StringMatch};
use mesh_model::{
    ClientAddr, Health, Identity, NetworkPolicy, OrigDst, PodName, PodUid, TrustDomain, Tunnel, WorkloadUid,
};

use super::*;
use crate::worker::connection::{ConnectionId, Direction};
use crate::worker::pods::testing;

fn workload(name: &str) -> Workload {
    Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/shop/{name}")),
        pod: PodName { namespace: "shop".into(), name: name.into() },
        pod_uid: PodUid::parse(&format!("uid-{name}")).ok(),
        service_account: format!("sa-{name}"),
        trust_domain: TrustDomain::parse("cluster.local").expect("trust domain"),
        addresses: Vec::new(),
        node: "node-1".into(),
        tunnel: Tunnel::Hbone,
        policies: Vec::new(),
        health: Health::Healthy,
        services: BTreeMap::new(),
        network_policy: NetworkPolicy::Unselected,
        host_network: false,
        needs_waypoint: false,
        telemetry: Default::default(),
    }
}

fn key(name: &str) -> PolicyKey {
    PolicyKey { namespace: "shop".into(), name: name.into() }
}

/// Denies the service account.
fn deny(name: &str, account: &str) -> Policy {
    let principal = StringMatch::Exact(format!("cluster.local/ns/shop/sa/{account}"));
    let matches = vec![Match { principals: vec![principal], ..Match::default() }];
    Policy {
        key: key(name),
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        dry_run: false,
        invalid: false,
    }
}

fn mesh() -> Mesh {
    let mut mesh = Mesh::default();
    mesh.apply_workload(workload("cart"));
    mesh.apply_workload(workload("web"));
    mesh
}

fn pod() -> Arc<Pod> {
    testing::pod(1, &testing::facts("shop", "cart", "198.18.1.6"))
}

/// A connection from `account` that `mesh` allows.
fn allowed(mesh: &Mesh, account: &str) -> (Arc<Connection>, Permit) {
    let client = ClientAddr::new(([198, 18, 2, 9], 40000).into());
    let destination = OrigDst::new(([198, 18, 1, 6], 8080).into());
    let source = Identity::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).ok();
    let facts = Facts { source, client, destination };
    let permit = judge(mesh, mesh.workload_of_pod(&workload("cart").pod).map(Arc::as_ref), facts).expect("allowed");
    let connection = Arc::new(Connection::new(ConnectionId::random(), Direction::Tunnel, client, Some(destination)));
    (connection, permit)
}

fn cut_of(connection: &Connection) -> Option<CutCause> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match connection.poll_cut(&mut cx) {
        std::task::Poll::Ready(cause) => Some(cause),
        std::task::Poll::Pending => None,
    }
}

fn entered(pod: &Arc<Pod>, mesh: &Arc<Mesh>, account: &str, judged: Judged) -> (Arc<Connection>, Ticket) {
    let (connection, permit) = allowed(mesh, account);
    let ticket = enter(pod, &connection);
    ticket.judged(&permit, judged, mesh, || mesh.clone(), &Waiting::default());
    (connection, ticket)
}

#[test]
fn a_new_deny_ends_those_it_matches_names_itself_and_leaves_the_others() {
    let (pod, before) = (pod(), Arc::new(mesh()));
    let (good, _good) = entered(&pod, &before, "friend", Judged::Here);
    let (bad, _bad) = entered(&pod, &before, "foe", Judged::Here);
    assert_eq!(sweep(&before, &pod, false).cut, 0);
    let mut after = mesh();
    after.apply_policy(deny("no-foe", "foe"));
    assert_eq!(sweep(&after, &pod, false), Swept { judged: 2, cut: 1, waiting: false });
    assert_eq!(cut_of(&good), None);
    assert_eq!(cut_of(&bad), Some(CutCause { reason: Reason::PolicyChanged, policy: Some(key("no-foe")) }));
}

#[test]
fn a_change_that_does_not_touch_the_pod_judges_nothing() {
    let (pod, before) = (pod(), Arc::new(mesh()));
    let (_connection, _ticket) = entered(&pod, &before, "friend", Judged::Here);
    sweep(&before, &pod, false);
    let mut after = Mesh::clone(&before);
    after.apply_workload(workload("unrelated"));
    let mut elsewhere = deny("elsewhere", "friend");
    elsewhere.key.namespace = "other".into();
    after.apply_policy(elsewhere);
    assert_eq!(sweep(&after, &pod, false).judged, 0);
}

#[test]
fn a_connection_judged_by_the_older_mesh_and_registered_after_the_sweep_is_judged_again() {
    let (pod, before) = (pod(), Arc::new(mesh()));
    let (connection, permit) = allowed(&before, "foe");
    let ticket = enter(&pod, &connection);
    let mut after = mesh();
    after.apply_policy(deny("no-foe", "foe"));
    // The sweep passes while the connection is still being set up.
    assert_eq!(sweep(&after, &pod, false).judged, 0);
    ticket.judged(&permit, Judged::Here, &before, || Arc::new(after), &Waiting::default());
    assert_eq!(cut_of(&connection).map(|cause| cause.reason), Some(Reason::PolicyChanged));
}

#[test]
fn a_listed_policy_that_is_on_its_way_gets_one_more_look() {
    let (pod, before) = (pod(), Arc::new(mesh()));
    let (connection, _ticket) = entered(&pod, &before, "friend", Judged::Here);
    let mut after = mesh();
    after.apply_workload(Workload { policies: vec![key("coming")], ..workload("cart") });
    assert_eq!(sweep(&after, &pod, false), Swept { judged: 1, cut: 0, waiting: true });
    assert_eq!(cut_of(&connection), None);
    let mut arrived = after.clone();
    arrived.apply_policy(Policy { scope: Scope::Selector, ..deny("coming", "foe") });
    assert_eq!(sweep(&arrived, &pod, true).cut, 0);
    assert_eq!(sweep(&after, &pod, true).cut, 1);
    assert_eq!(cut_of(&connection).and_then(|cause| cause.policy), Some(key("coming")));
}

#[test]
fn the_short_way_ends_when_a_network_policy_selects_either_pod() {
    for selected in ["cart", "web"] {
        let (pod, before) = (pod(), Arc::new(mesh()));
        let source = testing::pod(2, &testing::facts("shop", "web", "198.18.1.5"));
        let judged = Judged::ShortWay { source };
        let (connection, _ticket) = entered(&pod, &before, "sa-web", judged);
        sweep(&before, &pod, false);
        assert_eq!(cut_of(&connection), None);
        let mut after = Mesh::clone(&before);
        after.apply_workload(Workload { network_policy: NetworkPolicy::Selected, ..workload(selected) });
        assert_eq!(sweep(&after, &pod, false).cut, 1, "{selected}");
        assert_eq!(cut_of(&connection).map(|cause| cause.reason), Some(Reason::PolicyChanged));
    }
}

#[test]
fn what_is_not_judged_here_is_left_alone_by_a_sweep_and_ended_with_its_pod() {
    let (pod, before) = (pod(), Arc::new(mesh()));
    let (connection, _permit) = allowed(&before, "foe");
    let ticket = enter(&pod, &connection);
    let mut after = mesh();
    after.apply_policy(deny("no-foe", "foe"));
    assert_eq!(sweep(&after, &pod, true).judged, 0);
    pod.live().cut_all(Reason::Draining);
    assert_eq!(cut_of(&connection).map(|cause| cause.reason), Some(Reason::Draining));
    assert_eq!(pod.live().len(), 1);
    drop(ticket);
    assert!(pod.live().is_empty());
}

#[tokio::test]
async fn emptied_resolves_with_the_last_ticket() {
    let (pod, before) = (pod(), Arc::new(mesh()));
    pod.live().emptied().await;
    let (_connection, ticket) = entered(&pod, &before, "friend", Judged::Here);
    let waiting = tokio::spawn({
        let pod = pod.clone();
        async move { pod.live().emptied().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    drop(ticket);
    waiting.await.expect("emptied");
}

#[test]
fn a_connection_registered_after_the_sweep_under_a_listed_policy_that_has_not_arrived_is_looked_at_again() {
    let (pod, before) = (pod(), Arc::new(mesh()));
    let (connection, permit) = allowed(&before, "friend");
    let ticket = enter(&pod, &connection);
    let mut after = mesh();
    after.apply_workload(Workload { policies: vec![key("coming")], ..workload("cart") });
    // The sweep for the newer mesh passes while the connection is still being set up.
    assert_eq!(sweep(&after, &pod, false), Swept::default());
    let waiting = Waiting::default();
    ticket.judged(&permit, Judged::Here, &before, || Arc::new(after.clone()), &waiting);
    assert_eq!(cut_of(&connection), None, "list and policy travel apart");
    let pods = waiting.take();
    assert_eq!(pods.iter().map(|pod| pod.slot()).collect::<Vec<_>>(), [pod.slot()]);
    // It never arrives.
    sweep(&after, &pods[0], true);
    assert!(cut_of(&connection).is_some(), "the connection lives on and nothing will look at it again");
}

#[test]
fn whoever_comes_after_all_were_cut_is_cut_too() {
    let (pod, mesh) = (pod(), Arc::new(mesh()));
    pod.live().cut_all(Reason::Draining);
    let (connection, _) = allowed(&mesh, "friend");
    let _ticket = enter(&pod, &connection);
    assert_eq!(cut_of(&connection).map(|cause| cause.reason), Some(Reason::Draining));
}

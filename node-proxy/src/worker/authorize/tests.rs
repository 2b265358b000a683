//! Who may speak to whom, end by end.

use mesh_api::link::NodeFacts;
use mesh_model::policy::{Action, Clause, Match, Policy, Rule, Scope, StringMatch};
use mesh_model::{
    ClientAddr, Health, Identity, NetworkPolicy, PodUid, Reason, TrustDomain, Tunnel, Workload, WorkloadUid,
};

use super::*;
use crate::worker::identify;
use crate::worker::pods::{Pods, testing};

struct World {
    mesh: Mesh,
    pods: Pods,
    pod: Arc<Pod>,
}

/// The kernel of a node on which every socket exists, or none.
struct All(bool);

impl Sockets for All {
    fn has(&self, _: SocketAddr, _: SocketAddr) -> bool {
        self.0
    }
}

fn world(known: bool) -> World {
    let facts = testing::facts("shop", "cart", "198.18.1.6");
    let (pods, pod, mut mesh) = (Pods::default(), testing::pod(1, &facts), Mesh::default());
    pods.add(pod.clone());
    pods.node(&NodeFacts { name: "node-1".into(), addresses: vec!["198.18.1.1".parse().expect("address")] });
    if known {
        mesh.apply_workload(Workload {
            uid: WorkloadUid("Kubernetes//Pod/shop/cart".into()),
            pod: pod.name().clone(),
            pod_uid: PodUid::parse("uid-cart").ok(),
            service_account: "sa-cart".into(),
            trust_domain: TrustDomain::parse("cluster.local").expect("trust domain"),
            addresses: Vec::new(),
            node: "node-1".into(),
            tunnel: Tunnel::Hbone,
            policies: Vec::new(),
            health: Health::Healthy,
            services: Default::default(),
            network_policy: NetworkPolicy::Unselected,
            host_network: false,
            needs_waypoint: false,
            telemetry: Default::default(),
        });
    }
    World { mesh, pods, pod }
}

/// Denies everything.
fn closed() -> Policy {
    let key = PolicyKey { namespace: "shop".into(), name: "closed".into() };
    Policy {
        key,
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: vec![Rule::default()],
        dry_run: false,
        invalid: false,
    }
}

fn arriving(world: &World, client: &str) -> Identified {
    arriving_at(world, client, "198.18.1.6:8080")
}

fn arriving_at(world: &World, client: &str, destination: &str) -> Identified {
    let client = ClientAddr::new(client.parse().expect("address"));
    let destination = OrigDst::new(destination.parse().expect("address"));
    identify::inbound(&world.pod, client, Some(destination)).expect("identified")
}

#[test]
fn a_pod_that_the_mesh_does_not_know_yet_refuses_all_but_probes() {
    let world = world(false);
    let table = world.pods.table();
    let refused = inbound(&world.mesh, &table, &All(true), arriving(&world, "198.18.2.9:4000"));
    assert_eq!(refused.expect_err("refused").reason(), Reason::PolicyUnknown);
    let probe = inbound(&world.mesh, &table, &All(true), arriving(&world, "198.18.1.1:4000")).expect("a probe");
    assert!(matches!(probe.grounds(), Grounds::Probe(_)));
    assert!(probe.permit().is_none());
}

#[test]
fn a_probe_passes_a_policy_that_refuses_everyone_and_the_nodes_masquerade_does_not() {
    let mut world = world(true);
    world.mesh.apply_policy(closed());
    let table = world.pods.table();
    assert!(inbound(&world.mesh, &table, &All(true), arriving(&world, "198.18.1.1:4000")).is_ok());
    let refused = inbound(&world.mesh, &table, &All(false), arriving(&world, "198.18.1.1:4000"));
    assert_eq!(refused.expect_err("refused").policy().map(ToString::to_string).as_deref(), Some("shop/closed"));
}

#[test]
fn a_tunnelled_caller_is_judged_by_its_certificate_and_never_as_a_probe() {
    let mut world = world(true);
    let caller = Identity::parse("spiffe://cluster.local/ns/shop/sa/web").expect("identity");
    let identified = |world: &World| {
        let client = ClientAddr::new("198.18.1.1:4000".parse().expect("address"));
        let authority = OrigDst::new("198.18.1.6:8080".parse().expect("address"));
        identify::tunnelled(&world.pod, caller.clone(), client, authority, authority.ip()).expect("identified")
    };
    let authorized = tunnelled(&world.mesh, identified(&world)).expect("allowed");
    assert_eq!(authorized.permit().and_then(|permit| permit.facts().source.clone()), Some(caller.clone()));
    let To::App { address, .. } = authorized.to() else { panic!("not to the application") };
    assert_eq!(address.to_string(), "198.18.1.6:8080");
    world.mesh.apply_policy(closed());
    assert!(tunnelled(&world.mesh, identified(&world)).is_err());
}

#[test]
fn a_further_address_of_the_pod_is_as_open_as_its_own_and_no_more() {
    let strict = Policy {
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![Match { not_principals: vec![StringMatch::Presence], ..Match::default() }],
            }],
        }],
        ..closed()
    };
    for (client, destination) in [
        ("198.18.2.9:4000", "198.18.1.6:8080"),
        ("10.55.0.9:4000", "10.55.0.2:8080"),
        ("[fd55::9]:4000", "[fd55::2]:8080"),
        // An address of the node, from which there is a socket: at the pod's own address it would be a probe.
        ("198.18.1.1:4000", "10.55.0.2:8080"),
    ] {
        let mut world = world(true);
        let table = world.pods.table();
        let judged = |world: &World| inbound(&world.mesh, &table, &All(true), arriving_at(world, client, destination));
        let allowed = judged(&world).expect("PERMISSIVE takes plaintext");
        assert_eq!(allowed.permit().map(|permit| permit.facts().source.clone()), Some(None), "{client}");
        let To::App { address, .. } = allowed.to() else { panic!("not to the application") };
        assert_eq!(address.to_string(), destination);
        world.mesh.apply_policy(strict.clone());
        let denied = judged(&world).expect_err("STRICT");
        assert_eq!(denied.policy().map(ToString::to_string).as_deref(), Some("shop/closed"), "{client}");
        assert_eq!(denied.reason(), Reason::PolicyDenied);
    }
}

#[test]
fn a_dry_run_policy_is_told_of_and_not_enforced() {
    let mut world = world(true);
    world.mesh.apply_policy(Policy { dry_run: true, ..closed() });
    let table = world.pods.table();
    let allowed = inbound(&world.mesh, &table, &All(false), arriving(&world, "198.18.2.9:4000")).expect("allowed");
    assert_eq!(allowed.would_refuse().iter().map(ToString::to_string).collect::<Vec<_>>(), ["shop/closed"]);
}

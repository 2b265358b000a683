//! Whatever happens to a small world, what was brought up to date is what compiling it from nothing gives; and a change of a pod compiles
//! its namespace alone.

use std::collections::BTreeMap;

use mesh_api::manifests::{Kind, Store};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::snapshot::Snapshot;

/// The root namespace is one of them.
const NAMESPACES: [&str; 4] = ["culvert-system", "near", "far", "other"];

/// Something that is said of an object; one that cannot be read is among them.
#[derive(Clone, Debug)]
enum Step {
    Said(Kind, Value),
    Gone(Kind, Value),
}

fn some<T: Clone + std::fmt::Debug + 'static>(of: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(of.to_vec())
}

fn namespace() -> impl Strategy<Value = &'static str> {
    some(&NAMESPACES)
}

/// So few that they are shared.
fn address() -> impl Strategy<Value = String> {
    (1..5_u8).prop_map(|last| format!("198.18.0.{last}"))
}

fn app() -> impl Strategy<Value = &'static str> {
    some(&["web", "db"])
}

fn meta(namespace: &str, name: &str) -> Value {
    json!({"namespace": namespace, "name": name})
}

fn pod() -> impl Strategy<Value = Step> {
    let facts = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2));
    (namespace(), 0..3_u8, app(), address(), some(&["n1", "n2"]), facts).prop_map(
        |(namespace, n, app, ip, node, (ready, other_uid, leaves, host))| {
            let mut metadata = meta(namespace, &format!("p{n}"));
            metadata["uid"] = format!("uid-{n}-{other_uid}").into();
            metadata["labels"] = json!({"app": app});
            if leaves {
                metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            Step::Said(
                Kind::Pod,
                json!({"metadata": metadata,
                    "spec": {"nodeName": node, "serviceAccountName": app, "hostNetwork": host, "containers": []},
                    "status": {"podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}}),
            )
        },
    )
}

fn slice() -> impl Strategy<Value = Step> {
    (namespace(), app(), namespace(), 0..3_u8, any::<bool>(), any::<bool>(), address(), any::<bool>()).prop_map(
        |(namespace, service, of, n, refers, other_uid, ip, ready)| {
            let mut metadata = meta(namespace, &format!("{service}-x"));
            metadata["labels"] = json!({"kubernetes.io/service-name": service});
            let mut endpoint = json!({"addresses": [ip], "conditions": {"ready": ready}});
            if refers {
                endpoint["targetRef"] =
                    json!({"kind": "Pod", "namespace": of, "name": format!("p{n}"), "uid": format!("uid-{n}-{other_uid}")});
            }
            Step::Said(
                Kind::EndpointSlice,
                json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [endpoint]}),
            )
        },
    )
}

fn service() -> impl Strategy<Value = Step> {
    let own = prop_oneof![2 => Just("None".to_owned()), 1 => address()];
    let external = prop::option::weighted(0.3, address());
    (namespace(), app(), prop::option::of(app()), 1..3_u16, own, external).prop_map(
        |(namespace, name, selects, port, own, external)| {
            let mut spec = json!({"clusterIP": own, "ports": [{"port": port}]});
            spec["externalIPs"] = external.into_iter().collect();
            if let Some(app) = selects {
                spec["selector"] = json!({"app": app});
            }
            Step::Said(Kind::Service, json!({"metadata": meta(namespace, name), "spec": spec}))
        },
    )
}

fn authorization() -> impl Strategy<Value = Step> {
    let target = |app: &str| json!({"targetRefs": [{"group": "", "kind": "Service", "name": app}]});
    let whom = prop_oneof![
        Just(json!({})),
        app().prop_map(|app| json!({"selector": {"matchLabels": {"app": app}}})),
        app().prop_map(target),
        Just(json!({"acton": "DENY"})),
        Just(json!({"action": "AUDIT"})),
        Just(json!({"action": "CUSTOM"})),
    ];
    (namespace(), 0..2_u8, whom).prop_map(|(namespace, n, spec)| {
        Step::Said(Kind::AuthorizationPolicy, json!({"metadata": meta(namespace, &format!("a{n}")), "spec": spec}))
    })
}

fn peer() -> impl Strategy<Value = Step> {
    let whom = prop::option::of(app());
    let mode = some(&["STRICT", "PERMISSIVE", "UNSET", "SOMETIMES"]);
    (namespace(), 0..2_u8, whom, mode, any::<bool>(), some(&["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])).prop_map(
        |(namespace, n, whom, mode, port, created)| {
            let mut metadata = meta(namespace, &format!("s{n}"));
            metadata["creationTimestamp"] = created.into();
            let mut spec = json!({"mtls": {"mode": mode}});
            if let Some(app) = whom {
                spec["selector"] = json!({"matchLabels": {"app": app}});
                if port {
                    spec["portLevelMtls"] = json!({"80": {"mode": "PERMISSIVE"}});
                }
            }
            Step::Said(Kind::PeerAuthentication, json!({"metadata": metadata, "spec": spec}))
        },
    )
}

fn other() -> impl Strategy<Value = Step> {
    let enrolled = (namespace(), some(&["enabled", "disabled"])).prop_map(|(name, mesh)| {
        Step::Said(Kind::Namespace, json!({"metadata": {"name": name, "labels": {"culvert.io/mesh": mesh}}}))
    });
    let node = (some(&["n1", "n2"]), some(&["east", "west"])).prop_map(|(name, zone)| {
        Step::Said(Kind::Node, json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}}))
    });
    let selectors = [json!({}), json!({"matchLabels": {"app": "web"}}), json!(5)];
    let network = (namespace(), some(&selectors)).prop_map(|(namespace, selector)| {
        Step::Said(Kind::NetworkPolicy, json!({"metadata": meta(namespace, "n"), "spec": {"podSelector": selector}}))
    });
    prop_oneof![enrolled, node, network]
}

fn step() -> impl Strategy<Value = Step> {
    let said = prop_oneof![4 => pod(), 3 => slice(), 2 => service(), 2 => authorization(), 2 => peer(), 2 => other()];
    (said, prop::bool::weighted(0.25)).prop_map(|(step, gone)| match step {
        Step::Said(kind, value) if gone => Step::Gone(kind, value),
        step => step,
    })
}

fn take(store: &mut Store, step: Step) {
    match step {
        Step::Said(kind, value) => drop(store.changed(kind, value)),
        Step::Gone(kind, value) => drop(store.gone(kind, &value)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_brought_up_to_date_is_what_compiling_from_nothing_gives(
        steps in prop::collection::vec((step(), prop::bool::weighted(0.7)), 1..60),
    ) {
        let (mut store, mut compiler, mut known) = (Store::default(), Compiler::default(), BTreeMap::new());
        let mut snapshot = Snapshot::default();
        for (step, looked_at) in steps {
            let said = format!("{step:?}");
            take(&mut store, step);
            if !looked_at {
                continue;
            }
            let (objects, rejected) = (store.objects(), store.rejected());
            let changes = compiler.compile(objects, &rejected, &config());
            snapshot = snapshot.after(&changes);
            known.extend(changes.namespaces);
            let anew = Compiler::default().compile(objects, &rejected, &config());
            prop_assert!(Snapshot::default().after(&anew).same_as(&snapshot), "after {}", said);
            prop_assert_eq!(
                gathered(known.values(), &compiler),
                compile(objects, &rejected, &config()),
                "after {}", said
            );
        }
    }
}

#[test]
fn a_change_compiles_the_namespaces_that_it_may_touch_and_no_others() {
    let mut store = Store::default();
    let mut compiler = Compiler::default();
    let pod = |namespace: &str, name: &str, ip: &str, ready: &str| {
        Step::Said(
            Kind::Pod,
            json!({"metadata": meta(namespace, name), "spec": {"nodeName": "n1", "containers": []},
                "status": {"podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": ready}]}}),
        )
    };
    let mut compiled = |store: &mut Store, step: Step| {
        take(store, step);
        let changes = compiler.compile(store.objects(), &store.rejected(), &config());
        changes.namespaces.into_keys().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(compiled(&mut store, pod("near", "a", "198.18.0.1", "True")), "culvert-system near", "the first time");
    assert_eq!(compiled(&mut store, pod("far", "b", "198.18.0.2", "True")), "far");
    assert_eq!(compiled(&mut store, pod("near", "a", "198.18.0.1", "True")), "", "it says the same");
    assert_eq!(compiled(&mut store, pod("near", "a", "198.18.0.1", "False")), "near");
    // A slice of one namespace that names a pod of another.
    let service = json!({"metadata": meta("near", "web"), "spec": {"clusterIP": "None", "ports": [{"port": 80}]}});
    assert_eq!(compiled(&mut store, Step::Said(Kind::Service, service)), "near");
    let slice = json!({"metadata": {"namespace": "near", "name": "x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["198.18.0.2"]}]});
    assert_eq!(compiled(&mut store, Step::Said(Kind::EndpointSlice, slice.clone())), "far near");
    assert_eq!(compiled(&mut store, pod("far", "b", "198.18.0.2", "False")), "far near");
    assert_eq!(
        compiled(&mut store, pod("far", "c", "198.18.0.3", "True")),
        "far near",
        "it may be one that is looked for"
    );
    assert_eq!(compiled(&mut store, Step::Gone(Kind::EndpointSlice, slice)), "far near");
    assert_eq!(compiled(&mut store, pod("far", "b", "198.18.0.2", "True")), "far");
    // A Service that names addresses as external, before anybody has them.
    let taker = json!({"metadata": meta("other", "x"),
        "spec": {"clusterIP": "None", "externalIPs": ["198.18.0.8", "198.18.0.9"], "ports": [{"port": 80}]}});
    assert_eq!(compiled(&mut store, Step::Said(Kind::Service, taker.clone())), "other");
    assert_eq!(compiled(&mut store, pod("far", "e", "198.18.0.8", "True")), "far other");
    let owner = json!({"metadata": meta("near", "own"), "spec": {"clusterIP": "198.18.0.9", "ports": [{"port": 80}]}});
    assert_eq!(compiled(&mut store, Step::Said(Kind::Service, owner.clone())), "near other");
    assert_eq!(compiled(&mut store, Step::Gone(Kind::Service, owner)), "near other");
    assert_eq!(compiled(&mut store, Step::Gone(Kind::Service, taker)), "other");
    assert_eq!(compiled(&mut store, pod("far", "e", "198.18.0.8", "False")), "far");
    // Two that claim one address.
    assert_eq!(compiled(&mut store, pod("other", "d", "198.18.0.2", "True")), "far other");
    assert_eq!(compiled(&mut store, pod("other", "d", "198.18.0.2", "False")), "far other");
    assert_eq!(compiled(&mut store, pod("other", "d", "198.18.0.9", "False")), "far other");
    assert_eq!(compiled(&mut store, pod("other", "d", "198.18.0.9", "True")), "other");
    // What everybody looks at.
    let node = json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "east"}}});
    assert_eq!(compiled(&mut store, Step::Said(Kind::Node, node)), "culvert-system far near other");
    let policy = json!({"metadata": meta("culvert-system", "p"), "spec": {}});
    assert_eq!(compiled(&mut store, Step::Said(Kind::AuthorizationPolicy, policy)), "culvert-system far near other");
    let policy = json!({"metadata": meta("near", "p"), "spec": {}});
    assert_eq!(compiled(&mut store, Step::Said(Kind::AuthorizationPolicy, policy)), "near");
    assert_eq!(compiled(&mut store, Step::Gone(Kind::Pod, json!({"metadata": meta("other", "d")}))), "other");
}

/// What somebody may have a node's kubelet say: it may not hold up everybody else.
#[test]
fn thousands_of_pods_with_one_address_are_each_told_and_cost_no_more_than_that() {
    const PODS: usize = 5_000;
    let mut store = Store::default();
    let pod = |n: usize, ready: &str| {
        let metadata = meta(if n.is_multiple_of(2) { "near" } else { "far" }, &format!("p{n:05}"));
        let status = json!({"podIPs": [{"ip": "198.18.0.1"}], "conditions": [{"type": "Ready", "status": ready}]});
        json!({"metadata": metadata, "spec": {"nodeName": "n1", "containers": []}, "status": status})
    };
    (0..PODS).for_each(|n| drop(store.item(Kind::Pod, pod(n, "True"))));
    let mut compiler = Compiler::default();
    for (ready, first) in [("True", "far/p00001"), ("False", "far/p00003")].into_iter().cycle().take(10) {
        store.changed(Kind::Pod, pod(1, ready));
        compiler.compile(store.objects(), &[], &config());
        assert_eq!(compiler.problems().count(), PODS - 1);
        assert!(compiler.problems().all(|problem| problem.text.contains(first)), "{first}");
    }
}

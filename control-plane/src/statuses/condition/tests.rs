//! Which conditions are written, and what they say.

use mesh_api::manifests::Store;

use super::*;
use crate::compile::tests::{compile, config};

fn now() -> Timestamp {
    "2026-02-01T00:00:00Z".parse().expect("a time")
}

/// A world of the namespace shop (in the mesh) with the pods cart, web (of node-1) and plain (outside), and these objects.
fn world(objects: &[(Kind, Value)]) -> Store {
    let mut store = Store::default();
    store.item(Kind::Namespace, json!({"metadata": {"name": "shop", "labels": {"culvert.io/mesh": "enabled"}}}));
    for (name, mesh) in [("cart", "enabled"), ("web", "enabled"), ("plain", "disabled")] {
        store.item(
            Kind::Pod,
            json!({"metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": name, "tier": "any", "culvert.io/mesh": mesh}},
                "spec": {"nodeName": "node-1", "containers": []}}),
        );
    }
    for (kind, object) in objects {
        store.item(*kind, object.clone());
    }
    store
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "generation": 3, "resourceVersion": "7"}, "spec": spec})
}

fn needed_of(store: &Store) -> Vec<Condition> {
    let compiled = compile(store.objects(), &store.rejected(), &config());
    needed(store.objects(), compiled.told.iter(), now()).collect()
}

/// The condition that is written at the one policy of this spec: status, reason and message.
fn said(kind: Kind, spec: Value) -> (String, String, String) {
    let needed = needed_of(&world(&[(kind, policy("p", spec))]));
    let text = |name: &str| needed[0].condition[name].as_str().expect("text").to_owned();
    (text("status"), text("reason"), text("message"))
}

#[test]
fn a_condition_says_what_will_happen() {
    use Kind::{AuthorizationPolicy as Authorization, PeerAuthentication as Peer};
    let cart = json!({"matchLabels": {"app": "cart"}});
    let any = json!({"matchLabels": {"tier": "any"}});
    let nobody = json!({"matchLabels": {"app": "nobody"}});
    let web = json!([{"from": [{"source": {"serviceAccounts": ["web"]}}]}]);
    let http = json!([{"to": [{"operation": {"methods": ["GET"]}}]}]);
    let typo = json!([{}, {"from": [{"source": {"namespaces": "a"}}]}]);
    let wrong = json!([{"from": [{"source": {"ipBlocks": ["ten"]}}]}]);
    let table = [
        (
            Authorization,
            json!({"selector": cart, "rules": web}),
            "True",
            "Enforced",
            "ALLOW with 1 rule: refuses whatever neither it nor another policy allows; in force at the pod that it selects",
        ),
        (
            Authorization,
            json!({}),
            "True",
            "Enforced",
            "ALLOW without rules: refuses whatever no other policy allows; in force at the 3 pods that it selects; 1 of them not in the mesh: nothing is enforced there",
        ),
        (
            Authorization,
            json!({"selector": nobody, "action": "DENY", "rules": web}),
            "True",
            "SelectsNoPod",
            "DENY with 1 rule; in force at every pod that it comes to select (none now)",
        ),
        (
            Authorization,
            json!({"selector": {"matchLabels": {"app": "plain"}}, "action": "DENY"}),
            "True",
            "Enforced",
            "DENY without rules: refuses nothing; in force at the pod that it selects; none of them in the mesh: nothing is enforced there",
        ),
        (
            Authorization,
            json!({"rules": http}),
            "False",
            "StricterThanWritten",
            "spec.rules[0]: HTTP conditions, which are not judged yet: left out, so it allows nothing",
        ),
        (
            Authorization,
            json!({"action": "DENY", "rules": http}),
            "False",
            "StricterThanWritten",
            "spec.rules[0]: HTTP conditions, which are not judged yet: applied without them",
        ),
        (
            Authorization,
            json!({"action": "AUDIT"}),
            "False",
            "NoEffect",
            "action AUDIT is not carried out; it decides nothing",
        ),
        (
            Authorization,
            json!({"action": "CUSTOM", "provider": {"name": "x"}}),
            "False",
            "NotSupported",
            "and there is none; every connection to the 3 pods that it selects",
        ),
        (
            Authorization,
            json!({"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}]}),
            "False",
            "NoEffect",
            "no effect on Gateway g",
        ),
        (
            Authorization,
            json!({"selector": any, "rules": typo}),
            "False",
            "NotUnderstood",
            "spec.rules[1].from[0].source.namespaces: invalid type: string \"a\", expected a sequence; every connection to the 3 pods that it selects is refused until this is mended; 1 of them not in the mesh: nothing is enforced there",
        ),
        (
            Authorization,
            json!({"selector": cart, "rules": wrong}),
            "False",
            "NotUnderstood",
            "spec.rules[0].from[0].source.ipBlocks: \"ten\" is not of the form that it takes; every connection to the pod that it selects is refused until this is mended",
        ),
        (
            Peer,
            json!({"mtls": {"mode": "STRICT"}}),
            "True",
            "Enforced",
            "callers without an identity of the mesh are refused; in force at the 3 pods",
        ),
        (
            Peer,
            json!({"selector": cart, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"80": {"mode": "PERMISSIVE"}}}),
            "True",
            "Enforced",
            "are refused, and as its entry says on 1 port; in force at the pod",
        ),
        (
            Peer,
            json!({"mtls": {"mode": "PERHAPS"}}),
            "False",
            "NotUnderstood",
            "spec.mtls.mode: unknown variant `PERHAPS`",
        ),
    ];
    for (kind, spec, status, reason, message) in table {
        let got = said(kind, spec.clone());
        assert_eq!((got.0.as_str(), got.1.as_str()), (status, reason), "{spec}: {got:?}");
        assert!(got.2.contains(message), "{spec}:\n{}\n{message}", got.2);
    }
}

#[test]
fn a_dry_run_says_that_it_decides_nothing_also_when_it_is_broken() {
    for (spec, status, message) in [
        (json!({"rules": [{}]}), "True", "a dry run: it is judged at the 3 pods"),
        (json!({"rules": [{"form": 1}]}), "False", "it would refuse every connection"),
    ] {
        let mut object = policy("p", spec);
        object["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
        let needed = needed_of(&world(&[(Kind::AuthorizationPolicy, object)]));
        assert_eq!(needed[0].condition["status"], status);
        assert!(needed[0].condition["message"].as_str().is_some_and(|text| text.contains(message)), "{needed:?}");
    }
}

#[test]
fn a_peer_authentication_that_another_stands_before_says_so() {
    let at = |name: &str, year: u32, spec: Value| {
        let mut object = policy(name, spec);
        object["metadata"]["creationTimestamp"] = format!("{year}-01-01T00:00:00Z").into();
        (Kind::PeerAuthentication, object)
    };
    let cart = json!({"selector": {"matchLabels": {"app": "cart"}}});
    let world = world(&[
        at("wide-old", 2024, json!({"mtls": {"mode": "STRICT"}})),
        at("wide-young", 2025, json!({"mtls": {"mode": "PERMISSIVE"}})),
        at("cart-old", 2024, cart.clone()),
        at("cart-young", 2025, cart),
    ]);
    let reasons: Vec<_> = needed_of(&world)
        .into_iter()
        .map(|one| (one.object.name, one.condition["reason"].as_str().unwrap_or_default().to_owned()))
        .collect();
    let wanted =
        [("cart-old", "Enforced"), ("cart-young", "NoEffect"), ("wide-old", "Enforced"), ("wide-young", "NoEffect")];
    assert_eq!(reasons, wanted.map(|(name, reason)| (name.to_owned(), reason.to_owned())));
}

#[test]
fn a_change_that_cannot_be_understood_is_told_with_its_own_generation_and_what_stays() {
    let mut store = world(&[(Kind::AuthorizationPolicy, policy("p", json!({"action": "DENY", "rules": [{}]})))]);
    let mut broken = policy("p", json!({"action": "DENY", "rules": [{"form": []}]}));
    broken["metadata"]["generation"] = 4.into();
    broken["metadata"]["resourceVersion"] = "8".into();
    store.changed(Kind::AuthorizationPolicy, broken);
    let needed = needed_of(&store);
    assert_eq!((needed[0].version.as_str(), &needed[0].condition["observedGeneration"]), ("8", &json!(4)));
    assert_eq!(needed[0].condition["reason"], "LastGoodKept");
    let message = needed[0].condition["message"].as_str().expect("text");
    assert!(
        message.starts_with("spec.rules[0].form: ") && message.contains("the version before stays in force"),
        "{message}"
    );
}

#[test]
fn a_policy_of_10_000_rules_has_a_short_message() {
    let rules: Vec<Value> = (0..10_000).map(|_| json!({"to": [{"operation": {"methods": ["GET"]}}]})).collect();
    let (_, reason, message) = said(Kind::AuthorizationPolicy, json!({"rules": rules}));
    assert_eq!(reason, "StricterThanWritten");
    assert!(message.starts_with("spec.rules[0], spec.rules[1]") && message.contains("and 9995 more"), "{message}");
    let long = "x".repeat(5000);
    let (_, _, message) = said(Kind::AuthorizationPolicy, json!({ long: 1 }));
    assert_eq!(message.chars().count(), MESSAGE);
}

/// The policy as the server has it after the patch.
fn written(one: &Condition, object: &Value) -> Value {
    let mut object = object.clone();
    object["status"] = one.patch(now())["status"].clone();
    object
}

#[test]
fn what_is_right_is_not_written_again_and_what_a_stranger_changed_is() {
    let kind = Kind::AuthorizationPolicy;
    let mut object = policy("p", json!({"rules": [{}]}));
    object["status"] = json!({"conditions": [{"type": "Other", "status": "True"}], "x": 1});
    let first = needed_of(&world(&[(kind, object.clone())]));
    assert!(first[0].urgent);
    let right = written(&first[0], &object);
    assert_eq!(right["status"]["conditions"][0], json!({"type": "Other", "status": "True"}), "others' stay");
    assert_eq!(needed_of(&world(&[(kind, right.clone())])), [], "it says what it should");
    let forge = |change: &dyn Fn(&mut Value)| {
        let mut forged = right.clone();
        change(&mut forged["status"]["conditions"]);
        needed_of(&world(&[(kind, forged)]))
    };
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Value), bool);
    let changes: [Change<'_>; 9] = [
        ("status", &|all| all[1]["status"] = "False".into(), true),
        ("reason", &|all| all[1]["reason"] = "Wrong".into(), true),
        ("message", &|all| all[1]["message"] = "all is well".into(), false),
        ("generation", &|all| all[1]["observedGeneration"] = 9.into(), true),
        ("more", &|all| all[1]["more"] = 9.into(), true),
        ("time", &|all| all[1]["lastTransitionTime"] = "2099-01-01T00:00:00Z".into(), true),
        ("no time", &|all| all[1]["lastTransitionTime"] = "soon".into(), true),
        (
            "twice",
            &|all| {
                let one = all[1].clone();
                all.as_array_mut().expect("a list").push(one)
            },
            true,
        ),
        ("no list", &|all| *all = json!({"a": 1}), true),
    ];
    for (what, change, urgent) in changes {
        let needed = forge(change);
        assert_eq!(needed.len(), 1, "{what}");
        assert_eq!(needed[0].urgent, urgent, "{what}");
        let again = written(&needed[0], &object);
        assert_eq!(needed_of(&world(&[(kind, again)])), [], "{what}: it is right after one write");
    }
}

#[test]
fn the_time_of_transition_stays_while_the_status_does() {
    let kind = Kind::AuthorizationPolicy;
    let mut object = policy("p", json!({"rules": [{}]}));
    object["status"] = json!({"conditions": [{"type": CONDITION, "status": "True", "reason": "SelectsNoPod", "message": "",
        "observedGeneration": 2, "lastTransitionTime": "2025-01-01T00:00:00Z"}]});
    let time = |object: &Value| {
        let needed = needed_of(&world(&[(kind, object.clone())]));
        needed[0].patch(now())["status"]["conditions"][0]["lastTransitionTime"].clone()
    };
    assert_eq!(time(&object), "2025-01-01T00:00:00Z");
    object["status"]["conditions"][0]["status"] = "False".into();
    assert_eq!(time(&object), "2026-02-01T00:00:00Z");
}

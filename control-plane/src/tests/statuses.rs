//! Statuses of policies and Events of anything else, written to an API server that misbehaves.

use mesh_api::manifests::Kind;
use mesh_kube::fake::Fake;
use serde_json::{Value, json};

use super::{Lab, eventually};

const KIND: Kind = Kind::AuthorizationPolicy;

fn policy(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "generation": 1}, "spec": spec})
}

/// Our condition, without what others wrote.
fn condition(fake: &Fake, name: &str) -> Option<Value> {
    let object = fake.object(KIND, "shop", name)?;
    let mut conditions = object.pointer("/status/conditions")?.as_array()?.iter();
    conditions.find(|one| one["type"] == "culvert.io/Accepted").cloned()
}

fn reason(fake: &Fake, name: &str) -> String {
    condition(fake, name).and_then(|one| Some(one["reason"].as_str()?.to_owned())).unwrap_or_default()
}

/// Requests that write a status.
fn writes(fake: &Fake) -> usize {
    fake.requests().iter().filter(|request| request.starts_with("PATCH") && request.contains("/status")).count()
}

async fn world(loopback: &str) -> Fake {
    let fake = Fake::start(loopback).await;
    fake.put(Kind::Namespace, json!({"metadata": {"name": "shop", "labels": {"culvert.io/mesh": "enabled"}}}));
    fake.put(KIND, policy("good", json!({"action": "DENY", "rules": [{}]})));
    fake.put(KIND, policy("typo", json!({"acton": "DENY"})));
    fake
}

#[tokio::test]
async fn each_policy_is_told_once_and_a_strangers_word_is_put_right() {
    for loopback in ["127.0.0.1", "::1"] {
        let fake = world(loopback).await;
        let lab = Lab::start_api(&fake).await;
        eventually("told", || reason(&fake, "good") == "SelectsNoPod" && reason(&fake, "typo") == "NotUnderstood")
            .await;
        assert_eq!(writes(&fake), 2);
        let told = condition(&fake, "typo").expect("there");
        assert_eq!((&told["status"], &told["observedGeneration"]), (&json!("False"), &json!(1)), "{told}");
        assert!(told["message"].as_str().is_some_and(|text| text.starts_with("spec.acton: ")), "{told}");

        let mut forged = fake.object(KIND, "shop", "typo").expect("there");
        forged["status"]["conditions"][0]["status"] = "True".into();
        forged["status"]["conditions"][0]["reason"] = "Enforced".into();
        forged["status"]["conditions"].as_array_mut().expect("a list").push(json!({"type": "Other"}));
        fake.put(KIND, forged);
        eventually("put right", || reason(&fake, "typo") == "NotUnderstood").await;
        let all = fake.object(KIND, "shop", "typo").expect("there")["status"]["conditions"].clone();
        assert_eq!(all[0], json!({"type": "Other"}), "what others say stays: {all}");

        let mut mended = fake.object(KIND, "shop", "typo").expect("there");
        mended["spec"] = json!({"action": "DENY"});
        mended["metadata"]["generation"] = 2.into();
        fake.put(KIND, mended);
        eventually("mended", || reason(&fake, "typo") == "SelectsNoPod").await;
        assert_eq!(condition(&fake, "typo").map(|one| one["observedGeneration"].clone()), Some(json!(2)));
        assert_eq!(writes(&fake), 4, "one for each change: {:?}", fake.requests());
        // Counted when the answer is there, which is after the API server has it.
        let counted = || lab.told("source_writes_total", r#"result="written",what="condition""#);
        eventually("all are counted", || counted() >= 4.0).await;
        assert_eq!(counted(), 4.0);
        lab.running.stop().await;
    }
}

#[tokio::test]
async fn another_control_plane_that_takes_over_writes_nothing_that_is_there() {
    let fake = world("::1").await;
    let first = Lab::start_as(&fake, "a").await;
    eventually("told", || !reason(&fake, "good").is_empty() && !reason(&fake, "typo").is_empty()).await;
    let second = Lab::start_as(&fake, "b").await;
    let readiness = second.running.readiness.clone();
    eventually("ready", || readiness.is_ready()).await;
    first.running.stop().await;
    eventually("it leads", || second.running.metrics.leader.get() == 1).await;
    // It writes: what is new, and that alone.
    fake.put(KIND, policy("new", json!({})));
    eventually("told", || reason(&fake, "new") == "SelectsNoPod").await;
    assert_eq!(writes(&fake), 3, "{:?}", fake.requests());
    second.running.stop().await;
}

#[tokio::test]
async fn one_that_cannot_be_written_does_not_hold_up_the_rest() {
    let fake = world("::1").await;
    fake.refuse("authorizationpolicies/a-refused/status", 422, 1000);
    fake.refuse("authorizationpolicies/b-gone/status", 404, 1000);
    fake.refuse("authorizationpolicies/c-late/status", 503, 2);
    for name in ["a-refused", "b-gone", "c-late"] {
        fake.put(KIND, policy(name, json!({})));
    }
    let lab = Lab::start_api(&fake).await;
    eventually("told", || ["good", "typo", "c-late"].iter().all(|name| !reason(&fake, name).is_empty())).await;
    // Refused as it is: not asked again until it changes.
    let asked =
        |name: &str| fake.requests().iter().filter(|one| one.starts_with("PATCH") && one.contains(name)).count();
    assert_eq!((asked("a-refused"), asked("b-gone"), asked("c-late")), (1, 1, 3));
    // Deleted while it waits, or at any time: nothing is left of it.
    fake.delete(KIND, "shop", "a-refused");
    fake.put(KIND, policy("later", json!({})));
    eventually("told", || !reason(&fake, "later").is_empty()).await;
    assert_eq!(asked("a-refused"), 1);
    lab.running.stop().await;
}

const EVENTS: &str = "/apis/events.k8s.io/v1/events";

fn pod(name: &str, ip: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
        "spec": {"nodeName": "node-1", "containers": []}, "status": {"podIPs": [{"ip": ip}]}})
}

#[tokio::test]
async fn what_has_no_condition_is_told_by_one_event_whoever_leads() {
    let fake = world("::1").await;
    fake.put(Kind::Pod, pod("cart", "198.18.1.2"));
    fake.put(Kind::Pod, pod("web", "198.18.1.2"));
    fake.put(
        Kind::NetworkPolicy,
        json!({"metadata": {"name": "odd", "namespace": "shop", "uid": "uid-odd"}, "spec": 5}),
    );
    let first = Lab::start_as(&fake, "a").await;
    eventually("told", || fake.posted(EVENTS).len() == 2).await;
    let told: Vec<_> = fake.posted(EVENTS);
    assert_eq!(told[0]["regarding"]["name"], "web", "the one that is not found at the address: {told:?}");
    assert_eq!(told[0]["regarding"]["uid"], "uid-web");
    assert!(told[0]["note"].as_str().is_some_and(|note| note.contains("198.18.1.2") && note.contains("shop/cart")));
    assert_eq!((&told[1]["regarding"]["kind"], &told[1]["reportingInstance"]), (&json!("NetworkPolicy"), &json!("a")));
    first.running.stop().await;

    // Whoever leads next says nothing twice: what it tries is there already.
    let second = Lab::start_as(&fake, "b").await;
    fake.put(Kind::Pod, pod("late", "198.18.1.2"));
    let events = || fake.posted(EVENTS);
    eventually("told", || events().iter().any(|event| event["regarding"]["name"] == "late")).await;
    let of = |result: &str| second.told("source_writes_total", &format!(r#"result="{result}",what="event""#));
    eventually("all three tried", || of("dropped") + of("written") >= 3.0).await;
    assert_eq!((of("dropped"), of("written")), (2.0, 1.0), "{:?}", events());
    second.running.stop().await;
}

#[tokio::test]
async fn an_event_that_is_refused_does_not_hold_up_what_is_told_at_policies() {
    let fake = world("::1").await;
    fake.refuse("/events", 403, 1000);
    for (name, ip) in [("a", "198.18.1.2"), ("b", "198.18.1.2"), ("c", "198.18.1.3"), ("d", "198.18.1.3")] {
        fake.put(Kind::Pod, pod(name, ip));
    }
    let lab = Lab::start_api(&fake).await;
    eventually("told", || !reason(&fake, "good").is_empty() && !reason(&fake, "typo").is_empty()).await;
    let asked = || fake.requests().iter().filter(|one| one.starts_with("POST") && one.contains("/events")).count();
    eventually("tried", || lab.told("source_writes_total", r#"result="dropped",what="event""#) == 2.0).await;
    fake.put(KIND, policy("later", json!({})));
    eventually("told", || !reason(&fake, "later").is_empty()).await;
    assert_eq!(asked(), 2, "each once");
    lab.running.stop().await;
}

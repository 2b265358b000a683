//! The real pod-watcher with the API server as its source: one that is played by the test, on the node's loopback.

#![allow(clippy::print_stdout, reason = "figures are for whoever runs the tests")]

mod common;

use std::time::{Duration, Instant};

use common::api::{namespace, node};
use common::keeper::{Answers, connected};
use common::{Pod, Seen, eventually, within};
use mesh_api::manifests::Kind;
use mesh_kube::fake::Fake;
use mesh_net::capture::Stage;
use serde_json::{Value, json};

fn condition(fake: &Fake, pod: &Pod) -> Option<Value> {
    let object = fake.object(Kind::Pod, &pod.namespace, &pod.name)?;
    let all = object.pointer("/status/conditions")?.as_array()?.clone();
    all.into_iter().find(|one| one["type"] == "culvert.io/Captured")
}

#[test]
fn a_running_pod_follows_its_namespace_s_label_in_and_out_and_its_condition_says_what_was_observed() {
    for loopback in ["127.0.0.1", "::1"] {
        let (node, fake) = node(loopback, &["--linger-seconds", "1"]);
        let _keeper = connected(&node, Answers::Serve);
        let mut pod = Pod::new("tools", "runner");
        fake.put(Kind::Pod, pod.manifest(None));
        let (ok, answer, _) = node.add(&pod);
        assert!(ok, "{answer}");
        pod.start_process();
        assert!(pod.rules().is_none() && condition(&fake, &pod).is_none(), "a plain pod is left alone");
        let labelled = Instant::now();
        fake.put(Kind::Namespace, namespace("tools", json!({"culvert.io/mesh": "enabled"})));
        eventually("captured", || pod.stage() == Some(Stage::Redirect));
        eventually("its condition", || condition(&fake, &pod).is_some_and(|one| one["status"] == "True"));
        println!("figure: running pod captured, and its condition there, {:?} after the label", labelled.elapsed());
        let events = || fake.posted("/apis/events.k8s.io/v1/events");
        eventually("its event", || {
            events().iter().any(|one| one["reason"] == "Enrolled" && one["regarding"]["uid"] == pod.uid.as_str())
        });
        let file = std::fs::read_to_string(node.path("state/namespaces"));
        assert!(file.is_ok_and(|text| text.contains("tools")), "the plugin's file");
        fake.put(Kind::Namespace, namespace("tools", json!({})));
        eventually("let go of", || pod.rules().is_none() && node.view(&pod).is_none());
        eventually("its condition", || condition(&fake, &pod).is_some_and(|one| one["status"] == "False"));
    }
}

#[test]
fn an_add_that_is_ahead_of_the_watch_is_served_by_one_get() {
    let (node, fake) = node("127.0.0.1", &[]);
    let _keeper = connected(&node, Answers::Serve);
    for kind in [Kind::Pod, Kind::Namespace] {
        fake.hold(kind, true);
    }
    fake.put(Kind::Namespace, namespace("fresh", json!({"culvert.io/mesh": "enabled"})));
    let pod = Pod::new("fresh", "early");
    fake.put(Kind::Pod, pod.manifest(None));
    let (ok, answer, took) = node.add(&pod);
    println!("figure: ADD ahead of the watch: {took:?}");
    assert!(ok, "{answer}");
    assert_eq!(pod.stage(), Some(Stage::Redirect));
    let gets =
        fake.requests().iter().filter(|line| line.starts_with("GET /api/v1/namespaces/fresh/pods/early")).count();
    assert_eq!(gets, 1);
    // The watch catches up, and nothing happens twice.
    for kind in [Kind::Pod, Kind::Namespace] {
        fake.hold(kind, false);
    }
    fake.delete(Kind::Pod, "fresh", "early");
    node.del(&pod);
    eventually("gone", || node.view(&pod).is_none());
}

#[test]
fn a_pod_of_that_name_with_another_uid_is_not_taken_for_it() {
    let (node, fake) = node("127.0.0.1", &[]);
    let _keeper = connected(&node, Answers::Serve);
    let (before, now) = (Pod::new("shop", "cart"), Pod::new("shop", "cart"));
    fake.put(Kind::Pod, before.manifest(Some("disabled")));
    fake.hold(Kind::Pod, true);
    fake.delete(Kind::Pod, "shop", "cart");
    fake.put(Kind::Pod, now.manifest(None));
    let (ok, answer, _) = node.add(&now);
    assert!(ok, "{answer}");
    assert_eq!(now.stage(), Some(Stage::Redirect), "the old one's opt-out does not count");
}

#[test]
fn with_the_api_server_away_pods_stay_as_they_are_and_what_changed_meanwhile_is_met_when_it_is_back() {
    let (node, fake) = node("127.0.0.1", &[]);
    let _keeper = connected(&node, Answers::Serve);
    let (known, unknown) = (Pod::new("shop", "known"), Pod::new("shop", "unknown"));
    fake.put(Kind::Pod, known.manifest(None));
    assert!(node.add(&known).0);
    fake.refuse("/", 503, u32::MAX);
    fake.cut();
    let (ok, answer, took) = node.add(&unknown);
    assert!(!ok && answer["code"] == 11, "{answer}");
    println!("figure: ADD of a pod that nobody can look up is refused after {took:?}");
    assert_eq!(known.stage(), Some(Stage::Redirect));
    fake.put(Kind::Pod, unknown.manifest(None));
    fake.compact();
    fake.forgive();
    let back = within(Duration::from_secs(20), "the condition of before", || {
        condition(&fake, &known).is_some_and(|one| one["status"] == "True")
    });
    let (ok, answer, _) = node.add(&unknown);
    assert!(ok, "{answer}");
    println!("figure: back {back:?} after the server");
}

#[test]
fn labels_that_flap_a_hundred_times_a_second_move_nothing_but_themselves() {
    let (node, fake) = node("127.0.0.1", &["--linger-seconds", "1"]);
    let keeper = connected(&node, Answers::Serve);
    let (mut flapping, calm) = (Pod::new("tools", "flapping"), Pod::new("shop", "calm"));
    fake.put(Kind::Pod, flapping.manifest(None));
    assert!(node.add(&flapping).0);
    flapping.start_process();
    let begun = Instant::now();
    for flap in 0..300 {
        fake.put(Kind::Pod, flapping.manifest(if flap % 2 == 0 { Some("enabled") } else { None }));
        let next = Duration::from_millis(10 * (flap + 1));
        eventually("its turn", || begun.elapsed() >= next);
        if flap == 150 {
            fake.put(Kind::Pod, calm.manifest(None));
            let (ok, answer, took) = node.add(&calm);
            assert!(ok, "{answer}");
            println!("figure: ADD of another pod meanwhile: {took:?}");
        }
    }
    let told = keeper.seen().iter().filter(|seen| matches!(seen, Seen::Add { .. } | Seen::Del { .. })).count();
    assert!(told <= 4, "{:?}", keeper.seen());
    eventually("an event names it", || node.event("LabelsFlap").is_some_and(|event| event["pod"] == "tools/flapping"));
    assert_eq!(flapping.stage(), Some(Stage::Redirect), "in doubt inside");
    // The last word stood: out.
    eventually("out", || flapping.rules().is_none());
}

#[test]
fn a_bad_object_is_counted_and_the_others_go_on() {
    let (node, fake) = node("::1", &[]);
    let _keeper = connected(&node, Answers::Serve);
    let bad = json!({"metadata": {"name": "bad", "namespace": "shop", "labels": {"a": 7}}, "spec": {"nodeName": "n1", "containers": []}});
    fake.put(Kind::Pod, bad);
    let pod = Pod::new("shop", "cart");
    fake.put(Kind::Pod, pod.manifest(None));
    let (ok, answer, _) = node.add(&pod);
    assert!(ok, "{answer}");
    assert_eq!(pod.stage(), Some(Stage::Redirect));
    eventually("named", || node.log().contains("API server: Pod shop/bad"));
}

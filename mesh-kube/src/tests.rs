//! Each promise of the API source, against a real HTTP server on loopback, over IPv4 and IPv6.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mesh_api::manifests::Kind;
use mesh_daemon::tasks;
use mesh_model::{PodName, PodUid};
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::metrics::Cause;
use crate::{Api, EventType, Following, Metrics, Reporter, Server, Source, Timing};

/// Long enough for a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(20);
const TIMING: Timing = Timing {
    first: Duration::from_millis(20),
    longest: Duration::from_millis(200),
    silence: Duration::from_secs(60),
    life: Duration::from_secs(300),
    absent: Duration::from_millis(50),
};

struct Lab {
    fake: Fake,
    api: Api,
    server: Server,
    metrics: Metrics,
    group: tasks::Group,
    known: (BTreeSet<String>, Vec<String>),
}

async fn api(fake: &Fake) -> Api {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, fake.kubeconfig()).expect("written");
    Api::connect(Some(&path)).await.expect("a client")
}

impl Lab {
    async fn start(loopback: &str, objects: &[(Kind, Value)], timing: Timing) -> Self {
        let fake = Fake::start(loopback).await;
        for (kind, object) in objects {
            fake.put(*kind, object.clone());
        }
        let api = api(&fake).await;
        let metrics = Metrics::new(&prometheus::Registry::new(), "test").expect("metrics");
        let group = tasks::Group::new("test");
        let follow = [
            Following { kind: Kind::Pod, node: Some("n1".to_owned()) },
            Following { kind: Kind::Namespace, node: None },
            Following { kind: Kind::AuthorizationPolicy, node: None },
        ];
        let server = Server::start(api.clone(), &follow, timing, metrics.clone(), &group.handle());
        Self { fake, api, server, metrics, group, known: Default::default() }
    }

    /// Reads until this holds of the pods' names (with what version of the label `v` they have) and of the complaints.
    async fn until(&mut self, what: &str, fact: impl Fn(&BTreeSet<String>, &[String]) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !fact(&self.known.0, &self.known.1) {
                self.server.changed().await;
                self.known = self.read().await;
            }
        });
        if waited.await.is_err() {
            panic!("never: {what}; known: {:?}; requests: {:#?}", self.known, self.fake.requests());
        }
    }

    async fn read(&mut self) -> (BTreeSet<String>, Vec<String>) {
        let read = self.server.read(|objects, rejected| {
            let pods = objects.pods.iter().map(|((namespace, name), pod)| {
                let v = pod.metadata.labels.as_ref().and_then(|labels| labels.get("v")).cloned().unwrap_or_default();
                format!("{namespace}/{name}={v}")
            });
            (pods.collect(), rejected.iter().map(ToString::to_string).collect())
        });
        read.await.expect("read")
    }

    async fn until_pods(&mut self, pods: &[&str]) {
        let wanted: BTreeSet<String> = pods.iter().map(|pod| (*pod).to_owned()).collect();
        self.until(&format!("pods {pods:?}"), |known, _| *known == wanted).await;
    }
}

fn pod(name: &str, v: &str) -> (Kind, Value) {
    (Kind::Pod, on("n1", name, v))
}

fn on(node: &str, name: &str, v: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "labels": {"v": v}}, "spec": {"nodeName": node, "containers": []}})
}

async fn eventually(what: &str, fact: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn only_pods_of_this_node_are_known_and_each_change_is_heard() {
    for loopback in ["127.0.0.1", "::1"] {
        let mut lab = Lab::start(loopback, &[pod("a", "1"), (Kind::Pod, on("n2", "b", "1"))], TIMING).await;
        lab.until_pods(&["shop/a=1"]).await;
        lab.fake.put(Kind::Pod, on("n1", "c", "1"));
        lab.until_pods(&["shop/a=1", "shop/c=1"]).await;
        lab.fake.put(Kind::Pod, on("n1", "a", "2"));
        lab.fake.put(Kind::Pod, on("n2", "d", "1"));
        lab.fake.delete(Kind::Pod, "shop", "c");
        lab.until_pods(&["shop/a=2"]).await;
        // Bound: what was not ours comes.
        lab.fake.put(Kind::Pod, on("n1", "d", "1"));
        lab.until_pods(&["shop/a=2", "shop/d=1"]).await;
        assert!(
            lab.fake
                .requests()
                .iter()
                .filter(|line| line.contains("/pods"))
                .all(|line| line.contains("spec.nodeName%3Dn1"))
        );
    }
}

#[tokio::test]
async fn a_long_list_comes_in_pages_and_nothing_is_told_before_every_kind_is_complete() {
    let pods: Vec<(Kind, Value)> = (0..600).map(|n| pod(&format!("p{n}"), "1")).collect();
    let mut lab = Lab::start("127.0.0.1", &pods, TIMING).await;
    lab.server.changed().await;
    assert_eq!(lab.read().await.0.len(), 600);
    let pages = lab.fake.requests().iter().filter(|line| line.contains("/pods?limit")).count();
    assert_eq!(pages, 3);
}

#[tokio::test]
async fn a_cut_stream_goes_on_where_it_stood_without_a_list() {
    let mut lab = Lab::start("::1", &[pod("a", "1")], TIMING).await;
    lab.until_pods(&["shop/a=1"]).await;
    for n in 2..6 {
        lab.fake.cut();
        lab.fake.put(Kind::Pod, on("n1", "a", &n.to_string()));
        lab.fake.put(Kind::Pod, on("n1", &format!("new{n}"), "1"));
        lab.fake.delete(Kind::Pod, "shop", &format!("new{}", n - 1));
        let cut = Instant::now();
        lab.until_pods(&[&format!("shop/a={n}"), &format!("shop/new{n}=1")]).await;
        eprintln!("back {:?} after the cut", cut.elapsed());
    }
    assert_eq!(lab.metrics.lists_of(Kind::Pod), 1);
}

#[tokio::test]
async fn after_410_a_new_list_loses_nothing_and_invents_nothing() {
    let mut lab = Lab::start("127.0.0.1", &[pod("a", "1"), pod("b", "1"), pod("c", "1")], TIMING).await;
    lab.until_pods(&["shop/a=1", "shop/b=1", "shop/c=1"]).await;
    // While nobody watches: one changes, one goes, one comes, one comes and goes; and none of it is kept.
    lab.fake.refuse("watch=true", 500, 3);
    lab.fake.cut();
    lab.fake.put(Kind::Pod, on("n1", "a", "2"));
    lab.fake.delete(Kind::Pod, "shop", "b");
    lab.fake.put(Kind::Pod, on("n1", "d", "1"));
    lab.fake.put(Kind::Pod, on("n1", "e", "1"));
    lab.fake.delete(Kind::Pod, "shop", "e");
    lab.fake.compact();
    lab.until_pods(&["shop/a=2", "shop/c=1", "shop/d=1"]).await;
    assert_eq!(lab.metrics.lists_of(Kind::Pod), 2);
    assert_eq!(lab.metrics.restarts_of(Kind::Pod, Cause::Gone), 1);
    lab.fake.put(Kind::Pod, on("n1", "c", "3"));
    lab.until_pods(&["shop/a=2", "shop/c=3", "shop/d=1"]).await;
}

#[tokio::test]
async fn a_410_inside_a_stream_or_while_listing_is_met_by_a_list_too() {
    let mut lab = Lab::start("127.0.0.1", &[pod("a", "1")], TIMING).await;
    lab.until_pods(&["shop/a=1"]).await;
    let gone =
        json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}});
    lab.fake.refuse("/pods?limit", 410, 2);
    lab.fake.say(Kind::Pod, &gone.to_string());
    lab.fake.put(Kind::Pod, on("n1", "b", "1"));
    lab.until_pods(&["shop/a=1", "shop/b=1"]).await;
    assert_eq!(lab.metrics.lists_of(Kind::Pod), 2);
}

#[tokio::test]
async fn a_bookmark_moves_on_where_the_next_watch_begins() {
    let mut lab = Lab::start("127.0.0.1", &[pod("a", "1")], TIMING).await;
    lab.until_pods(&["shop/a=1"]).await;
    // Others' pods make versions that this watch never sees.
    for n in 0..10 {
        lab.fake.put(Kind::Pod, on("n2", "other", &n.to_string()));
    }
    lab.fake.bookmark(Kind::Pod);
    lab.fake.put(Kind::Pod, on("n1", "b", "1"));
    lab.until_pods(&["shop/a=1", "shop/b=1"]).await;
    lab.fake.compact();
    lab.fake.cut();
    lab.fake.put(Kind::Pod, on("n1", "c", "1"));
    lab.until_pods(&["shop/a=1", "shop/b=1", "shop/c=1"]).await;
    assert_eq!(lab.metrics.lists_of(Kind::Pod), 1, "what was compacted had been heard");
}

#[tokio::test]
async fn a_bad_object_is_named_and_counted_and_the_others_go_on() {
    let bad = json!({"metadata": {"name": "bad", "namespace": "shop", "labels": {"v": 7}}, "spec": {"nodeName": "n1", "containers": []}});
    let mut lab = Lab::start("127.0.0.1", &[pod("a", "1"), (Kind::Pod, bad)], TIMING).await;
    lab.until_pods(&["shop/a=1"]).await;
    let named =
        |texts: &[String], name: &str| texts.iter().any(|text| text.starts_with(&format!("API server: Pod {name}: ")));
    assert!(named(&lab.known.1, "shop/bad"), "{:?}", lab.known.1);
    lab.fake.put(
        Kind::Pod,
        json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": {"nodeName": "n1", "containers": "none"}}),
    );
    lab.fake.put(Kind::Pod, on("n1", "b", "1"));
    // Its last good version stays.
    lab.until("b, and a named", |pods, texts| pods.contains("shop/b=1") && named(texts, "shop/a")).await;
    assert!(lab.known.0.contains("shop/a=1"));
    assert_eq!(lab.metrics.bad_of(Kind::Pod), 2);
    let policy = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"acton": "DENY"}});
    lab.fake.put(Kind::AuthorizationPolicy, policy);
    lab.until("the policy named", |_, texts| texts.iter().any(|text| text.contains("AuthorizationPolicy shop/p")))
        .await;
    let refuses =
        lab.server.read(|objects, _| objects.authorization_policies.values().all(|policy| policy.spec.is_err()));
    assert!(refuses.await.expect("read"));
    lab.fake.put(Kind::Pod, on("n1", "a", "3"));
    lab.fake.delete(Kind::Pod, "shop", "bad");
    lab.until("no complaint about pods", |_, texts| !texts.iter().any(|text| text.contains("Pod"))).await;
    assert_eq!(lab.metrics.lists_of(Kind::Pod), 1);
}

#[tokio::test]
async fn garbage_in_a_stream_is_counted_and_everything_is_listed_again() {
    let lines = [
        "no JSON at all",
        "{\"type\":\"ADDED\",\"object\":{\"metadata\":{",
        "{\"type\":\"FROBNICATED\",\"object\":{}}",
        "{}",
        "[1,2,3]",
        "\u{0}\u{1}",
    ];
    let mut lab = Lab::start("127.0.0.1", &[pod("a", "1")], TIMING).await;
    lab.until_pods(&["shop/a=1"]).await;
    for (n, line) in lines.iter().enumerate() {
        lab.fake.say(Kind::Pod, line);
        lab.fake.put(Kind::Pod, on("n1", "a", &format!("g{n}")));
        lab.until_pods(&[&format!("shop/a=g{n}")]).await;
    }
    assert_eq!(lab.metrics.bad_of(Kind::Pod), lines.len() as u64);
    assert_eq!(lab.metrics.lists_of(Kind::Pod), 1 + lines.len() as u64);
}

#[tokio::test]
async fn a_silent_stream_is_begun_again_and_what_is_known_stays() {
    let timing = Timing { silence: Duration::from_millis(300), ..TIMING };
    let mut lab = Lab::start("127.0.0.1", &[pod("a", "1")], timing).await;
    lab.until_pods(&["shop/a=1"]).await;
    lab.fake.hold(Kind::Pod, true);
    lab.fake.put(Kind::Pod, on("n1", "b", "1"));
    eventually("restarts by silence", || lab.metrics.restarts_of(Kind::Pod, Cause::Silent) >= 2).await;
    assert_eq!(lab.read().await.0.len(), 1);
    lab.fake.hold(Kind::Pod, false);
    lab.until_pods(&["shop/a=1", "shop/b=1"]).await;
    assert_eq!(lab.metrics.lists_of(Kind::Pod), 1);
}

#[tokio::test]
async fn a_server_that_refuses_is_asked_again_and_not_in_a_loop() {
    for status in [401, 403, 429, 500, 503] {
        let fake = Fake::start("127.0.0.1").await;
        fake.put(Kind::Pod, on("n1", "a", "1"));
        fake.refuse("/pods?limit", status, 4);
        let metrics = Metrics::new(&prometheus::Registry::new(), "test").expect("metrics");
        let group = tasks::Group::new("test");
        let follow = [Following { kind: Kind::Pod, node: None }];
        let begun = Instant::now();
        let mut server = Server::start(api(&fake).await, &follow, TIMING, metrics.clone(), &group.handle());
        tokio::time::timeout(PATIENCE, server.changed()).await.expect("in time");
        assert_eq!(server.read(|objects, _| objects.pods.len()).await.expect("read"), 1, "{status}");
        // Half of 20, 40, 80 and 160 ms at least.
        assert!(begun.elapsed() >= Duration::from_millis(150), "{status}: {:?}", begun.elapsed());
        assert_eq!(metrics.restarts_of(Kind::Pod, Cause::Refused), 4, "{status}");
    }
}

#[tokio::test]
async fn a_kind_that_is_not_installed_is_waited_for_and_heard_when_it_comes() {
    let fake = Fake::start("127.0.0.1").await;
    fake.refuse("/authorizationpolicies", 404, 8);
    fake.put(Kind::AuthorizationPolicy, json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {}}));
    let metrics = Metrics::new(&prometheus::Registry::new(), "test").expect("metrics");
    let group = tasks::Group::new("test");
    let follow = [Following { kind: Kind::AuthorizationPolicy, node: None }];
    let mut server = Server::start(api(&fake).await, &follow, TIMING, metrics, &group.handle());
    tokio::time::timeout(PATIENCE, server.changed()).await.expect("in time");
    assert_eq!(server.read(|objects, _| objects.authorization_policies.len()).await.expect("read"), 0);
    tokio::time::timeout(PATIENCE, server.changed()).await.expect("in time");
    assert_eq!(server.read(|objects, _| objects.authorization_policies.len()).await.expect("read"), 1);
}

#[tokio::test]
async fn one_get_finds_a_pod_that_the_watch_has_not_told_of() {
    let mut lab = Lab::start("127.0.0.1", &[pod("a", "1")], TIMING).await;
    lab.until_pods(&["shop/a=1"]).await;
    lab.fake.hold(Kind::Pod, true);
    lab.fake.hold(Kind::Namespace, true);
    lab.fake.put(Kind::Namespace, json!({"metadata": {"name": "shop", "labels": {"culvert.io/mesh": "enabled"}}}));
    lab.fake.put(Kind::Pod, on("n1", "early", "1"));
    lab.fake.put(Kind::Pod, on("n2", "elsewhere", "1"));
    for name in ["early", "elsewhere", "nobody"] {
        lab.server.fetch(&PodName { namespace: "shop".to_owned(), name: name.to_owned() });
    }
    lab.until_pods(&["shop/a=1", "shop/early=1"]).await;
    let namespaces = lab.server.read(|objects, _| objects.namespaces.keys().cloned().collect::<Vec<_>>()).await;
    assert_eq!(namespaces.expect("read"), ["shop"]);
    lab.fake.hold(Kind::Pod, false);
    lab.fake.delete(Kind::Pod, "shop", "early");
    lab.until_pods(&["shop/a=1"]).await;
}

#[tokio::test]
async fn what_is_observed_is_written_as_a_condition_and_an_event_and_never_to_another_pod_of_that_name() {
    let lab = Lab::start("127.0.0.1", &[pod("a", "1"), pod("b", "1")], TIMING).await;
    lab.fake.refuse("PATCH", 503, 1);
    let reporter =
        Reporter::start(lab.api.clone(), "n1", "culvert.io/Captured", lab.metrics.clone(), &lab.group.handle());
    let name = |name: &str| PodName { namespace: "shop".to_owned(), name: name.to_owned() };
    let uid = |uid: &str| PodUid::parse(uid).expect("a uid");
    let conditions = |pod: &str| {
        lab.fake.object(Kind::Pod, "shop", pod).and_then(|pod| pod.pointer("/status/conditions/0").cloned())
    };
    reporter.condition(&uid("uid-of-before"), &name("b"), true, "Enrolled", "not this one");
    reporter.condition(&uid("uid-a"), &name("a"), false, "Not ready!", "soon");
    reporter.condition(&uid("uid-a"), &name("a"), true, "Enrolled", "served");
    eventually("a condition", || {
        conditions("a").is_some_and(|one| one["status"] == "True" && one["reason"] == "Enrolled")
    })
    .await;
    assert!(
        conditions("a").expect("there")["lastTransitionTime"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z') && !time.contains('.'))
    );
    reporter.event(EventType::Warning, "RulesChanged", &name("a"), &uid("uid-a"), &"x".repeat(5000));
    let events = || lab.fake.posted("/apis/events.k8s.io/v1/events");
    eventually("an event", || !events().is_empty()).await;
    let event = events().remove(0);
    assert_eq!((event["type"].as_str(), event["regarding"]["uid"].as_str()), (Some("Warning"), Some("uid-a")));
    assert!(event["note"].as_str().is_some_and(|note| note.len() < 1024));
    reporter.node_event(EventType::Normal, "ChainJoined", "in the chain");
    let of_node =
        || lab.fake.posted("/apis/events.k8s.io/v1/events").into_iter().find(|one| one["reason"] == "ChainJoined");
    eventually("an event of the node", || of_node().is_some()).await;
    let event = of_node().expect("there");
    assert_eq!(
        (event["metadata"]["namespace"].as_str(), event["regarding"]["kind"].as_str()),
        (Some("default"), Some("Node"))
    );
    assert_eq!(event["regarding"]["uid"], event["regarding"]["name"], "as kubelet writes it");
    let written = |result: &str| lab.metrics.writes.with_label_values(&["condition", result]).get();
    eventually("the other pod of that name left alone", || (written("dropped"), written("failed")) == (1, 1)).await;
    assert_eq!(conditions("b"), None);
}

#[tokio::test]
async fn what_is_so_of_the_node_is_written_when_the_api_server_is_back_and_what_was_so_before_is_not() {
    let lab = Lab::start("127.0.0.1", &[], TIMING).await;
    let reporter =
        Reporter::start(lab.api.clone(), "n1", "culvert.io/Captured", lab.metrics.clone(), &lab.group.handle());
    let events = || lab.fake.posted("/apis/events.k8s.io/v1/events");
    let failed = || lab.metrics.writes.with_label_values(&["event", "failed"]).get();
    lab.fake.refuse("POST", 503, u32::MAX);
    // A moment's news is not kept for later.
    reporter.node_event(EventType::Warning, "ChainRepaired", "put right");
    eventually("it cannot be written", || failed() == 1).await;
    reporter.node_state(EventType::Warning, "ChainRepairFailed", "no network is configured yet");
    eventually("neither can this", || failed() >= 2).await;
    reporter.node_state(EventType::Normal, "ChainJoined", "in the chain");
    eventually("nor this", || failed() >= 3).await;
    assert!(events().is_empty());
    lab.fake.forgive();
    eventually("it is written", || !events().is_empty()).await;
    // States are written one after another: once a later one is there, whatever was still to come has come.
    reporter.node_state(EventType::Warning, "ChainRepairFailed", "the disk is full");
    let reasons = || -> Vec<String> {
        events().iter().map(|event| event["reason"].as_str().unwrap_or_default().to_owned()).collect()
    };
    eventually("the next is written", || reasons().last().is_some_and(|last| last == "ChainRepairFailed")).await;
    assert_eq!(reasons(), ["ChainJoined", "ChainRepairFailed"], "each once, and what is so now");
}

//! Configuration streams.

use std::time::{Duration, Instant};

use mesh_api::xds::ADDRESS_TYPE;
use mesh_api::xds::discovery::{DeltaDiscoveryRequest, Status as Detail};
use tonic::Code;

use super::{Lab, Node, deny, eventually, pod};

const CART: &str = "Kubernetes//Pod/shop/cart";
const WEB: &str = "Kubernetes//Pod/shop/web";

#[tokio::test]
async fn a_node_gets_everything_policies_first_and_then_what_changes() {
    let lab = Lab::start(&[
        ("cart.yaml", &pod("cart", "node-1", "cart", "app: cart")),
        ("deny.yaml", &deny("stop", "app: cart")),
    ])
    .await;
    let mut node = lab.node("token-1").await.synced().await;
    assert_eq!(node.history, ["P+shop/stop".to_owned(), format!("A+{CART}")]);
    node.history.clear();
    lab.place("web.yaml", &pod("web", "node-2", "web", "app: web"));
    node.until(|node| node.addresses.contains_key(WEB)).await.expect("sent");
    assert_eq!(node.history, [format!("A+{WEB}")], "the change alone");
    node.history.clear();
    // A policy for it: the policy, then the workload that lists it; and back.
    lab.place("deny-web.yaml", &deny("stop-web", "app: web"));
    node.until(|node| node.history.len() >= 2).await.expect("sent");
    assert_eq!(node.history, ["P+shop/stop-web".to_owned(), format!("A+{WEB}")]);
    node.history.clear();
    std::fs::remove_file(lab.source().join("deny-web.yaml")).expect("removed");
    node.until(|node| node.history.len() >= 2).await.expect("sent");
    assert_eq!(node.history, [format!("A+{WEB}"), "P-shop/stop-web".to_owned()]);
    node.history.clear();
    std::fs::remove_file(lab.source().join("web.yaml")).expect("removed");
    node.until(|node| !node.history.is_empty()).await.expect("sent");
    assert_eq!(node.history, [format!("A-{WEB}")]);
    assert_eq!(lab.running.metrics.streams.get(), 1);
    drop(node);
    eventually("the node is gone", || lab.running.metrics.streams.get() == 0).await;
    lab.running.stop().await;
}

#[tokio::test]
async fn an_empty_mesh_is_answered_too() {
    let lab = Lab::start(&[]).await;
    let node = lab.node("token-1").await.synced().await;
    assert!(node.addresses.is_empty() && node.policies.is_empty());
    lab.running.stop().await;
}

#[tokio::test]
async fn a_node_that_comes_back_is_not_sent_what_it_has_and_told_what_is_gone() {
    let manifests = [pod("cart", "node-1", "cart", "app: cart"), pod("web", "node-2", "web", "app: web")].concat();
    let lab = Lab::start(&[("all.yaml", &manifests), ("deny.yaml", &deny("stop", "app: cart"))]).await;
    let node = lab.node("token-1").await.synced().await;
    let held = |map: &std::collections::BTreeMap<String, String>| -> Vec<(String, String)> {
        map.iter().map(|(name, version)| (name.clone(), version.clone())).collect()
    };
    let (addresses, mut policies) = (held(&node.addresses), held(&node.policies));
    assert_eq!((addresses.len(), policies.len()), (2, 1));
    drop(node);
    let again = Node::connect(lab.channel().await, "token-1", &addresses, &policies).await.expect("a stream");
    let again = again.synced().await;
    assert!(again.history.is_empty(), "nothing changed: {:?}", again.history);
    drop(again);
    // While it is away web goes, cart changes; and it remembers a policy that never was.
    lab.place("all.yaml", &pod("cart", "node-1", "other", "app: cart"));
    eventually("the change is compiled", || lab.running.metrics.generation() == 2).await;
    policies.push(("shop/never".into(), "1".into()));
    let mut again = Node::connect(lab.channel().await, "token-1", &addresses, &policies).await.expect("a stream");
    again.until(|node| node.history.len() >= 3).await.expect("sent");
    assert_eq!(again.history, [format!("A+{CART}"), format!("A-{WEB}"), "P-shop/never".to_owned()]);
    lab.running.stop().await;
}

#[tokio::test]
async fn a_refused_answer_is_counted_and_the_stream_lives_on() {
    let lab = Lab::start(&[("cart.yaml", &pod("cart", "node-1", "cart", "app: cart"))]).await;
    let mut node = lab.node("token-1").await;
    for _ in 0..2 {
        let answer = node.receive().await.expect("an answer");
        let refusal = DeltaDiscoveryRequest {
            type_url: answer.type_url.clone(),
            response_nonce: answer.nonce.clone(),
            error_detail: Some(Detail { code: 3, message: format!("{CART}: no such port"), details: vec![] }),
            ..DeltaDiscoveryRequest::default()
        };
        node.requests.send(refusal).await.expect("an open stream");
        let of = if answer.type_url == ADDRESS_TYPE { "address" } else { "authorization" };
        for name in ["nacks_total", "pushes_total", "push_seconds_count"] {
            eventually(&format!("{name} of {of}"), || lab.told(name, &format!("type=\"{of}\"")) == 1.0).await;
        }
    }
    lab.place("web.yaml", &pod("web", "node-2", "web", "app: web"));
    node.until(|node| node.addresses.contains_key(WEB)).await.expect("still served");
    lab.running.stop().await;
}

#[tokio::test]
async fn a_node_that_does_not_acknowledge_holds_up_nobody_and_later_gets_the_newest_at_once() {
    let lab = Lab::start(&[("cart.yaml", &pod("cart", "node-1", "cart", "app: cart"))]).await;
    let mut slow = lab.node("token-1").await;
    let waiting = [slow.receive().await.expect("an answer"), slow.receive().await.expect("an answer")];
    let mut quick = lab.node("token-2").await.synced().await;
    for round in 0..20 {
        lab.place("web.yaml", &pod("web", "node-2", &format!("account-{round}"), "app: web"));
        let before = quick.addresses.get(WEB).cloned();
        quick.until(|node| node.addresses.get(WEB) != before.as_ref()).await.expect("sent");
    }
    assert!(!slow.addresses.contains_key(WEB));
    for answer in &waiting {
        slow.acknowledge(answer).await;
    }
    slow.receive().await.expect("the newest");
    assert_eq!(slow.addresses.get(WEB), quick.addresses.get(WEB), "one answer, not twenty");
    lab.running.stop().await;
}

#[tokio::test]
async fn a_stream_needs_a_known_token_and_ends_when_the_token_does() {
    let lab = Lab::start(&[]).await;
    let refused = Node::connect(lab.channel().await, "nonsense", &[], &[]).await.err().expect("refused");
    let ended = || lab.told("streams_ended_total", "reason=\"PeerUntrusted\"");
    assert_eq!((ended(), lab.told("streams_open", "")), (1.0, 0.0));
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "not authorized"));
    let mut node = lab.node("token-1").await.synced().await;
    let mut other = lab.node("token-2").await.synced().await;
    lab.place("tokens.json", r#"{"token-2": "node-2"}"#);
    let status = node.receive().await.expect_err("the token is gone");
    assert_eq!(status.code(), Code::Unauthenticated);
    eventually("its end is counted", || (ended(), lab.told("streams_open", "")) == (2.0, 1.0)).await;
    assert_eq!(lab.told("streams_opened_total", ""), 2.0);
    lab.place("cart.yaml", &pod("cart", "node-1", "cart", "app: cart"));
    other.until(|node| node.addresses.contains_key(CART)).await.expect("not touched");
    lab.running.stop().await;
}

#[tokio::test]
async fn on_stop_streams_end_by_themselves_and_nothing_is_cut() {
    let lab = Lab::start(&[]).await;
    let mut node = lab.node("token-1").await.synced().await;
    let started = Instant::now();
    let (ended, ()) = tokio::join!(node.receive(), lab.running.stop());
    assert_eq!(ended.expect_err("stopping").code(), Code::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

/// The acceptance asks for at most a second from the rename of a policy to the reset of a connection; this is our part of it.
#[tokio::test]
async fn a_renamed_policy_reaches_a_node_in_a_fraction_of_a_second() {
    // A mesh of some size: 200 pods in 20 services.
    let pods: String = (0..200)
        .map(|n| pod(&format!("p{n}"), "node-1", &format!("a{}", n % 20), &format!("app: a{}", n % 20)))
        .collect();
    let lab = Lab::start(&[("pods.yaml", &pods)]).await;
    let mut node = lab.node("token-1").await.synced().await;
    assert_eq!(node.addresses.len(), 200);
    let mut took = Vec::new();
    for n in 0..20 {
        let name = format!("shop/deny-{n}");
        let text = deny(&format!("deny-{n}"), &format!("app: a{n}"));
        let started = Instant::now();
        lab.place("policy.yaml", &text);
        node.until(|node| node.policies.contains_key(&name)).await.expect("sent");
        took.push(started.elapsed());
    }
    took.sort();
    eprintln!(
        "rename of a policy to its arrival at a node, 200 pods, 20 tries: p50 {:?}, max {:?}",
        took[10], took[19]
    );
    assert!(took[19] < Duration::from_millis(800), "{took:?}");
    lab.running.stop().await;
}

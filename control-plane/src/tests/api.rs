//! The API server as the source, and as the one who says whose a token is.

use std::time::Instant;

use mesh_api::manifests::Kind;
use mesh_kube::fake::Fake;
use mesh_model::Identity;
use serde_json::{Value, json};
use tonic::Code;

use super::certificates::ask;
use super::{Lab, eventually};
use crate::metrics::labels::Cause;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-name";

fn pod(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": {"app": name}},
        "spec": {"nodeName": node, "serviceAccountName": name, "containers": []},
    })
}

fn review(account: &str, node: &str) -> Value {
    json!({
        "authenticated": true, "audiences": ["mesh-ca"],
        "user": {"username": format!("system:serviceaccount:{account}"), "extra": {NODE: [node], POD: ["p"]}},
    })
}

async fn fake() -> Fake {
    let fake = Fake::start("::1").await;
    fake.put(Kind::Namespace, json!({"metadata": {"name": "shop", "labels": {"culvert.io/mesh": "enabled"}}}));
    fake.put(Kind::Pod, pod("cart", "node-1"));
    fake.put(Kind::Pod, pod("web", "node-2"));
    fake.token("proxy-1", review("culvert-system:node-proxy", "node-1"));
    fake.token("proxy-2", review("culvert-system:node-proxy", "node-2"));
    fake.token("app", review("shop:cart", "node-1"));
    let mut elsewhere = review("culvert-system:node-proxy", "node-1");
    elsewhere["audiences"] = json!(["https://kubernetes.default.svc"]);
    fake.token("audience", elsewhere);
    let mut unbound = review("culvert-system:node-proxy", "node-1");
    unbound["user"]["extra"] = json!({});
    fake.token("unbound", unbound);
    fake.token("expired", json!({"authenticated": false, "error": "token has expired"}));
    fake
}

#[tokio::test]
async fn what_the_api_server_says_is_served_and_so_is_each_change() {
    let fake = fake().await;
    let lab = Lab::start_api(&fake).await;
    let mut node = lab.node("proxy-1").await.synced().await;
    assert_eq!(node.addresses.len(), 2, "{:?}", node.addresses);
    let begun = Instant::now();
    let deny = json!({"metadata": {"name": "deny", "namespace": "shop"}, "spec": {"action": "DENY", "rules": [{}]}});
    fake.put(Kind::AuthorizationPolicy, deny);
    node.until(|node| node.policies.keys().any(|name| name.contains("deny"))).await.expect("served");
    eprintln!("figure: policy put to policy received by a node: {:?}", begun.elapsed());
    // One that nobody can read is there all the same, and refuses.
    fake.put(
        Kind::AuthorizationPolicy,
        json!({"metadata": {"name": "typo", "namespace": "shop"}, "spec": {"acton": "ALLOW"}}),
    );
    node.until(|node| node.policies.keys().any(|name| name.contains("typo"))).await.expect("served");
    assert_eq!(lab.running.metrics.rejected.get(), 1);
    fake.cut();
    fake.delete(Kind::Pod, "shop", "web");
    fake.compact();
    node.until(|node| node.addresses.len() == 1).await.expect("served");
    lab.running.stop().await;
}

#[tokio::test]
async fn a_certificate_is_for_a_proxy_s_token_of_the_pod_s_own_node_and_for_no_other() {
    let fake = fake().await;
    let lab = Lab::start_api(&fake).await;
    let readiness = lab.running.readiness.clone();
    eventually("ready", || readiness.is_ready()).await;
    let (_, csr) = mesh_tls::csr(&Identity::parse(CART).expect("an identity")).expect("a request");
    ask(&lab, Some("proxy-1"), &csr, Some(CART)).await.expect("a certificate");
    let table = [
        ("another node's proxy", "proxy-2", Cause::NotOnNode),
        ("an application's own token", "app", Cause::OtherAccount),
        ("a token for the API server", "audience", Cause::NotTaken),
        ("a token that is bound to no pod", "unbound", Cause::Unbound),
        ("an expired token", "expired", Cause::NotTaken),
        ("a forged token", "forged", Cause::NotTaken),
    ];
    for (what, token, cause) in table {
        let counted = lab.running.metrics.refusals(cause);
        let before = counted.get();
        let refused = ask(&lab, Some(token), &csr, Some(CART)).await.expect_err(what);
        assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "not authorized"), "{what}");
        assert_eq!(counted.get(), before + 1, "{what}");
    }
    fake.token("late", review("culvert-system:node-proxy", "node-1"));
    fake.refuse("tokenreviews", 503, 1);
    let refused = ask(&lab, Some("late"), &csr, Some(CART)).await.expect_err("nobody can tell");
    assert_eq!((refused.code(), lab.running.metrics.refusals(Cause::NoReview).get()), (Code::Unavailable, 1));
    ask(&lab, Some("late"), &csr, Some(CART)).await.expect("a certificate");
    assert_eq!(lab.running.metrics.issued.get(), 2);
    lab.running.stop().await;
}

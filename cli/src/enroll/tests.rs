//! The verb against an API server that keeps what it is told.

use std::time::Duration;

use mesh_api::manifests::Kind;
use mesh_kube::fake::Fake;

use super::*;
use crate::args::Common;

async fn world(fake: &Fake) -> (Mesh, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("config");
    std::fs::write(&file, fake.kubeconfig()).expect("written");
    let common =
        Common { kubeconfig: Some(file), context: None, namespace: None, timeout: None, output: Output::Table };
    fake.put(Kind::Namespace, json!({"metadata": {"name": "shop"}}));
    fake.put(
        Kind::Pod,
        json!({"metadata": {"namespace": "shop", "name": "cart"}, "spec": {"nodeName": "n1", "containers": []}}),
    );
    fake.put(Kind::Pod, json!({"metadata": {"namespace": "shop", "name": "host"}, "spec": {"nodeName": "n1", "hostNetwork": true, "containers": []}}));
    fake.put(
        Kind::Pod,
        json!({"metadata": {"namespace": "other", "name": "not-meant"}, "spec": {"nodeName": "n1", "containers": []}}),
    );
    (Mesh::connect(&common, Duration::from_secs(10)).await.expect("connected"), dir)
}

fn args(target: &str, dry_run: bool, wait: bool) -> Enroll {
    Enroll { target: target.to_owned(), dry_run, wait }
}

fn label(fake: &Fake, kind: Kind, namespace: &str, name: &str) -> Value {
    fake.object(kind, namespace, name).expect("an object")["metadata"]["labels"][MESH_LABEL].clone()
}

#[tokio::test]
async fn a_dry_run_says_the_same_and_changes_nothing() {
    for loopback in ["127.0.0.1", "::1"] {
        let fake = Fake::start(loopback).await;
        let (mesh, _dir) = world(&fake).await;
        let said = run(&mesh, Output::Json, &args("shop", true, false), true).await.expect("said");
        assert!(label(&fake, Kind::Namespace, "", "shop").is_null());
        let value: Value = serde_json::from_str(&said.text).expect("JSON");
        let outcome = |at: usize| (value["pods"][at]["pod"].clone(), value["pods"][at]["outcome"].clone());
        assert_eq!(
            [outcome(0), outcome(1)],
            [(json!("shop/cart"), json!("joins")), (json!("shop/host"), json!("stays out"))]
        );
        assert_eq!(value["pods"].as_array().map(Vec::len), Some(2));
        assert!(said.silent[0].contains("no pod-watcher"), "{said:?}");
        run(&mesh, Output::Table, &args("shop", false, false), true).await.expect("done");
        assert_eq!(label(&fake, Kind::Namespace, "", "shop"), "enabled");
        run(&mesh, Output::Table, &args("shop", false, false), false).await.expect("undone");
        assert!(label(&fake, Kind::Namespace, "", "shop").is_null());
    }
}

#[tokio::test]
async fn a_pod_that_can_never_be_in_the_mesh_gets_no_label_that_says_it_is() {
    let fake = Fake::start("::1").await;
    let (mesh, _dir) = world(&fake).await;
    let failure = run(&mesh, Output::Table, &args("shop/host", false, false), true).await.expect_err("refused");
    assert!(failure.status() == 1 && failure.what().contains("node's network"), "{failure}");
    assert!(label(&fake, Kind::Pod, "shop", "host").is_null());
    let failure = run(&mesh, Output::Table, &args("shop/nobody", false, false), true).await.expect_err("refused");
    assert!(failure.what().contains("no pod shop/nobody"), "{failure}");
    run(&mesh, Output::Table, &args("shop/cart", false, false), false).await.expect("done");
    assert_eq!(label(&fake, Kind::Pod, "shop", "cart"), "disabled");
}

#[tokio::test]
async fn waiting_ends_when_the_node_has_captured_the_pod_or_with_the_node_s_reason() {
    let fake = Fake::start("::1").await;
    let (mut mesh, _dir) = world(&fake).await;
    fake.put_at(
        "/apis/apps/v1/daemonsets",
        json!({"metadata": {"namespace": "culvert-system", "name": "culvert-pod-watcher"}}),
    );
    let pod = |status: &str| {
        let condition = json!([{"type": "culvert.io/Captured", "status": status, "reason": "PortTaken", "message": "15008 is taken"}]);
        json!({"metadata": {"namespace": "shop", "name": "cart"}, "spec": {"nodeName": "n1", "containers": []}, "status": {"conditions": condition}})
    };
    fake.put(Kind::Pod, pod("True"));
    run(&mesh, Output::Table, &args("shop", false, true), true).await.expect("captured");
    fake.put(Kind::Namespace, json!({"metadata": {"name": "shop"}}));
    fake.put(Kind::Pod, pod("False"));
    mesh.shorten(Duration::from_secs(1));
    let failure = run(&mesh, Output::Table, &args("shop", false, true), true).await.expect_err("not captured");
    assert!(failure.what().contains("pod shop/cart is not-captured: PortTaken: 15008 is taken"), "{failure}");
}

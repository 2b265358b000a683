//! What a token that was stolen from a node's pod-watcher is good for: that node's taint and its pods' one condition, and nothing else.

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use cluster::mesh::NAMESPACE;
use serde_json::{Value, json};

use crate::shop::{meshed, start};

/// A token of the pod-watcher of node 1, as kubelet gives it one: bound to its pod, and so to its node.
fn token(cluster: &Cluster) -> Result<String> {
    let pods = cluster.get(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=pod-watcher"])?;
    let pods = pods["items"].as_array().context("a list")?;
    let pod = pods.iter().find(|pod| pod["spec"]["nodeName"] == "node-1").context("a pod-watcher on node 1")?;
    let name = pod["metadata"]["name"].as_str().context("text")?;
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", name];
    Ok(cluster.kubectl(&[&["create", "token", "pod-watcher", "-n", NAMESPACE], &bound[..]].concat())?.trim().to_owned())
}

/// What the API server says to a patch by this token: code and message.
fn patch(cluster: &Cluster, token: &str, path: &str, body: &Value) -> Result<(u64, String)> {
    let server = cluster.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let ca = cluster.lab().dir().join("pki/ca.crt").display().to_string();
    let (bearer, url) = (format!("authorization: Bearer {token}"), format!("{server}{path}"));
    let argv = ["curl", "--silent", "--max-time", "20", "--cacert", &ca, "--header", &bearer, "--request", "PATCH"];
    let kind = ["--header", "content-type: application/strategic-merge-patch+json", "--data", &body.to_string(), &url];
    let output = cluster.lab().fabric().exec(&[&argv[..], &kind[..]].concat())?.ok()?;
    let answer: Value = serde_json::from_str(&output).with_context(|| output.clone())?;
    let message = answer["message"].as_str().unwrap_or_default().to_owned();
    Ok((if answer["kind"] == "Status" { answer["code"].as_u64().unwrap_or(0) } else { 200 }, message))
}

#[test]
fn a_token_of_one_nodes_pod_watcher_changes_nothing_of_another_node_and_no_label() -> Result<()> {
    let (cluster, _) = meshed("kube-rights", true)?;
    for (name, node) in [("here", 1), ("there", 2)] {
        start(&cluster, "shop", name, node)?;
    }
    let token = token(&cluster)?;
    let condition =
        |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "False", "reason": "Test"}]}});
    let taint = |key: &str| json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let annotation = json!({"metadata": {"annotations": {"a": "b"}}});
    // An owner that does not exist: the garbage collector would delete the node.
    let owner =
        json!({"apiVersion": "v1", "kind": "Node", "name": "gone", "uid": "00000000-0000-0000-0000-000000000000"});
    let owned = json!({"metadata": {"ownerReferences": [owner]}});
    let (here, there) = ("/api/v1/namespaces/shop/pods/here/status", "/api/v1/namespaces/shop/pods/there/status");
    let (one, two) = ("/api/v1/nodes/node-1", "/api/v1/nodes/node-2");
    let ours = "culvert.io/Captured";
    // Its own work is let through, or the rest would prove nothing.
    for (path, body) in [(here, condition(ours)), (one, taint("culvert.io/not-ready"))] {
        let (code, message) = patch(&cluster, &token, path, &body)?;
        ensure!(code == 200, "{path} {body}: {code} {message}");
    }
    let refused = [
        (there, condition(ours), "that node alone"),
        (here, condition("Ready"), "culvert.io/Captured alone"),
        (here, json!({"status": {"podIP": "198.18.9.9"}}), "culvert.io/Captured alone"),
        (here, json!({"status": {"message": "evicted", "reason": "Evicted"}}), "culvert.io/Captured alone"),
        (here, json!({"status": {"startTime": "2020-01-01T00:00:00Z"}}), "culvert.io/Captured alone"),
        (here, label.clone(), "labels"),
        (here, annotation.clone(), "annotations"),
        (one, label, "labels"),
        (one, annotation, "annotations"),
        (one, owned, "owners"),
        (one, json!({"spec": {"unschedulable": true}}), "culvert.io/not-ready alone"),
        (one, taint("another"), "culvert.io/not-ready alone"),
        (two, taint("culvert.io/not-ready"), "that Node alone"),
    ];
    for (path, body, why) in refused {
        let (code, message) = patch(&cluster, &token, path, &body)?;
        ensure!(matches!(code, 403 | 422) && message.contains(why), "{path} {body}: {code} {message}");
    }
    // Rights that it does not have at all.
    let (code, message) =
        patch(&cluster, &token, "/api/v1/namespaces/shop/pods/here", &json!({"metadata": {"labels": {"a": "b"}}}))?;
    ensure!(code == 403, "{code} {message}");
    Ok(())
}

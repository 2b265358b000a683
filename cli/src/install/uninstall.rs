//! `culvert uninstall`: pod-watcher first. While it ends it takes the plugin and its entry out of the CNI chain, for which it needs its account, the proxy and the API server; so each step is waited for before the next. Pods leave the mesh before
//! that: one that is still captured when its proxy has gone reaches nobody and is reached by nobody.

use std::path::PathBuf;

use mesh_api::manifests::{MESH_LABEL, Node, Pod, is_ready, is_terminal, node_name, pod_name};
use mesh_kube::Method;
use serde_json::{Value, json};

use super::manifest::{Object, Stage, backwards, read};
use super::resource::{Resources, path};
use super::{LOOK, is_ours};
use crate::ask::is_of;
use crate::failure::Failure;
use crate::mesh::{Mesh, typed};
use crate::names::{CAPTURED, Component, NOT_READY};
use crate::print::{self, Answer};

/// How to uninstall.
#[derive(Clone, Copy)]
pub struct How {
    /// Definitions too, if they are Culvert's.
    pub crds: bool,
    /// What becomes of pods that are captured.
    pub captured: Captured,
    /// Only say.
    pub dry_run: bool,
}

/// What becomes of pods that are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Captured {
    /// With one of them nothing is done.
    Refuse,
    /// They are taken out of the mesh first: every label that asks for it is taken away.
    Unenroll,
    /// They are left as they are, for when their nodes cannot free them any more.
    Abandon,
}

/// Takes away, waits, and says what is left that it cannot take away.
pub async fn run(mesh: &Mesh, files: &[PathBuf], how: How) -> Result<Answer, Failure> {
    let objects = backwards(read(files)?);
    let mut left = without_watcher(mesh).await?;
    // Who could free them has gone in an earlier try: there is nothing to wait for.
    let is_watched = mesh.components().await?.contains_key(&Component::PodWatcher);
    if is_watched && !how.dry_run {
        free(mesh, how.captured).await?;
    }
    let mut resources = Resources::default();
    let mut deleted = 0;
    for object in &objects {
        let Some(resource) = resources.of(mesh, object).await? else { continue };
        let at = path(object, &resource);
        let Some(there) = mesh.get(&at).await? else { continue };
        if object.stage() == Stage::Definition && (!how.crds || !is_ours(&there)) {
            let why =
                if how.crds { "it is not Culvert's" } else { "policies are made by it; --crds deletes it and them" };
            print::tell(format_args!("{object}: stays: {why}"));
            continue;
        }
        deleted += 1;
        if how.dry_run {
            print::tell(format_args!("{object}: would be deleted"));
            continue;
        }
        print::tell(format_args!("{object}: being deleted"));
        let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"});
        match mesh.api.write(Method::Delete, &at, &body).await {
            Ok(_) => {}
            Err(error) if error.code() == Some(404) => {}
            Err(error) => return Err(Failure::of(format!("delete {object}"), &error)),
        }
        if object.stage() != Stage::Rest {
            gone(mesh, object, &at).await?;
        }
    }
    if how.dry_run {
        return Ok(Answer::well(format!("nothing was changed: {deleted} objects would be deleted\n")));
    }
    left.extend(left_behind(mesh).await?);
    let mut text = format!("{deleted} objects deleted\n");
    for one in &left {
        text.push_str(&format!("left behind: {one}\n"));
    }
    Ok(Answer { text, well: left.is_empty(), silent: Vec::new() })
}

/// Until it, and the pods that it made, have gone: deleted in the foreground, it goes after them.
async fn gone(mesh: &Mesh, object: &Object, at: &str) -> Result<(), Failure> {
    while let Some(there) = mesh.get(at).await? {
        if mesh.left() < LOOK {
            let held = there.pointer("/metadata/finalizers").cloned().unwrap_or_default();
            return Err(Failure::refused(
                format!("{object} is not gone in time; it is held by {held}"),
                "see its pods (kubectl -n culvert-system get pods) and repeat: what was done is not done again",
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Nodes that the chain entry stays on, since nobody runs there that could take it out.
async fn without_watcher(mesh: &Mesh) -> Result<Vec<String>, Failure> {
    if mesh.components().await?.is_empty() {
        return Ok(Vec::new());
    }
    let own = mesh.own_pods().await?;
    let mut without = Vec::new();
    for pod in own.iter().filter(|pod| is_of(pod, Component::PodWatcher) && !is_ready(pod) && !is_terminal(pod)) {
        if let Some(node) = node_name(pod) {
            without.push(format!(
                "node {node}: its pod-watcher was not ready and may not have cleaned up (docs/uninstall.md, by hand)"
            ));
        }
    }
    Ok(without)
}

/// No pod is captured after this, unless they are to be abandoned.
async fn free(mesh: &Mesh, what: Captured) -> Result<(), Failure> {
    let mut pods = captured(&mesh.pods(None, "").await?);
    match what {
        Captured::Abandon => return Ok(()),
        Captured::Unenroll => take_labels(mesh).await?,
        Captured::Refuse if pods.is_empty() => {}
        Captured::Refuse => {
            return Err(Failure::refused(
                format!("{} pods are in the mesh and would reach nobody without it: {}", pods.len(), some(&pods)),
                "culvert unenroll NAMESPACE --wait, for each; or repeat with --unenroll, which takes every label away and waits",
            ));
        }
    }
    while !pods.is_empty() {
        if mesh.left() < LOOK {
            return Err(Failure::refused(
                format!("{} pods are still captured, and nothing was deleted: {}", pods.len(), some(&pods)),
                "see culvert logs pod-watcher on their nodes; where one cannot free them, repeat with --force and restart them",
            ));
        }
        tokio::time::sleep(LOOK).await;
        pods = captured(&mesh.pods(None, "").await?);
    }
    Ok(())
}

/// Every label that asks for the mesh is taken away, of namespaces first: their pods are most.
async fn take_labels(mesh: &Mesh) -> Result<(), Failure> {
    let query = format!("labelSelector={}%3Denabled", mesh_kube::escape(MESH_LABEL));
    for collection in ["/api/v1/namespaces", "/api/v1/pods"] {
        for object in mesh.list(collection, &query).await? {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(mesh_kube::escape);
            // The selector is the server's work; what is written is checked here.
            let is_asking = object["metadata"]["labels"][MESH_LABEL] == "enabled";
            let (Some(name), true) = (text("/metadata/name"), is_asking) else { continue };
            let path = match text("/metadata/namespace") {
                Some(namespace) => format!("/api/v1/namespaces/{namespace}/pods/{name}"),
                None => format!("/api/v1/namespaces/{name}"),
            };
            print::tell(format_args!("{path}: without the label {MESH_LABEL}"));
            let body = json!({"metadata": {"labels": {MESH_LABEL: null}}});
            match mesh.api.write(Method::Merge, &path, &body).await {
                Ok(_) => {}
                Err(error) if error.code() == Some(404) => {}
                Err(error) => return Err(Failure::of(format!("label {path}"), &error)),
            }
        }
    }
    Ok(())
}

/// The names of pods whose rules are in force, as their nodes saw it.
fn captured(pods: &[Pod]) -> Vec<String> {
    let holds = |pod: &&Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        !is_terminal(pod) && conditions.into_iter().any(|one| one.type_ == CAPTURED && one.status == "True")
    };
    pods.iter().filter(holds).map(|pod| pod_name(pod).to_string()).collect()
}

fn some(pods: &[String]) -> String {
    let more = if pods.len() > 5 { ", …" } else { "" };
    format!("{}{more}", pods.iter().take(5).cloned().collect::<Vec<_>>().join(", "))
}

/// What pod-watcher should have taken away.
async fn left_behind(mesh: &Mesh) -> Result<Vec<String>, Failure> {
    let pods = captured(&mesh.pods(None, "").await?);
    let of_pod = |pod: &String| format!("pod {pod}: its condition {CAPTURED} still holds: restart it");
    let mut left: Vec<String> = pods.iter().map(of_pod).collect();
    let nodes: Vec<Node> = typed(mesh.list("/api/v1/nodes", "").await?);
    for node in &nodes {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        for taint in taints.filter(|taint| taint.key == NOT_READY) {
            left.push(format!("node {name}: taint {}: kubectl taint node {name} {}-", taint.key, taint.key));
        }
    }
    Ok(left)
}

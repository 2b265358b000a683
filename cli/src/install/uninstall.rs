//! `culvert uninstall`: pod-watcher first. While it ends it takes the entry out of the CNI chain and the rules out of the pods, for
//! which it needs its account, the proxy and the API server; so each step is waited for before the next.

use std::path::PathBuf;

use mesh_api::manifests::{Node, is_ready, is_terminal, node_name, pod_name};
use mesh_kube::Method;
use serde_json::json;

use super::manifest::{Object, Stage, backwards, read};
use super::resource::{Resources, path};
use super::{LOOK, is_ours};
use crate::ask::is_of;
use crate::failure::Failure;
use crate::mesh::{Mesh, typed};
use crate::names::{CAPTURED, Component, NOT_READY};
use crate::print::Answer;

/// How to uninstall.
#[derive(Clone, Copy)]
pub struct How {
    /// Definitions too, if they are Culvert's.
    pub crds: bool,
    /// Only say.
    pub dry_run: bool,
}

/// Takes away, waits, and says what is left that it cannot take away.
pub async fn run(mesh: &Mesh, files: &[PathBuf], how: How) -> Result<Answer, Failure> {
    let objects = backwards(read(files)?);
    let mut left = without_watcher(mesh).await?;
    let mut resources = Resources::default();
    let mut deleted = 0;
    for object in &objects {
        let Some(resource) = resources.of(mesh, object).await? else { continue };
        let at = path(object, &resource);
        let Some(there) = mesh.get(&at).await? else { continue };
        if object.stage() == Stage::Definition && (!how.crds || !is_ours(&there)) {
            let why =
                if how.crds { "it is not Culvert's" } else { "policies are made by it; --crds deletes it and them" };
            eprintln!("{object}: stays: {why}");
            continue;
        }
        deleted += 1;
        if how.dry_run {
            eprintln!("{object}: would be deleted");
            continue;
        }
        eprintln!("{object}: being deleted");
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

/// What pod-watcher should have taken away.
async fn left_behind(mesh: &Mesh) -> Result<Vec<String>, Failure> {
    let mut left = Vec::new();
    for pod in mesh.pods(None, "").await?.iter().filter(|pod| !is_terminal(pod)) {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        if conditions.clone().any(|one| one.type_ == CAPTURED && one.status == "True") {
            left.push(format!("pod {}: its condition {CAPTURED} still holds: restart it", pod_name(pod)));
        }
    }
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

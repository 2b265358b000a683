//! `culvert status`: the components and the nodes.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::manifests::{Pod, is_ready, is_terminal, node_name};
use mesh_daemon::table::{Column, column};
use serde_json::{Value, json};

use crate::args::Output;
use crate::ask::{self, Proxy, is_of};
use crate::failure::Failure;
use crate::mesh::{Mesh, typed};
use crate::names::{CAPTURED, Component, NAMESPACE};
use crate::print::{self, Answer};
use crate::rollout::{Rollout, holdup};

const COMPONENTS: [Column; 6] = [
    column("COMPONENT", "component"),
    column("DESIRED", "desired"),
    column("UPDATED", "updated"),
    column("READY", "ready"),
    column("VERSIONS", "versions"),
    column("WAITS FOR", "holdups"),
];
const NODES: [Column; 5] = [
    column("NODE", "node"),
    column("POD-WATCHER", "pod_watcher"),
    column("NODE-PROXY", "node_proxy"),
    column("CAPTURED PODS", "captured"),
    column("CONFIGURATION", "origin"),
];

/// Asks and prints.
pub async fn run(mesh: &Mesh, output: Output, brief: bool) -> Result<Answer, Failure> {
    let objects = mesh.components().await?;
    if objects.is_empty() {
        return Err(nothing());
    }
    let own = mesh.own_pods().await?;
    let (proxies, silent) = match brief {
        true => (BTreeMap::new(), Vec::new()),
        false => ask::proxies(mesh, ask::serving(&own, Component::NodeProxy), true).await,
    };
    let nodes: Vec<mesh_api::manifests::Node> = typed(mesh.list("/api/v1/nodes", "").await?);
    let nodes: Vec<String> = nodes.into_iter().filter_map(|node| node.metadata.name).collect();
    let pods = mesh.pods(None, "").await?;
    let components = components(&objects, &own);
    let well = components.iter().all(|row| row["done"] == true);
    let nodes = rows_of_nodes(&nodes, &own, &pods, &proxies);
    let text = match output {
        Output::Json => print::json(&json!({ "components": components, "nodes": nodes })),
        Output::Table => {
            format!("{}\n{}", print::rows(output, &COMPONENTS, &components), print::rows(output, &NODES, &nodes))
        }
    };
    Ok(Answer { text, well, silent })
}

/// There is no mesh.
pub fn nothing() -> Failure {
    Failure::refused(
        format!("nothing of Culvert is in namespace {NAMESPACE}"),
        "install it: culvert check --pre, then culvert install",
    )
}

/// A row for each component that there should be.
pub fn components(objects: &BTreeMap<Component, Value>, own: &[Pod]) -> Vec<Value> {
    let row = |component: Component| {
        let pods: Vec<&Pod> = own.iter().filter(|pod| is_of(pod, component)).collect();
        let versions: BTreeSet<String> = pods.iter().flat_map(|pod| versions(pod)).collect();
        let Some(object) = objects.get(&component) else {
            return json!({ "component": component.label(), "done": false, "holdups": ["it is not installed"] });
        };
        let rollout = Rollout::of(object);
        let holdups: Vec<String> = match rollout.is_done() {
            true => Vec::new(),
            false => pods.iter().filter_map(|pod| holdup(pod)).collect(),
        };
        json!({
            "component": component.label(),
            "desired": rollout.desired,
            "updated": rollout.updated,
            "ready": rollout.ready,
            "done": rollout.is_done(),
            "versions": versions,
            "holdups": holdups,
        })
    };
    Component::ALL.into_iter().map(row).collect()
}

/// The versions of a pod's images: their tags, or the whole reference where there is none.
fn versions(pod: &Pod) -> BTreeSet<String> {
    let images = pod.spec.iter().flat_map(|spec| &spec.containers).filter_map(|container| container.image.as_deref());
    images.map(|image| version(image).to_owned()).collect()
}

/// `registry:5000/name:tag@digest` has the version `tag`.
fn version(image: &str) -> &str {
    let named = image.split_once('@').map_or(image, |(named, _)| named);
    match named.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => image,
    }
}

fn rows_of_nodes(nodes: &[String], own: &[Pod], pods: &[Pod], proxies: &BTreeMap<String, Proxy>) -> Vec<Value> {
    let state = |component, node: &str| {
        let here = own.iter().filter(|pod| is_of(pod, component) && node_name(pod) == Some(node) && !is_terminal(pod));
        let ready: Vec<bool> = here.map(is_ready).collect();
        match (ready.is_empty(), ready.contains(&true)) {
            (true, _) => "absent",
            (false, true) => "ready",
            (false, false) => "not ready",
        }
    };
    let captured = |node: &str| {
        let conditions =
            |pod: &Pod| pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let is = |pod: &&Pod| conditions(pod).iter().any(|one| one.type_ == CAPTURED && one.status == "True");
        pods.iter().filter(|pod| node_name(pod) == Some(node) && !is_terminal(pod)).filter(is).count()
    };
    let row = |node: &String| {
        json!({
            "node": node,
            "pod_watcher": state(Component::PodWatcher, node),
            "node_proxy": state(Component::NodeProxy, node),
            "captured": captured(node),
            "origin": proxies.get(node).map(|proxy| proxy.config["origin"].clone()),
        })
    };
    nodes.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_tag_of_an_image() {
        assert_eq!(version("localhost/culvert/node-proxy:0.1.0"), "0.1.0");
        assert_eq!(version("registry:5000/culvert/node-proxy:0.1.0@sha256:ab"), "0.1.0");
        assert_eq!(version("registry:5000/culvert/node-proxy"), "registry:5000/culvert/node-proxy");
    }

    #[test]
    fn a_component_that_is_missing_or_held_up_is_not_done_and_says_why() {
        let labels = json!({crate::names::COMPONENT: "pod-watcher"});
        let pod = json!({
            "metadata": {"name": "w1", "labels": labels},
            "spec": {"nodeName": "n1", "containers": [{"name": "pod-watcher", "image": "x/pod-watcher:0.1.0"}]},
            "status": {"conditions": [{"type": "Ready", "status": "False", "message": "containers with unready status"}]},
        });
        let own: Vec<Pod> = vec![serde_json::from_value(pod).expect("a pod")];
        let set = json!({"kind": "DaemonSet", "metadata": {"generation": 1}, "status": {"observedGeneration": 1, "desiredNumberScheduled": 1}});
        let rows = components(&[(Component::PodWatcher, set)].into(), &own);
        let of = |name: &str| rows.iter().find(|row| row["component"] == name).expect("a row");
        assert_eq!(of("pod-watcher")["holdups"], json!(["pod w1: containers with unready status"]));
        assert_eq!(
            (of("pod-watcher")["done"].as_bool(), of("pod-watcher")["versions"][0].as_str()),
            (Some(false), Some("0.1.0"))
        );
        assert_eq!(of("control-plane")["holdups"], json!(["it is not installed"]));
        let nodes = rows_of_nodes(&["n1".to_owned(), "n2".to_owned()], &own, &[], &BTreeMap::new());
        assert_eq!(
            (nodes[0]["pod_watcher"].as_str(), nodes[1]["pod_watcher"].as_str()),
            (Some("not ready"), Some("absent"))
        );
    }
}

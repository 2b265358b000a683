//! What is kept of an object before it is typed: what some part of the mesh reads, and nothing else.
//!
//! A pod of the API server is some ten kilobytes, most of them field managers, volumes and environment. What nobody reads costs memory,
//! and may be written in a form that the typed object does not take (amounts as numbers): neither may be the reason to refuse a pod.

use serde_json::{Map, Value};

use super::kind::Kind;
use super::pod::MIRROR;

/// Of the metadata of every kind.
const METADATA: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "labels",
    "annotations",
    "ownerReferences",
];
/// Domains whose annotations say something to the mesh: ours, and those by which other meshes mark what they have.
const DOMAINS: &[&str] = &["culvert.io", "istio.io", "kmesh.net", "linkerd.io"];
const POD_SPEC: &[&str] = &[
    "nodeName",
    "hostNetwork",
    "runtimeClassName",
    "serviceAccountName",
    "serviceAccount",
    "containers",
    "initContainers",
];
const CONTAINER: &[&str] =
    &["name", "image", "restartPolicy", "ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"];
const POD_STATUS: &[&str] = &["phase", "podIP", "podIPs", "conditions"];

/// The object without what nobody reads. What is not of the form expected is left for the typed object to complain about.
pub(super) fn trimmed(kind: Kind, mut value: Value) -> Value {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        keep(metadata, METADATA);
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations
                .retain(|key, _| key == MIRROR || key.split_once('/').is_some_and(|(domain, _)| is_ours(domain)));
        }
    }
    let Some(object) = value.as_object_mut() else { return value };
    match kind {
        // Where it is, or what it is labelled with, is all that is read; a node's status is large and full of quantities.
        Kind::Namespace | Kind::Node => keep(object, &["metadata"]),
        Kind::Pod => pod(object),
        Kind::Service => drop(object.remove("status")),
        _ => {}
    }
    value
}

fn pod(pod: &mut Map<String, Value>) {
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        keep(spec, POD_SPEC);
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(container) = container.as_object_mut() {
                    keep(container, CONTAINER);
                }
            }
        }
    }
    if let Some(status) = pod.get_mut("status").and_then(Value::as_object_mut) {
        keep(status, POD_STATUS);
        if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
            // Left in if it has no type, which is an error.
            conditions.retain(|one| one.get("type").and_then(Value::as_str).is_none_or(|kind| kind == "Ready"));
        }
    }
}

fn is_ours(domain: &str) -> bool {
    DOMAINS.iter().any(|ours| domain.strip_suffix(ours).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

fn keep(object: &mut Map<String, Value>, names: &[&str]) {
    object.retain(|name, _| names.contains(&name.as_str()));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_keeps_what_the_mesh_reads_and_nothing_else() {
        let whole = json!({
            "metadata": {
                "name": "cart", "labels": {"app": "cart"}, "managedFields": [{"manager": "kubelet"}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "sidecar.istio.io/status": "{}",
                    "culvert.io/x": "y", "notculvert.io/x": "y",
                    "kubernetes.io/config.mirror": "h", "kubernetes.io/config.seen": "2026-01-01T00:00:00Z"},
            },
            "spec": {"nodeName": "n1", "volumes": [1], "containers": [
                {"name": "c", "env": [{"name": "SECRET", "value": "s"}], "resources": {"limits": {"cpu": 1}}, "ports": []}]},
            "status": {"phase": "Running", "containerStatuses": [{}], "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]},
        });
        let kept = json!({
            "metadata": {"name": "cart", "labels": {"app": "cart"},
                "annotations": {"sidecar.istio.io/status": "{}", "culvert.io/x": "y", "kubernetes.io/config.mirror": "h"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": []}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        assert_eq!(trimmed(Kind::Pod, whole), kept);
    }

    #[test]
    fn what_is_not_of_the_expected_form_is_left_for_the_typed_object_to_refuse() {
        for strange in [json!(null), json!([]), json!({"metadata": 1, "spec": [], "status": "x"})] {
            assert_eq!(trimmed(Kind::Pod, strange.clone()), strange);
        }
    }
}

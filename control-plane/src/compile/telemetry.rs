//! What a workload is called in metrics and logs, from ordinary Kubernetes facts, in the order in which Istio looks at them. It
//! decides nothing: a pod may call itself what it likes, within what its namespace's owner lets it.

use mesh_api::manifests::{Objects, Pod};
use mesh_model::Telemetry;

/// Labels that name the application, the first one there counts.
const NAMES: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
/// Labels that name its version.
const REVISIONS: [&str; 3] = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
/// Well-known labels of nodes, which Kubernetes since 1.35 copies to pods.
pub(super) const REGION: &str = "topology.kubernetes.io/region";
/// See [`REGION`].
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
/// Istio's label of nodes.
pub(super) const SUBZONE: &str = "topology.istio.io/subzone";
/// Istio's label of pods: what made them.
const WORKLOAD: &str = "service.istio.io/workload-name";

/// The names of one pod.
pub(super) fn of(pod: &Pod, node: &str, objects: &Objects) -> Telemetry {
    let workload_name = label(pod, WORKLOAD).map_or_else(|| made_by(pod), str::to_owned);
    let first = |labels: &[&str]| labels.iter().find_map(|name| label(pod, name)).map(str::to_owned);
    let place = |name: &str| of_node(node, name, objects).or_else(|| label(pod, name)).unwrap_or_default().to_owned();
    Telemetry {
        canonical_name: first(&NAMES).unwrap_or_else(|| workload_name.clone()),
        canonical_revision: first(&REVISIONS).unwrap_or_else(|| "latest".to_owned()),
        region: place(REGION),
        zone: place(ZONE),
        subzone: place(SUBZONE),
        workload_name,
    }
}

/// What a label of a node says.
pub(super) fn of_node<'o>(node: &str, name: &str, objects: &'o Objects) -> Option<&'o str> {
    objects.nodes.get(node)?.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn label<'p>(pod: &'p Pod, name: &str) -> Option<&'p str> {
    pod.metadata.labels.as_ref()?.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// The name of what made the pod: for a ReplicaSet that of its Deployment, for a Job that of its CronJob; the pod's own without one.
fn made_by(pod: &Pod) -> String {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let owners = pod.metadata.owner_references.iter().flatten();
    let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) else { return name };
    let stem = match owner.kind.as_str() {
        // The Deployment controller names a ReplicaSet by its own name and the hash that it also puts on the pods.
        "ReplicaSet" => {
            label(pod, "pod-template-hash").and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'))
        }
        // The CronJob controller names a Job by its own name and the scheduled time: minutes since 1970, 8 digits until 2160.
        "Job" => owner
            .name
            .rsplit_once('-')
            .and_then(|(stem, time)| (time.len() >= 8 && time.bytes().all(|b| b.is_ascii_digit())).then_some(stem)),
        _ => None,
    };
    stem.filter(|stem| !stem.is_empty()).unwrap_or(&owner.name).to_owned()
}

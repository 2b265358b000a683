//! Which pods a NetworkPolicy selects. Only that: enforcing it is the CNI's work, and the proxy keeps out of its way by sending the
//! traffic of selected pods over their veth instead of the short way between two sockets.

use mesh_api::manifests::{Objects, Rejected};
use mesh_model::NetworkPolicy;

use super::selector::selects;
use super::workloads::Pods;

/// Marks what is selected, for ingress or egress. What cannot be told counts as selected.
pub(super) fn mark(objects: &Objects, rejected: &[Rejected], pods: &mut Pods) {
    for pod in pods.values_mut() {
        let namespace = &pod.workload.pod.namespace;
        let from = (namespace.clone(), String::new());
        let of_namespace = objects.network_policies.range(from..).take_while(|((of, _), _)| of == namespace);
        let by_policy = of_namespace.map(|(_, policy)| policy).any(|policy| {
            let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
            // No selector selects all.
            selector.is_none_or(|selector| selects(selector, &pod.labels).unwrap_or(true))
        });
        let by_doubt = rejected.iter().any(|document| may_be_policy_of(document, namespace));
        pod.workload.network_policy =
            if by_policy || by_doubt { NetworkPolicy::Selected } else { NetworkPolicy::Unselected };
    }
}

/// Whether the document that could not be read may be a NetworkPolicy of the namespace.
fn may_be_policy_of(document: &Rejected, namespace: &str) -> bool {
    match document.kind.as_str() {
        "" => true,
        "NetworkPolicy" => document.name.split_once('/').is_none_or(|(of, _)| of == namespace),
        _ => false,
    }
}

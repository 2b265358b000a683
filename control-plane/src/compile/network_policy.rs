//! Which pods a NetworkPolicy selects. Only that: enforcing it is the CNI's work, and the proxy keeps out of its way by sending the
//! traffic of selected pods over their veth instead of the short way between two sockets.

use std::collections::BTreeSet;

use mesh_api::manifests::Rejected;
use mesh_model::NetworkPolicy;

use super::place::Place;
use super::selector::selects;
use super::workloads::Pods;

/// Marks what is selected, for ingress or egress. What cannot be told counts as selected.
pub(super) fn mark(place: &Place<'_>, doubts: &Doubts, pods: &mut Pods) {
    let by_doubt = doubts.holds_of(place.namespace);
    for pod in pods.values_mut() {
        let by_policy = place.own(&place.objects.network_policies).any(|(_, policy)| {
            let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
            // No selector selects all.
            selector.is_none_or(|selector| selects(selector, &pod.labels).unwrap_or(true))
        });
        pod.workload.network_policy =
            if by_policy || by_doubt { NetworkPolicy::Selected } else { NetworkPolicy::Unselected };
    }
}

/// Documents that could not be read and may each be a NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Doubts {
    /// Of any namespace.
    anywhere: bool,
    /// Of these.
    namespaces: BTreeSet<String>,
}

impl Doubts {
    pub(super) fn of(rejected: &[Rejected]) -> Self {
        let mut doubts = Self::default();
        for document in rejected {
            match (document.kind.as_str(), document.name.split_once('/')) {
                ("NetworkPolicy", Some((namespace, _))) => drop(doubts.namespaces.insert(namespace.to_owned())),
                ("" | "NetworkPolicy", _) => doubts.anywhere = true,
                _ => {}
            }
        }
        doubts
    }

    fn holds_of(&self, namespace: &str) -> bool {
        self.anywhere || self.namespaces.contains(namespace)
    }
}

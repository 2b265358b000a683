//! What travels about pods and nodes on the links.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One enrolled pod, from the CNI call and the pod's own record. Local facts come first: none of this waits for
/// `status.podIP` or for the control plane.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFacts {
    /// Kubernetes uid.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account (empty in the record means `default`; resolved before it is sent).
    pub service_account: String,
    /// Addresses that the CNI gave it.
    pub addresses: Vec<IpAddr>,
    /// The packet mark of this enrolment: secret towards the pod, so never logged.
    pub mark: u32,
    /// TCP ports of kubelet probes and lifecycle hooks in the pod spec.
    pub probe_ports: Vec<u16>,
}

impl std::fmt::Debug for PodFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PodFacts({}/{} {} {:?})", self.namespace, self.name, self.uid, self.addresses)
    }
}

/// The node, as pod-watcher sees it in the node's own network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Node name.
    pub name: String,
    /// Every address of the node's own netns except loopback and link-local: where kubelet's probes may come from.
    pub addresses: Vec<IpAddr>,
}

//! cni-plugin → pod-watcher, `/run/culvert/cni.sock`: one request and one answer per connection.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where pod-watcher listens.
pub const SOCKET: &str = "/run/culvert/cni.sock";

/// The plugin's packets: `Hello`, then one request. ADD and CHECK carry the netns descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWatcher {
    /// First.
    Hello(super::Hello),
    /// CNI ADD; descriptor: the pod's netns.
    Add(Attachment),
    /// CNI CHECK; descriptor: the pod's netns.
    Check(Attachment),
    /// CNI DEL; no descriptor (the netns may be gone).
    Del(Attachment),
    /// CNI GC: attachments still valid; every other one of this network is to be let go.
    Gc {
        /// (container id, interface) pairs that stay.
        valid: Vec<(String, String)>,
    },
}

/// One attachment of a container to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// K8S_POD_NAMESPACE of CNI_ARGS.
    pub pod_namespace: String,
    /// K8S_POD_NAME of CNI_ARGS.
    pub pod_name: String,
    /// K8S_POD_UID of CNI_ARGS; empty where the runtime does not send it.
    #[serde(default)]
    pub pod_uid: String,
    /// Addresses in prevResult.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// pod-watcher's packets: `Hello`, then one answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWatcher {
    /// First.
    Hello(super::Hello),
    /// Done; whether the pod is in the mesh, for the plugin's log only.
    Done {
        /// Enrolled: captured and served.
        enrolled: bool,
    },
    /// Refused: becomes a CNI error.
    Failed(CniFailure),
}

/// A refusal in CNI terms (CNI 1.1, "Error").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniFailure {
    /// 11 try again later, 7 bad config, own codes from 100.
    pub code: u32,
    /// The cause, naming the pod.
    pub msg: String,
    /// What to do next.
    pub details: String,
    /// The [`mesh_model::Reason`] name.
    pub reason: String,
}

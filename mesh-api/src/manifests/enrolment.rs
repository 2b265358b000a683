//! Whether a pod is in the mesh: one decision for the daemon that captures it and the one that tells the others.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Namespace, Pod};

use super::pod::pod_name;

/// Label that opts a namespace or a pod in (`enabled`) or a pod out (`disabled`).
pub const MESH_LABEL: &str = "culvert.io/mesh";
/// Label of Culvert's own pods, which carry the mesh and cannot be in it.
pub const COMPONENT_LABEL: &str = "culvert.io/component";

/// Whether a pod is in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// Its traffic is captured, and it is reached through tunnels.
    Enrolled,
    /// It is left alone.
    Plain(NotEnrolled),
}

impl Enrolment {
    /// Whether it is in.
    pub fn is_enrolled(self) -> bool {
        self == Self::Enrolled
    }
}

/// Why a pod is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotEnrolled {
    /// Neither it nor its namespace asks for it.
    NotAsked,
    /// It says no, or its namespace does and it says nothing.
    OptedOut,
    /// It shares the node's network namespace, which is never captured.
    HostNetwork,
    /// Its namespace is excluded by configuration.
    ExcludedNamespace,
    /// It is part of Culvert.
    OwnPod,
    /// Another mesh has it: this one.
    OtherMesh(&'static str),
}

impl NotEnrolled {
    /// A short name, for events and state files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotAsked => "NotAsked",
            Self::OptedOut => "OptedOut",
            Self::HostNetwork => "HostNetwork",
            Self::ExcludedNamespace => "ExcludedNamespace",
            Self::OwnPod => "OwnPod",
            Self::OtherMesh(_) => "OtherMesh",
        }
    }
}

impl fmt::Display for NotEnrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => write!(f, "neither the pod nor its namespace has the label {MESH_LABEL}: enabled"),
            Self::OptedOut => write!(f, "the label {MESH_LABEL}: disabled opts it out"),
            Self::HostNetwork => f.write_str("it uses the node's network"),
            Self::ExcludedNamespace => f.write_str("its namespace is excluded from the mesh"),
            Self::OwnPod => f.write_str("it is part of the mesh itself"),
            Self::OtherMesh(mesh) => write!(f, "it is in another mesh ({mesh})"),
        }
    }
}

/// Decides. What can never be enrolled comes first, then the pod's own word, then its namespace's. A namespace whose object is not
/// known asks for nothing. A label with another value than `enabled` and `disabled` says nothing.
pub fn enrolled(namespace: Option<&Namespace>, pod: &Pod, excluded: &[String]) -> Enrolment {
    let plain = Enrolment::Plain;
    let labels = pod.metadata.labels.as_ref();
    if pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false) {
        return plain(NotEnrolled::HostNetwork);
    }
    if excluded.contains(&pod_name(pod).namespace) {
        return plain(NotEnrolled::ExcludedNamespace);
    }
    if value(labels, COMPONENT_LABEL).is_some() {
        return plain(NotEnrolled::OwnPod);
    }
    let of_namespace = namespace.and_then(|namespace| namespace.metadata.labels.as_ref());
    if let Some(mesh) = other_mesh(pod, of_namespace) {
        return plain(NotEnrolled::OtherMesh(mesh));
    }
    match word(labels).or_else(|| word(of_namespace)) {
        Some(Word::Enabled) => Enrolment::Enrolled,
        Some(Word::Disabled) => plain(NotEnrolled::OptedOut),
        None => plain(NotEnrolled::NotAsked),
    }
}

#[derive(Clone, Copy)]
enum Word {
    Enabled,
    Disabled,
}

fn word(labels: Option<&BTreeMap<String, String>>) -> Option<Word> {
    match value(labels, MESH_LABEL)? {
        "enabled" => Some(Word::Enabled),
        "disabled" => Some(Word::Disabled),
        _ => None,
    }
}

/// The marks that other meshes leave on the pods they have: two sets of rules in one network namespace would undo each other.
fn other_mesh(pod: &Pod, of_namespace: Option<&BTreeMap<String, String>>) -> Option<&'static str> {
    let labels = pod.metadata.labels.as_ref();
    let annotations = pod.metadata.annotations.as_ref();
    let spec = pod.spec.as_ref();
    let containers =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let has_container = |name: &str| containers.clone().any(|container| container.name == name);
    // The pod's own word wins over its namespace's, as with Istio's selectors.
    let dataplane = value(labels, "istio.io/dataplane-mode").or_else(|| value(of_namespace, "istio.io/dataplane-mode"));
    if value(annotations, "sidecar.istio.io/status").is_some() || has_container("istio-proxy") {
        Some("istio sidecar")
    } else if dataplane == Some("ambient")
        || matches!(value(annotations, "ambient.istio.io/redirection"), Some("enabled" | "pending"))
    {
        Some("istio ambient")
    } else if dataplane.is_some_and(|mode| mode.eq_ignore_ascii_case("kmesh"))
        || value(annotations, "kmesh.net/redirection") == Some("enabled")
    {
        Some("kmesh")
    } else if value(labels, "linkerd.io/control-plane-ns").is_some() || has_container("linkerd-proxy") {
        Some("linkerd")
    } else {
        None
    }
}

fn value<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    map?.get(key).map(String::as_str)
}

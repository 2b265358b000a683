//! Whether a pod is in the mesh: one decision for the daemon that captures it and the one that tells the others.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Namespace, Pod};

use super::pod::pod_name;

/// Label that opts a namespace or a pod in (`enabled`) or a pod out (`disabled`).
pub const MESH_LABEL: &str = "culvert.io/mesh";
/// Label of Culvert's own pods, which carry the mesh and cannot be in it.
pub const COMPONENT_LABEL: &str = "culvert.io/component";

/// Parts of names of runtime classes whose pods have a kernel of their own, where nobody says others.
pub const OTHER_KERNELS: &str = "kata,runsc,gvisor";

/// What stays outside of the mesh by configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Namespaces whose pods are never enrolled.
    pub namespaces: Vec<String>,
    /// Parts of names of runtime classes whose pods have a kernel of their own: their connections begin in there, and what the node's
    /// kernel sees of them cannot be captured.
    pub runtimes: Vec<String>,
}

impl Outside {
    fn has_runtime(&self, class: &str) -> bool {
        let class = class.to_ascii_lowercase();
        self.runtimes.iter().any(|part| !part.is_empty() && class.contains(&part.to_ascii_lowercase()))
    }
}

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
    /// It asks for the mesh, and its runtime gives it a kernel of its own.
    OtherKernel,
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
            Self::OtherKernel => "OtherKernel",
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
            Self::OtherKernel => {
                f.write_str("its runtime class gives it a kernel of its own, whose connections cannot be captured")
            }
        }
    }
}

/// Decides. What can never be enrolled comes first, then the pod's own word, then its namespace's. A namespace whose object is not
/// known asks for nothing. A label with another value than `enabled` and `disabled` says nothing.
pub fn enrolled(namespace: Option<&Namespace>, pod: &Pod, outside: &Outside) -> Enrolment {
    let plain = Enrolment::Plain;
    let labels = pod.metadata.labels.as_ref();
    if pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false) {
        return plain(NotEnrolled::HostNetwork);
    }
    if outside.namespaces.contains(&pod_name(pod).namespace) {
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
        Some(Word::Enabled) if runtime_class(pod).is_some_and(|class| outside.has_runtime(class)) => {
            plain(NotEnrolled::OtherKernel)
        }
        Some(Word::Enabled) => Enrolment::Enrolled,
        Some(Word::Disabled) => plain(NotEnrolled::OptedOut),
        None => plain(NotEnrolled::NotAsked),
    }
}

fn runtime_class(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.runtime_class_name.as_deref()
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const PLAIN: fn(NotEnrolled) -> Enrolment = Enrolment::Plain;

    fn check(namespace: Value, pod: Value, expected: Enrolment) {
        let mut full =
            json!({"metadata": {"namespace": "shop", "name": "cart"}, "spec": {"containers": [{"name": "app"}]}});
        merge(&mut full, pod.clone());
        let read: Pod = serde_json::from_value(full).expect("a pod");
        let metadata = json!({"metadata": {"name": "shop", "labels": namespace}});
        let read_namespace: Namespace = serde_json::from_value(metadata).expect("a namespace");
        let runtimes = OTHER_KERNELS.split(',').map(str::to_owned).collect();
        let outside = Outside { namespaces: vec!["kube-system".to_owned()], runtimes };
        assert_eq!(enrolled(Some(&read_namespace), &read, &outside), expected, "namespace {namespace}, pod {pod}");
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn mesh(word: &str) -> Value {
        json!({MESH_LABEL: word})
    }

    fn labels(labels: Value) -> Value {
        json!({"metadata": {"labels": labels}})
    }

    #[test]
    fn nobody_is_enrolled_who_did_not_ask() {
        check(json!({}), json!({}), PLAIN(NotEnrolled::NotAsked));
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "x"}})).expect("a pod");
        assert_eq!(enrolled(None, &pod, &Outside::default()), PLAIN(NotEnrolled::NotAsked));
    }

    #[test]
    fn a_namespace_asks_for_its_pods() {
        check(mesh("enabled"), json!({}), Enrolment::Enrolled);
        check(mesh("disabled"), json!({}), PLAIN(NotEnrolled::OptedOut));
    }

    #[test]
    fn a_pod_s_own_word_wins() {
        check(json!({}), labels(mesh("enabled")), Enrolment::Enrolled);
        check(mesh("disabled"), labels(mesh("enabled")), Enrolment::Enrolled);
        check(mesh("enabled"), labels(mesh("disabled")), PLAIN(NotEnrolled::OptedOut));
    }

    #[test]
    fn another_value_says_nothing() {
        check(mesh("Enabled"), json!({}), PLAIN(NotEnrolled::NotAsked));
        check(mesh("true"), labels(mesh("yes")), PLAIN(NotEnrolled::NotAsked));
        check(mesh("enabled"), labels(mesh("off")), Enrolment::Enrolled);
    }

    #[test]
    fn the_node_s_network_is_never_captured() {
        let mut pod = labels(mesh("enabled"));
        merge(&mut pod, json!({"spec": {"hostNetwork": true}}));
        check(mesh("enabled"), pod, PLAIN(NotEnrolled::HostNetwork));
    }

    #[test]
    fn a_pod_with_a_kernel_of_its_own_stays_out_and_one_that_does_not_ask_is_not_told_so() {
        for (class, expected) in [
            ("kata", PLAIN(NotEnrolled::OtherKernel)),
            ("kata-qemu", PLAIN(NotEnrolled::OtherKernel)),
            ("gVisor", PLAIN(NotEnrolled::OtherKernel)),
            ("my-runsc", PLAIN(NotEnrolled::OtherKernel)),
            ("runc", Enrolment::Enrolled),
            ("nvidia", Enrolment::Enrolled),
            ("", Enrolment::Enrolled),
        ] {
            let pod = json!({"spec": {"runtimeClassName": class}});
            check(mesh("enabled"), pod.clone(), expected);
            check(json!({}), pod.clone(), PLAIN(NotEnrolled::NotAsked));
            check(mesh("disabled"), pod, PLAIN(NotEnrolled::OptedOut));
        }
    }

    #[test]
    fn an_excluded_namespace_stays_out_whatever_it_says() {
        let mut pod = labels(mesh("enabled"));
        merge(&mut pod, json!({"metadata": {"namespace": "kube-system"}}));
        check(mesh("enabled"), pod, PLAIN(NotEnrolled::ExcludedNamespace));
    }

    #[test]
    fn culvert_s_own_pods_stay_out() {
        check(mesh("enabled"), labels(json!({COMPONENT_LABEL: "node-proxy"})), PLAIN(NotEnrolled::OwnPod));
    }

    #[test]
    fn a_pod_of_another_mesh_stays_out() {
        let annotated = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}});
        let contains = |name: &str| json!({"spec": {"containers": [{"name": "app"}, {"name": name}]}});
        let starts = |name: &str| json!({"spec": {"initContainers": [{"name": name, "restartPolicy": "Always"}]}});
        for (pod, other) in [
            (annotated("sidecar.istio.io/status", "{}"), "istio sidecar"),
            (contains("istio-proxy"), "istio sidecar"),
            (starts("istio-proxy"), "istio sidecar"),
            (annotated("ambient.istio.io/redirection", "enabled"), "istio ambient"),
            (annotated("ambient.istio.io/redirection", "pending"), "istio ambient"),
            (labels(json!({"istio.io/dataplane-mode": "ambient"})), "istio ambient"),
            (labels(json!({"istio.io/dataplane-mode": "Kmesh"})), "kmesh"),
            (annotated("kmesh.net/redirection", "enabled"), "kmesh"),
            (labels(json!({"linkerd.io/control-plane-ns": "linkerd"})), "linkerd"),
            (contains("linkerd-proxy"), "linkerd"),
            (starts("linkerd-proxy"), "linkerd"),
        ] {
            check(mesh("enabled"), pod, PLAIN(NotEnrolled::OtherMesh(other)));
        }
        check(mesh("enabled"), annotated("ambient.istio.io/redirection", "disabled"), Enrolment::Enrolled);
        let ambient = json!({MESH_LABEL: "enabled", "istio.io/dataplane-mode": "ambient"});
        check(ambient.clone(), json!({}), PLAIN(NotEnrolled::OtherMesh("istio ambient")));
        check(ambient, labels(json!({"istio.io/dataplane-mode": "none"})), Enrolment::Enrolled);
    }
}

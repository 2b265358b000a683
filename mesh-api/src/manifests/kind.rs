//! The kinds of object that are read, and one place that treats them all alike.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

use super::security::{AuthorizationPolicy, PeerAuthentication};
use super::{EndpointSlice, Namespace, NetworkPolicy, Node, Objects, Pod, Service, ServiceAccount};

/// A kind of object that Culvert reads; documents of other kinds are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// v1.
    Namespace,
    /// v1.
    Node,
    /// v1.
    Pod,
    /// v1.
    ServiceAccount,
    /// v1.
    Service,
    /// discovery.k8s.io/v1.
    EndpointSlice,
    /// networking.k8s.io/v1.
    NetworkPolicy,
    /// security.istio.io/v1, v1beta1.
    AuthorizationPolicy,
    /// security.istio.io/v1, v1beta1.
    PeerAuthentication,
}

impl Kind {
    /// By API group and kind, whatever the version: a version that is not understood is a broken document, not another kind.
    pub(super) fn of(group: &str, kind: &str) -> Option<Self> {
        Some(match (group, kind) {
            ("", "Namespace") => Self::Namespace,
            ("", "Node") => Self::Node,
            ("", "Pod") => Self::Pod,
            ("", "ServiceAccount") => Self::ServiceAccount,
            ("", "Service") => Self::Service,
            ("discovery.k8s.io", "EndpointSlice") => Self::EndpointSlice,
            ("networking.k8s.io", "NetworkPolicy") => Self::NetworkPolicy,
            ("security.istio.io", "AuthorizationPolicy") => Self::AuthorizationPolicy,
            ("security.istio.io", "PeerAuthentication") => Self::PeerAuthentication,
            _ => return None,
        })
    }

    /// The versions that are understood.
    pub(super) fn versions(self) -> &'static [&'static str] {
        match self {
            Self::AuthorizationPolicy | Self::PeerAuthentication => &["v1", "v1beta1"],
            _ => &["v1"],
        }
    }

    /// Whether its objects are in no namespace.
    pub(super) const fn is_of_cluster(self) -> bool {
        matches!(self, Self::Namespace | Self::Node)
    }

    /// Every kind, in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::ServiceAccount,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
    ];

    /// Label values for metrics: the kinds, and `other` for what a refused document calls itself.
    pub const LABELS: [&str; 10] = {
        let mut labels = ["other"; 10];
        let mut at = 0;
        while at < Self::ALL.len() {
            labels[at] = Self::ALL[at].as_str();
            at += 1;
        }
        labels
    };

    /// The label of a kind as a document writes it, which may be anything.
    pub fn label(kind: &str) -> &'static str {
        Self::ALL.iter().map(|known| known.as_str()).find(|known| *known == kind).unwrap_or("other")
    }

    /// The kind as manifests write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }
}

/// What an object is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a Namespace and a Node.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// `namespace/name`, or the name alone.
    pub(super) fn full_name(&self) -> String {
        match self.kind {
            kind if kind.is_of_cluster() => self.name.clone(),
            _ => format!("{}/{}", self.namespace, self.name),
        }
    }

    fn key(&self) -> super::Key {
        (self.namespace.clone(), self.name.clone())
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.full_name())
    }
}

/// Adds the object that a value describes.
pub(super) fn add(objects: &mut Objects, object: &ObjectRef, value: Value, file: PathBuf) -> Result<(), String> {
    fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }
    let key = object.key();
    match object.kind {
        Kind::Namespace => {
            objects.namespaces.insert(object.name.clone(), typed::<Namespace>(value)?);
        }
        Kind::Node => {
            // Where it is is all that is read; its status is large and full of quantities.
            let metadata = value.get("metadata").cloned().unwrap_or_default();
            objects.nodes.insert(object.name.clone(), typed::<Node>(serde_json::json!({ "metadata": metadata }))?);
        }
        Kind::Pod => {
            objects.pods.insert(key, typed::<Pod>(without_quantities(value))?);
        }
        Kind::ServiceAccount => {
            objects.service_accounts.insert(key, typed::<ServiceAccount>(value)?);
        }
        Kind::Service => {
            objects.services.insert(key, typed::<Service>(value)?);
        }
        Kind::EndpointSlice => {
            objects.endpoint_slices.insert(key, typed::<EndpointSlice>(value)?);
        }
        Kind::NetworkPolicy => {
            objects.network_policies.insert(key, typed::<NetworkPolicy>(value)?);
        }
        Kind::AuthorizationPolicy => {
            objects.authorization_policies.insert(key, AuthorizationPolicy::parse(value)?);
        }
        Kind::PeerAuthentication => {
            objects.peer_authentications.insert(key, PeerAuthentication::parse(value)?);
        }
    }
    objects.files.insert(object.clone(), file);
    Ok(())
}

/// Stands in for a broken object: its last good version if there is one; else, for a security policy, one that refuses.
pub(super) fn stand_in(
    objects: &mut Objects,
    last: &Objects,
    object: &ObjectRef,
    value: Option<&Value>,
    file: PathBuf,
    why: &str,
) {
    let key = object.key();
    let kept = keep(objects, last, object, Keep::Good);
    match object.kind {
        _ if kept => {}
        Kind::AuthorizationPolicy => {
            objects.authorization_policies.insert(key, AuthorizationPolicy::broken(object, value, why));
        }
        Kind::PeerAuthentication => {
            objects.peer_authentications.insert(key, PeerAuthentication::broken(object, value, why));
        }
        // Without it there is less in the mesh, not more.
        _ => return,
    }
    objects.files.insert(object.clone(), file);
}

/// Which objects of the last load are worth keeping.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Only those that were understood.
    Good,
    /// A stand-in for a broken policy too: it refuses, and must go on refusing.
    Any,
}

/// Takes over an object from the last load; whether it was there.
pub(super) fn keep(objects: &mut Objects, last: &Objects, object: &ObjectRef, which: Keep) -> bool {
    fn copy<K: Ord + Clone, T: Clone>(
        from: &BTreeMap<K, T>,
        to: &mut BTreeMap<K, T>,
        key: &K,
        good: impl Fn(&T) -> bool,
    ) -> bool {
        match from.get(key).filter(|found| good(found)) {
            Some(found) => {
                to.insert(key.clone(), found.clone());
                true
            }
            None => false,
        }
    }
    let key = object.key();
    let any = which == Keep::Any;
    let kept = match object.kind {
        Kind::Namespace => copy(&last.namespaces, &mut objects.namespaces, &object.name, |_| true),
        Kind::Node => copy(&last.nodes, &mut objects.nodes, &object.name, |_| true),
        Kind::Pod => copy(&last.pods, &mut objects.pods, &key, |_| true),
        Kind::ServiceAccount => copy(&last.service_accounts, &mut objects.service_accounts, &key, |_| true),
        Kind::Service => copy(&last.services, &mut objects.services, &key, |_| true),
        Kind::EndpointSlice => copy(&last.endpoint_slices, &mut objects.endpoint_slices, &key, |_| true),
        Kind::NetworkPolicy => copy(&last.network_policies, &mut objects.network_policies, &key, |_| true),
        Kind::AuthorizationPolicy => {
            copy(&last.authorization_policies, &mut objects.authorization_policies, &key, |policy| {
                any || policy.spec.is_ok()
            })
        }
        Kind::PeerAuthentication => {
            copy(&last.peer_authentications, &mut objects.peer_authentications, &key, |policy| {
                any || policy.spec.is_ok()
            })
        }
    };
    if kept && let Some(file) = last.files.get(object) {
        objects.files.insert(object.clone(), file.clone());
    }
    kept
}

/// Objects of the last load that came from this file.
pub(super) fn of_file<'a>(last: &'a Objects, file: &'a std::path::Path) -> impl Iterator<Item = &'a ObjectRef> {
    last.files.iter().filter(move |(_, origin)| origin.as_path() == file).map(|(object, _)| object)
}

/// Whether this load holds the object already.
pub(super) fn holds(objects: &Objects, object: &ObjectRef) -> bool {
    objects.files.contains_key(object)
}

/// A pod without its resource amounts and volumes. Amounts may be written as numbers, which the API server takes and the typed form
/// does not; nothing of ours reads either, so neither may be the reason to refuse a pod.
fn without_quantities(mut pod: Value) -> Value {
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        for name in ["volumes", "overhead", "resources"] {
            spec.remove(name);
        }
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(container) = container.as_object_mut() {
                    container.remove("resources");
                    container.remove("env");
                }
            }
        }
    }
    if let Some(status) = pod.get_mut("status").and_then(Value::as_object_mut) {
        for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
            status.remove(list);
        }
    }
    pod
}

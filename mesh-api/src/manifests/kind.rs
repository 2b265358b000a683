//! The kinds of object that are read, and one place that treats them all alike.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::security::{AuthorizationPolicy, PeerAuthentication, Standing};
use super::{EndpointSlice, Namespace, NetworkPolicy, Node, Objects, Pod, Service, ServiceAccount, trim};

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

    /// Group and version that the API server is asked for, as `apiVersion` writes them, and the name in its paths.
    pub const fn resource(self) -> (&'static str, &'static str) {
        match self {
            Self::Namespace => ("v1", "namespaces"),
            Self::Node => ("v1", "nodes"),
            Self::Pod => ("v1", "pods"),
            Self::ServiceAccount => ("v1", "serviceaccounts"),
            Self::Service => ("v1", "services"),
            Self::EndpointSlice => ("discovery.k8s.io/v1", "endpointslices"),
            Self::NetworkPolicy => ("networking.k8s.io/v1", "networkpolicies"),
            Self::AuthorizationPolicy => ("security.istio.io/v1", "authorizationpolicies"),
            Self::PeerAuthentication => ("security.istio.io/v1", "peerauthentications"),
        }
    }

    /// Whether its objects are in no namespace.
    pub const fn is_of_cluster(self) -> bool {
        matches!(self, Self::Namespace | Self::Node)
    }

    /// Whether it says who may reach whom: an object that cannot be understood then refuses, and its status says so.
    pub const fn is_policy(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::PeerAuthentication)
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

/// Puts the object that a value describes in place of what was known of it. `file` says where it was read; the API server is no file.
pub(super) fn add(
    objects: &mut Objects,
    object: &ObjectRef,
    value: Value,
    file: Option<PathBuf>,
) -> Result<(), String> {
    fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }
    let (key, name) = (object.key(), object.name.clone());
    let standing = if object.kind.is_policy() { Standing::of(&value) } else { Standing::default() };
    let value = trim::trimmed(object.kind, value);
    let differs = match object.kind {
        Kind::Namespace => put(&mut objects.namespaces, name, typed::<Namespace>(value)?),
        Kind::Node => put(&mut objects.nodes, name, typed::<Node>(value)?),
        Kind::Pod => put(&mut objects.pods, key, typed::<Pod>(value)?),
        Kind::ServiceAccount => put(&mut objects.service_accounts, key, typed::<ServiceAccount>(value)?),
        Kind::Service => put(&mut objects.services, key, typed::<Service>(value)?),
        Kind::EndpointSlice => put(&mut objects.endpoint_slices, key, typed::<EndpointSlice>(value)?),
        Kind::NetworkPolicy => put(&mut objects.network_policies, key, typed::<NetworkPolicy>(value)?),
        Kind::AuthorizationPolicy => {
            let policy = AuthorizationPolicy::parse(value, standing)?;
            let differs = objects.authorization_policies.get(&key).is_none_or(|last| !policy.says_the_same_as(last));
            objects.authorization_policies.insert(key, policy);
            differs
        }
        Kind::PeerAuthentication => {
            let policy = PeerAuthentication::parse(value, standing)?;
            let differs = objects.peer_authentications.get(&key).is_none_or(|last| !policy.says_the_same_as(last));
            objects.peer_authentications.insert(key, policy);
            differs
        }
    };
    match (differs, object.kind.is_policy()) {
        (true, _) => objects.stamps.touch(object),
        // Its status may be another one: what stands there is told of it, by its very version.
        (false, true) => objects.stamps.brush(object),
        (false, false) => {}
    }
    if let Some(file) = file {
        objects.files.insert(object.clone(), file);
    }
    Ok(())
}

/// Puts an object in place of what was known of it; whether more than its version differs.
fn put<K: Ord, T: PartialEq + Metadata<Ty = ObjectMeta>>(known: &mut BTreeMap<K, T>, key: K, mut object: T) -> bool {
    let version = object.metadata_mut().resource_version.take();
    let differs = known.get_mut(&key).is_none_or(|last| {
        last.metadata_mut().resource_version = None;
        *last != object
    });
    object.metadata_mut().resource_version = version;
    known.insert(key, object);
    differs
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
    if keep(objects, last, object, Keep::Good) || refuse(objects, object, value, why) {
        objects.files.insert(object.clone(), file);
    }
}

/// For a security policy that cannot be used: one that refuses. Of another kind there is then less in the mesh, not more.
fn refuse(objects: &mut Objects, object: &ObjectRef, value: Option<&Value>, why: &str) -> bool {
    let key = object.key();
    match object.kind {
        Kind::AuthorizationPolicy => {
            objects.authorization_policies.insert(key, AuthorizationPolicy::broken(object, value, why));
        }
        Kind::PeerAuthentication => {
            objects.peer_authentications.insert(key, PeerAuthentication::broken(object, value, why));
        }
        _ => return false,
    }
    objects.stamps.touch(object);
    true
}

/// The same where objects are changed in place: what is known and good stays.
pub(super) fn stand_in_place(objects: &mut Objects, object: &ObjectRef, value: &Value, why: &str) {
    let key = object.key();
    let good = match object.kind {
        Kind::AuthorizationPolicy => {
            objects.authorization_policies.get_mut(&key).filter(|policy| policy.spec.is_ok()).map(|p| &mut p.standing)
        }
        Kind::PeerAuthentication => {
            objects.peer_authentications.get_mut(&key).filter(|policy| policy.spec.is_ok()).map(|p| &mut p.standing)
        }
        _ => return,
    };
    match good {
        Some(standing) => {
            *standing = Standing { unread: Some(why.to_owned()), ..Standing::of(value) };
            objects.stamps.touch(object);
        }
        None => drop(refuse(objects, object, Some(value), why)),
    }
}

/// Takes an object out; whether it was there.
pub(super) fn remove(objects: &mut Objects, object: &ObjectRef) -> bool {
    let key = object.key();
    let was_there = match object.kind {
        Kind::Namespace => objects.namespaces.remove(&object.name).is_some(),
        Kind::Node => objects.nodes.remove(&object.name).is_some(),
        Kind::Pod => objects.pods.remove(&key).is_some(),
        Kind::ServiceAccount => objects.service_accounts.remove(&key).is_some(),
        Kind::Service => objects.services.remove(&key).is_some(),
        Kind::EndpointSlice => objects.endpoint_slices.remove(&key).is_some(),
        Kind::NetworkPolicy => objects.network_policies.remove(&key).is_some(),
        Kind::AuthorizationPolicy => objects.authorization_policies.remove(&key).is_some(),
        Kind::PeerAuthentication => objects.peer_authentications.remove(&key).is_some(),
    };
    if was_there {
        objects.stamps.touch(object);
        let namespace = if object.kind == Kind::Namespace { &object.name } else { &object.namespace };
        if is_empty(objects, namespace) {
            objects.stamps.forget(namespace);
        }
    }
    was_there
}

/// Whether a namespace is gone with everything in it.
fn is_empty(objects: &Objects, namespace: &str) -> bool {
    fn none<T>(of: &BTreeMap<super::Key, T>, namespace: &str) -> bool {
        let first = (namespace.to_owned(), String::new());
        of.range(first..).next().is_none_or(|((found, _), _)| found != namespace)
    }
    !objects.namespaces.contains_key(namespace)
        && !namespace.is_empty()
        && none(&objects.pods, namespace)
        && none(&objects.service_accounts, namespace)
        && none(&objects.services, namespace)
        && none(&objects.endpoint_slices, namespace)
        && none(&objects.network_policies, namespace)
        && none(&objects.authorization_policies, namespace)
        && none(&objects.peer_authentications, namespace)
}

/// The metadata of an object that is known.
pub(super) fn metadata<'a>(objects: &'a Objects, object: &ObjectRef) -> Option<&'a ObjectMeta> {
    let key = object.key();
    match object.kind {
        Kind::Namespace => objects.namespaces.get(&object.name).map(|found| &found.metadata),
        Kind::Node => objects.nodes.get(&object.name).map(|found| &found.metadata),
        Kind::Pod => objects.pods.get(&key).map(|found| &found.metadata),
        Kind::ServiceAccount => objects.service_accounts.get(&key).map(|found| &found.metadata),
        Kind::Service => objects.services.get(&key).map(|found| &found.metadata),
        Kind::EndpointSlice => objects.endpoint_slices.get(&key).map(|found| &found.metadata),
        Kind::NetworkPolicy => objects.network_policies.get(&key).map(|found| &found.metadata),
        Kind::AuthorizationPolicy => objects.authorization_policies.get(&key).map(|found| &found.metadata),
        Kind::PeerAuthentication => objects.peer_authentications.get(&key).map(|found| &found.metadata),
    }
}

/// All objects of a kind.
pub(super) fn names(objects: &Objects, kind: Kind) -> Vec<ObjectRef> {
    fn of<T>(kind: Kind, found: &BTreeMap<super::Key, T>) -> Vec<ObjectRef> {
        let name =
            |(namespace, name): &super::Key| ObjectRef { kind, namespace: namespace.clone(), name: name.clone() };
        found.keys().map(name).collect()
    }
    fn of_cluster<T>(kind: Kind, found: &BTreeMap<String, T>) -> Vec<ObjectRef> {
        found.keys().map(|name| ObjectRef { kind, namespace: String::new(), name: name.clone() }).collect()
    }
    match kind {
        Kind::Namespace => of_cluster(kind, &objects.namespaces),
        Kind::Node => of_cluster(kind, &objects.nodes),
        Kind::Pod => of(kind, &objects.pods),
        Kind::ServiceAccount => of(kind, &objects.service_accounts),
        Kind::Service => of(kind, &objects.services),
        Kind::EndpointSlice => of(kind, &objects.endpoint_slices),
        Kind::NetworkPolicy => of(kind, &objects.network_policies),
        Kind::AuthorizationPolicy => of(kind, &objects.authorization_policies),
        Kind::PeerAuthentication => of(kind, &objects.peer_authentications),
    }
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
    if kept {
        objects.stamps.touch(object);
        if let Some(file) = last.files.get(object) {
            objects.files.insert(object.clone(), file.clone());
        }
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

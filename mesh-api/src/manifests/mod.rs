//! Kubernetes objects as Culvert reads them, from a directory of manifests ([`load_dir`]) or from the API server ([`Store`]).
//!
//! The file source is a watched directory of ordinary manifests, replaced by rename. It narrows on bad input, never widens: a broken
//! document is refused alone and named by file and line, the last good version of its object stays, and a broken security policy
//! that has none becomes one that refuses. Both daemons read through here, so they cannot disagree on what an object says.

mod document;
mod enrolment;
mod exclusions;
mod kind;
mod load;
mod pod;
pub mod security;
mod stamps;
mod store;
mod texts;
mod trim;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

pub use enrolment::{COMPONENT_LABEL, Enrolment, MESH_LABEL, NotEnrolled, OTHER_KERNELS, Outside, enrolled};
pub use exclusions::{EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_CIDRS, EXCLUDE_OUTBOUND_PORTS, exclusions};
pub use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
pub use k8s_openapi::api::discovery::v1::EndpointSlice;
pub use k8s_openapi::api::networking::v1::NetworkPolicy;
pub use kind::{Kind, ObjectRef};
pub use load::{MAX_FILE, TOKENS, load_dir};
pub use pod::{is_ready, is_terminal, node_name, pod_ips, pod_name, pod_uid, probe_ports, service_account, static_uid};
pub use security::{AuthorizationPolicy, PeerAuthentication};
pub use stamps::Stamps;
pub use store::{Change, Store};

/// Namespace and name of an object.
pub type Key = (String, String);

/// Everything that one load of a directory holds. An object without a namespace is in `default`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// Namespaces, by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Nodes, by name: their metadata alone.
    pub nodes: BTreeMap<String, Node>,
    /// Pods.
    pub pods: BTreeMap<Key, Pod>,
    /// Service accounts.
    pub service_accounts: BTreeMap<Key, ServiceAccount>,
    /// Services.
    pub services: BTreeMap<Key, Service>,
    /// Endpoint slices.
    pub endpoint_slices: BTreeMap<Key, EndpointSlice>,
    /// Network policies.
    pub network_policies: BTreeMap<Key, NetworkPolicy>,
    /// Authorization policies, the broken ones among them marked as such.
    pub authorization_policies: BTreeMap<Key, AuthorizationPolicy>,
    /// Peer authentications, the broken ones among them marked as such.
    pub peer_authentications: BTreeMap<Key, PeerAuthentication>,
    /// Where each object was read: to keep the objects of a file that cannot be read any more, and to name files in reports.
    files: BTreeMap<ObjectRef, PathBuf>,
    stamps: Stamps,
}

impl Objects {
    /// When something in each namespace was changed last; see [`Stamps`].
    pub fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Namespace => self.namespaces.len(),
            Kind::Node => self.nodes.len(),
            Kind::Pod => self.pods.len(),
            Kind::ServiceAccount => self.service_accounts.len(),
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.endpoint_slices.len(),
            Kind::NetworkPolicy => self.network_policies.len(),
            Kind::AuthorizationPolicy => self.authorization_policies.len(),
            Kind::PeerAuthentication => self.peer_authentications.len(),
        }
    }

    /// The file that an object was read from.
    pub fn file_of(&self, object: &ObjectRef) -> Option<&PathBuf> {
        self.files.get(object)
    }
}

/// A document, or a whole file, that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1: of the fault where it is known, else the first of the document; 0 for a whole file.
    pub line: usize,
    /// The kind as it is written; empty where it cannot be told.
    pub kind: String,
    /// `namespace/name`, or the name alone of a Namespace or Node; empty where it cannot be told.
    pub name: String,
    /// What is wrong.
    pub error: String,
}

impl Rejected {
    /// Which object it was to be, where that can be told.
    pub fn object(&self) -> Option<ObjectRef> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == self.kind)?;
        let (namespace, name) = match kind.is_of_cluster() {
            true => ("", self.name.as_str()),
            false => self.name.split_once('/')?,
        };
        (!name.is_empty()).then(|| ObjectRef { kind, namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.kind.is_empty() {
            write!(f, ": {} {}", self.kind, self.name)?;
        }
        write!(f, ": {}", self.error)
    }
}

/// The objects of a YAML text, whatever their kinds, in their order; else the line of the first fault, and what is wrong there.
pub fn read_yaml(text: &str) -> Result<Vec<serde_json::Value>, (usize, String)> {
    let mut objects = Vec::new();
    for document in document::yaml(text) {
        objects.extend(document::objects(document.content.map_err(|fault| (fault.line, fault.error))?));
    }
    Ok(objects)
}

#[cfg(test)]
mod tests;

//! From Kubernetes objects to what the proxies are told. Pure: the same objects always compile to the same records, in key order.
//!
//! Each file holds one story. What an object asks for and this mesh cannot do is never dropped silently: it narrows, and is listed
//! as a [`Problem`].

mod addresses;
mod app_protocol;
mod authorization;
mod behind;
mod endpoints;
mod fate;
mod incremental;
mod network_policy;
mod peer_authentication;
mod place;
mod selector;
mod services;
mod telemetry;
mod workloads;

use std::collections::BTreeMap;
use std::fmt;

pub use fate::Told;
pub use incremental::{Changes, Compiler};

use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::{Key, Kind, ObjectRef, Outside};
use mesh_model::policy::Policy;
use mesh_model::{Service, TrustDomain, Workload, WorkloadUid};

/// Whether plaintext is taken where no PeerAuthentication says anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DefaultMode {
    /// Plaintext from outside the mesh is taken (as Istio).
    #[default]
    Permissive,
    /// Only callers with an identity.
    Strict,
}

/// What compiling depends on besides the objects.
#[derive(Clone, Debug)]
pub struct CompileConfig {
    /// The cluster: first part of every workload's key.
    pub cluster_id: String,
    /// Where identities are issued.
    pub trust_domain: TrustDomain,
    /// Others that mean the same mesh: a policy that names one of them means all.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Last part of services' host names.
    pub cluster_domain: String,
    /// Policies of this namespace apply to the whole mesh.
    pub root_namespace: String,
    /// Without a PeerAuthentication.
    pub default_mode: DefaultMode,
    /// Never enrolled.
    pub outside: Outside,
}

/// What the proxies are told of one namespace, each list in the order of its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Pods bound to a node, and endpoints that are no pods.
    pub workloads: Vec<Workload>,
    /// Of these, pods that are being deleted: when they must be over, their own time to end included.
    pub ends: BTreeMap<WorkloadUid, Timestamp>,
    /// Services.
    pub services: Vec<Service>,
    /// Policies.
    pub policies: Vec<Policy>,
}

/// An object, and what of it is not carried out as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object.
    pub object: ObjectRef,
    /// What, and what happens instead.
    pub text: String,
}

impl Problem {
    fn new(kind: Kind, (namespace, name): &Key, text: impl Into<String>) -> Self {
        let object = ObjectRef { kind, namespace: namespace.clone(), name: name.clone() };
        Self { object, text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.text)
    }
}

#[cfg(test)]
pub(crate) mod tests;

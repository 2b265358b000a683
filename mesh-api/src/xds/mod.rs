//! What the control plane and the node proxy say to each other over gRPC, and its conversion to the model.
//!
//! The generated modules are the wire and nothing else; [`decode`] turns one resource into a model value, [`workload_resource`] and
//! its siblings go the other way. Nothing here widens: what cannot be read is an error that names the resource, and a policy that
//! cannot be read becomes one that refuses ([`refusing_policy`]).

pub mod saved;

mod address;
mod answer;
mod emit;
mod field;
mod policy;
mod resource;
mod service;

pub use address::{BadAddress, Record};
pub use answer::{Answer, requests};
pub use field::BadField;
pub use policy::{BadPolicy, refusing_policy};
pub use resource::{
    BadResource, Resource, decode, is_listed_only, policy_resource, service_resource, workload_resource,
};

/// Type of workloads and services: `istio.workload.Address`.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type of policies: `istio.security.Authorization`.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Name of our extension on a workload.
pub const WORKLOAD_EXTENSION: &str = "culvert.io/workload";
/// Name of our extension on a service.
pub const SERVICE_EXTENSION: &str = "culvert.io/service";
/// Name of our extension on an authorization.
pub const POLICY_EXTENSION: &str = "culvert.io/policy";
/// Metadata key of a certificate request: the identity that a node's proxy asks for on behalf of a pod.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

macro_rules! generated {
    ($(#[$doc:meta])* $name:ident = $package:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, clippy::all, clippy::unwrap_used)]
        pub mod $name {
            tonic::include_proto!($package);
        }
    };
}

generated!(
    /// Delta ADS (`envoy.service.discovery.v3`).
    discovery = "envoy.service.discovery.v3"
);
generated!(
    /// Workloads and services (`istio.workload`).
    workload = "istio.workload"
);
generated!(
    /// Policies (`istio.security`).
    security = "istio.security"
);
generated!(
    /// Certificates (`istio.v1.auth`).
    ca = "istio.v1.auth"
);
generated!(
    /// Our extensions of Istio's types.
    culvert = "culvert.workload.v1"
);

#[cfg(test)]
mod tests;

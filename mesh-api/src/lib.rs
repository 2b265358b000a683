//! What crosses a process boundary, and its conversion to the model.
//!
//! The unix links (`link`) are plain serde messages; gRPC types stand behind feature `grpc`, Kubernetes manifests behind feature
//! `k8s`. Wire types stop here: everything beyond this crate works on `mesh_model` values.

pub mod link;

#[cfg(feature = "grpc")]
pub mod xds;

#[cfg(feature = "k8s")]
pub mod manifests;

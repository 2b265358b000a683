//! Kubernetes objects as the daemons get them, from a directory of manifests or from the API server, and what is written back.
//!
//! Both sources stand behind one boundary ([`Source`]) and convert by [`mesh_api::manifests`], so that what decides cannot tell them
//! apart. The connection is `kube`'s (configuration, TLS, credentials that change); following a kind is ours, see
//! `docs/decisions/0011-own-watch.md`. Nothing here decides who is in the mesh.

mod api;
mod backoff;
#[cfg(feature = "testing")]
pub mod fake;
mod files;
mod follow;
mod lines;
mod metrics;
mod one;
mod paths;
mod place;
mod report;
mod server;
mod source;
#[cfg(feature = "tool")]
pub mod tool;

pub use api::{Api, ConnectError, Error, Method};
pub use backoff::Backoff;
pub use files::Files;
pub use follow::{Following, Timing};
pub use metrics::Metrics;
pub use one::{Known, Single};
pub use paths::{escape, object as object_path};
pub use place::Place;
pub use report::{EventType, Reporter};
pub use server::Server;
pub use source::{Ended, Source};

#[cfg(test)]
mod tests;

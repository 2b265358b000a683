//! Nouns and verdicts of the mesh.
//!
//! Everything here is a plain value or a pure function: no runtime, no IO, no clock. Wire formats turn into these types at
//! the door (`mesh-api`), and the daemons decide with them. Nothing in this crate may depend on another crate of ours.

pub mod addr;
pub mod exclusions;
pub mod identity;
pub mod mesh;
pub mod pod;
pub mod policy;
pub mod ports;
pub mod ranges;
pub mod reason;
pub mod service;
pub mod telemetry;
pub mod workload;

pub use addr::{ClientAddr, OrigDst};
pub use exclusions::Exclusions;
pub use identity::{BadIdentity, Identity, TrustDomain, TrustDomains};
pub use mesh::Mesh;
pub use pod::{Mark, PodName, PodUid};
pub use ranges::ClusterRanges;
pub use reason::Reason;
pub use service::{AppProtocol, BadServiceKey, External, IpFamilies, Near, Service, ServiceKey, ServicePort};
pub use telemetry::Telemetry;
pub use workload::{ClaimRank, Endpoint, Health, Hints, NetworkPolicy, Readiness, Tunnel, Workload, WorkloadUid};

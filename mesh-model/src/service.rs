//! A service: virtual addresses that stand for endpoints.

use std::fmt;
use std::net::IpAddr;

/// Key of a service on the wire and in the store; printed `namespace/hostname`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The namespace.
    pub namespace: String,
    /// The full host name, for example `cart.shop.svc.cluster.local`.
    pub hostname: String,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// One port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port that clients use.
    pub service_port: u16,
    /// The port at the endpoint; `None` when it is a named port, which the workload's own list resolves.
    pub target_port: Option<u16>,
}

/// A service as the proxy needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and hostname.
    pub key: ServiceKey,
    /// The Kubernetes name.
    pub name: String,
    /// Virtual addresses; empty for a headless service.
    pub vips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Further identities (SPIFFE URIs) a server of this service may show.
    pub subject_alt_names: Vec<crate::Identity>,
    /// Whether endpoints that are not healthy are used as well (`publishNotReadyAddresses`).
    pub publish_not_ready: bool,
    /// Whether only endpoints on the client's own node may be used (`internalTrafficPolicy: Local`).
    pub local_only: bool,
}

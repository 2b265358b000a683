//! A service: virtual addresses that stand for endpoints.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

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

/// The text is not `namespace/hostname`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form namespace/hostname")]
pub struct BadServiceKey(String);

impl FromStr for ServiceKey {
    type Err = BadServiceKey;

    fn from_str(text: &str) -> Result<Self, BadServiceKey> {
        match text.split_once('/') {
            Some((namespace, hostname)) if !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), hostname: hostname.to_owned() })
            }
            _ => Err(BadServiceKey(text.chars().take(300).collect())),
        }
    }
}

/// One port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port that clients use.
    pub service_port: u16,
    /// The port at the endpoint; `None` when it is a named port, which the workload's own list resolves.
    pub target_port: Option<u16>,
    /// What is spoken there.
    pub app_protocol: AppProtocol,
}

/// What is spoken at a port, as far as somebody says. Nothing here is decided by it: for those who read HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppProtocol {
    /// Nobody says.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// No more than TCP.
    Tcp,
    /// TLS of the application's own.
    Tls,
}

/// The families of which a service has addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpFamilies {
    /// Nobody says.
    #[default]
    Automatic,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    Dual,
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
    /// Which endpoints a client is sent to.
    pub near: Near,
    /// Where clients are sent elsewhere than `near` says.
    pub external: Option<External>,
    /// How long after its last connection a client is led to the same endpoint again (`sessionAffinity: ClientIP`).
    pub session_affinity: Option<Duration>,
    /// The families of its addresses.
    pub ip_families: IpFamilies,
    /// It is to be reached through a waypoint, which this mesh does not do: not at all.
    pub needs_waypoint: bool,
}

impl Service {
    /// Which endpoints a client of this virtual address is sent to.
    pub fn near_at(&self, vip: IpAddr) -> Near {
        let external = self.external.as_ref().filter(|external| external.vips.contains(&vip.to_canonical()));
        external.map_or(self.near, |external| external.near)
    }
}

/// Virtual addresses that `internalTrafficPolicy` says nothing of (`externalIPs`), where it says something of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// These; they are among the service's virtual addresses too.
    pub vips: Vec<IpAddr>,
    /// Which endpoints a client of these is sent to.
    pub near: Near,
}

/// Which endpoints of a service a client is sent to, by where both are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Near {
    /// Any.
    #[default]
    Any,
    /// One of the client's zone if there is one (`trafficDistribution: PreferSameZone`, or by its older name `PreferClose`).
    PreferZone,
    /// One of the client's node if there is one, else of its zone (`trafficDistribution: PreferSameNode`).
    PreferNode,
    /// Of the client's node or none (`internalTrafficPolicy: Local`).
    OnlyNode,
}

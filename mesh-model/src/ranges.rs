//! The cluster's pod and service ranges: what is inside must be named by a record, what is outside passes through.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// The address ranges in which every destination must be known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterRanges(Vec<IpNetwork>);

impl ClusterRanges {
    /// From the configured networks, pods and services together.
    pub fn new(networks: impl IntoIterator<Item = IpNetwork>) -> Self {
        Self(networks.into_iter().collect())
    }

    /// Whether the address lies in any of the ranges. An IPv4-mapped address counts as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|network| network.contains(ip))
    }

    /// The configured networks.
    pub fn iter(&self) -> impl Iterator<Item = &IpNetwork> {
        self.0.iter()
    }
}

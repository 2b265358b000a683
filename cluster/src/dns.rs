//! Names: CoreDNS in the namespace `kube-system`, at the addresses that every kubelet gives its pods.

use anyhow::{Context as _, Result};

use crate::Cluster;

/// Of the Service `kube-dns`.
pub(crate) const ADDRESSES: [&str; 2] = ["198.18.128.10", "fd77:0:0:80::10"];
const OBJECTS: &str = include_str!("../dns.yaml");
/// It is Ready 2 to 3 s after the nodes on idle cores.
const DEADLINE: &str = "--timeout=120s";

impl Cluster {
    /// Nobody waits for it: what needs names does ([`Cluster::wait_for_names`]).
    pub(crate) fn start_dns(&self) -> Result<()> {
        self.apply(OBJECTS).context("start DNS")
    }

    /// Returns when names resolve.
    pub fn wait_for_names(&self) -> Result<()> {
        let answer = self.kubectl(&["rollout", "status", "deployment/coredns", "-n", "kube-system", DEADLINE]);
        answer.map(drop).with_context(|| {
            self.kubectl(&["get", "pods,events", "-n", "kube-system", "-o", "wide"]).unwrap_or_default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_have_the_addresses_and_the_image_that_nodes_have() {
        for address in ADDRESSES {
            assert!(OBJECTS.contains(address), "{address}");
        }
        assert!(OBJECTS.contains(&format!("image: {}\n", crate::images::DNS)));
    }
}

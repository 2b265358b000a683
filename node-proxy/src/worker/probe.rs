//! Is this plaintext connection the kubelet's? Only the kernel can tell.
//!
//! Its source must be an address of this node, its port one of the pod's probe or hook ports, *and* a socket with exactly this
//! 4-tuple must exist in the node's own network namespace. Masqueraded traffic from elsewhere carries the node's address too, but
//! there is never such a socket for it. Anything that cannot be asked is not a probe.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_net::diag::Diag;

use super::identify::Identified;
use super::pods::Table;

/// Finds sockets in the node's network namespace.
pub trait Sockets: Send + Sync {
    /// Whether one with exactly these ends exists.
    fn has(&self, local: SocketAddr, remote: SocketAddr) -> bool;
}

/// The kernel's answer, through the thread's own sock_diag socket.
///
/// Until the keeper has given a socket, nothing is a probe.
#[derive(Clone, Default)]
pub struct NodeSockets {
    // One per thread, used without an await in between: the lock is never waited for.
    diag: Arc<Mutex<Option<Diag>>>,
}

impl NodeSockets {
    fn lock(&self) -> MutexGuard<'_, Option<Diag>> {
        self.diag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the socket that the keeper gave.
    pub fn give(&self, diag: Diag) {
        *self.lock() = Some(diag);
    }
}

impl Sockets for NodeSockets {
    fn has(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        let mut diag = self.lock();
        let Some(diag) = diag.as_mut() else { return false };
        diag.has_socket(local, remote).unwrap_or_else(|error| {
            tracing::warn!(%error, %local, %remote, "sock_diag does not answer; the connection is judged as any other");
            false
        })
    }
}

/// Proof that a connection is a probe. Only [`check`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Probe(());

/// Looks at a plaintext connection to a pod.
pub fn check(identified: &Identified, table: &Table, sockets: &dyn Sockets) -> Option<Probe> {
    let (client, destination) = (identified.client(), identified.destination());
    let plausible = table.is_node_address(client.ip())
        && identified.pod().facts().probe_ports.contains(&destination.port())
        && identified.source().is_none();
    // The cheap conditions first: the kernel is asked only for what may be a probe.
    (plausible && sockets.has(client.addr(), destination.addr())).then_some(Probe(()))
}

#[cfg(test)]
mod tests {
    use mesh_api::link::NodeFacts;
    use mesh_model::{ClientAddr, OrigDst};

    use super::super::identify;
    use super::super::pods::Pods;
    use super::super::pods::testing::*;
    use super::*;

    struct Fixed(Vec<(SocketAddr, SocketAddr)>);

    impl Sockets for Fixed {
        fn has(&self, local: SocketAddr, remote: SocketAddr) -> bool {
            self.0.contains(&(local, remote))
        }
    }

    fn is_probe(client: &str, destination: &str) -> bool {
        let pods = Pods::default();
        let pod = pod(1, &facts("shop", "web", "198.18.1.5"));
        pods.add(pod.clone());
        pods.node(&NodeFacts { name: "n".into(), addresses: vec!["198.18.1.1".parse().expect("address")] });
        let addr = |text: &str| text.parse::<SocketAddr>().expect("address");
        let known = [
            ("198.18.1.1:40000", "198.18.1.5:8080"),
            ("198.18.1.1:40000", "198.18.1.5:9090"),
            ("198.18.1.7:40000", "198.18.1.5:8080"),
        ];
        let sockets = Fixed(known.iter().map(|(local, remote)| (addr(local), addr(remote))).collect());
        let (client, destination) = (ClientAddr::new(addr(client)), OrigDst::new(addr(destination)));
        let identified = identify::inbound(&pod, client, Some(destination)).expect("identified");
        check(&identified, &pods.table(), &sockets).is_some()
    }

    #[test]
    fn a_probe_needs_node_address_probe_port_and_the_very_socket() {
        assert!(is_probe("198.18.1.1:40000", "198.18.1.5:8080"));
        // No socket with this 4-tuple on the node: masqueraded from elsewhere.
        assert!(!is_probe("198.18.1.1:40001", "198.18.1.5:8080"));
        // Not a probe port.
        assert!(!is_probe("198.18.1.1:40000", "198.18.1.5:9090"));
        // Not the node's address.
        assert!(!is_probe("198.18.1.7:40000", "198.18.1.5:8080"));
    }
}

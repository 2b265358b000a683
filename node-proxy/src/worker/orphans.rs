//! Whether a caller has closed its socket while its connection is being set up.
//!
//! A `close()` and a half-close are the same on the wire, and a caller that has half-closed waits for its answer. But a calling pod's
//! socket lives in the pod's own network namespace, and there the kernel tells a socket that no process has any more from others
//! (sock_diag). The keeper makes the socket to ask with, once for each pod that needs one. A keeper of the release before does not,
//! and callers from elsewhere cannot be asked about: they wait until the set-up has ended.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_api::link::worker::{Family, Purpose};
use mesh_model::Reason;
use mesh_net::diag::Diag;
use tokio::sync::OnceCell;

use super::mint::Maker;

/// Of one pod, once it was needed.
type Inspector = Arc<OnceCell<Mutex<Diag>>>;

/// Of all pods.
#[derive(Default)]
pub struct Orphans {
    known: Mutex<HashMap<u32, Inspector>>,
}

impl Orphans {
    /// Whether the pod's socket with these ends has been closed. What cannot be asked has not.
    pub async fn is_one(&self, maker: &dyn Maker, slot: u32, local: SocketAddr, remote: SocketAddr) -> bool {
        let inspector = self.known.lock().unwrap_or_else(PoisonError::into_inner).entry(slot).or_default().clone();
        let made = inspector.get_or_try_init(|| async {
            let sockets = maker.mint(slot, Family::V4, Purpose::Inspect, 1).await?;
            sockets.into_iter().next().map(|socket| Mutex::new(Diag::from_fd(socket))).ok_or(Reason::NoSocket)
        });
        // The kernel answers within the call.
        let asked = |diag: &Mutex<Diag>| diag.lock().unwrap_or_else(PoisonError::into_inner).is_orphan(local, remote);
        made.await.is_ok_and(|diag| asked(diag).unwrap_or(false))
    }

    /// The pod is gone.
    pub fn forget(&self, slot: u32) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&slot);
    }
}

//! The configuration: from the control plane by delta ADS, from the last good configuration before and without it.
//!
//! What is published is one immutable snapshot after each answer. Nothing is published until either a last good configuration
//! was loaded or every type was answered once: workloads without their policies would let everything in.

mod client;
mod control_plane;
mod last_good;
mod metrics;
mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mesh_daemon::{ready, tasks};
use mesh_model::Mesh;
use tokio::sync::watch;

pub use control_plane::{ControlPlane, TokenError};
pub use metrics::Metrics;

/// What the client needs to know.
#[derive(Debug)]
pub struct XdsConfig {
    /// This node's name.
    pub node: String,
    /// The cluster's id.
    pub cluster: String,
    /// The trust domains that mean this mesh: a policy that names a principal of one means it in all.
    pub trust_domains: mesh_model::TrustDomains,
    /// This pod's own name and namespace, for the node id; from the downward API.
    pub pod: Option<mesh_model::PodName>,
    /// This pod's own address, for the node id.
    pub instance_ip: Option<std::net::IpAddr>,
    /// The control plane; `None`: only the last good configuration is followed.
    pub control_plane: Option<ControlPlane>,
    /// Directory of the last good configuration.
    pub state_dir: PathBuf,
    /// How often in a row the worker ended within ten seconds of its start, as the supervisor counts.
    pub crashes: u32,
    /// Released when something was published.
    pub latch: Option<ready::Latch>,
    /// Counters.
    pub metrics: Metrics,
}

/// Where a snapshot comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was had yet: no record can be trusted to be absent.
    Nothing,
    /// The last good configuration of an earlier life, maybe with newer records over it.
    LastGood {
        /// When it was written.
        written_at: SystemTime,
    },
    /// The control plane has answered for every type.
    Live,
}

/// One snapshot.
#[derive(Clone, Debug)]
pub struct Published {
    /// All records.
    pub mesh: Arc<Mesh>,
    /// Counts up with each snapshot.
    pub generation: u64,
    /// Where it comes from.
    pub origin: Origin,
    /// When the answer that made it arrived; `None` for what was read from the file.
    pub received: Option<Instant>,
}

impl Published {
    /// Before anything was had.
    pub fn nothing() -> Self {
        Self { mesh: Arc::default(), generation: 0, origin: Origin::Nothing, received: None }
    }
}

/// Loads the last good configuration, then starts the client's task in the group. When this returns, what was loaded is
/// already published.
pub fn start(config: XdsConfig, group: &tasks::Handle) -> watch::Receiver<Arc<Published>> {
    let (task, published) = client::Client::new(config);
    group.spawn("xds", task.run());
    published
}

/// A gRPC status in one line: code, message, and what tonic hides beneath (why the connection failed).
pub(super) fn status_text(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    if let Some(beneath) = std::error::Error::source(status) {
        text.push_str(": ");
        text.push_str(&mesh_daemon::causes(beneath));
    }
    text
}

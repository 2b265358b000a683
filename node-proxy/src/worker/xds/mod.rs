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
use std::time::{Duration, Instant, SystemTime};

use mesh_daemon::{ready, tasks};
use mesh_model::Mesh;
use tokio::sync::{oneshot, watch};

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
    /// How long after it was written a last good configuration may let callers in, unless the control plane has confirmed it since. It
    /// does not matter where there is no control plane.
    pub inbound_age: Duration,
    /// What the last good configuration is held against; `None`: nothing, and it is loaded at once.
    pub guard: Option<Guard>,
}

/// The counter that the last good configuration must not be older than, kept by the keeper (`docs/decisions/0017-last-good-counter.md`).
#[derive(Debug)]
pub struct Guard {
    /// What the keeper says.
    pub floor: watch::Receiver<Floor>,
    /// The counter of the file that was loaded or written last.
    pub written: watch::Sender<u64>,
    /// Dropped when the file has been loaded or will not be.
    pub settled: oneshot::Sender<()>,
}

/// The least counter with which a last good configuration is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floor {
    /// The keeper has not said yet: nothing is believed.
    Unknown,
    /// The keeper is of a release that keeps none.
    NotKept,
    /// This one.
    Is(u64),
}

impl Floor {
    /// Whether a file with this counter is believed.
    fn admits(self, counter: u64) -> bool {
        match self {
            Self::Unknown => false,
            Self::NotKept => true,
            Self::Is(least) => counter >= least,
        }
    }

    /// As a number to count on from.
    fn least(self) -> u64 {
        match self {
            Self::Unknown | Self::NotKept => 0,
            Self::Is(least) => least,
        }
    }
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
/// already published; with a [`Guard`] the task loads it, as soon as the guard says what may be believed.
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

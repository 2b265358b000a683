//! pod-watcher ↔ keeper, `/run/culvert/proxy.sock`: pod-watcher listens, keepers dial.
//!
//! Order: Hello both ways; `Node`; one `Add` per enrolled pod; `SnapshotEnd`; then deltas. After `SnapshotEnd` the keeper lets go of
//! every pod that was not named since the Hello. Each message with an id is acknowledged exactly once, in any order.
//!
//! A second keeper on the node is the first one's successor. Where both name [`HANDOVER`], pod-watcher makes a socket pair and gives an
//! end to each ([`ToKeeper::Successor`], [`ToKeeper::Predecessor`]); on it the older one hands over what it holds
//! ([`super::handover`]), listeners first of all: two keepers then hold the same listening sockets, and no connection is refused when
//! one of them goes. It happens when the second comes, and again when the first says that it leaves ([`FromKeeper::Leaving`]).
//!
//! What a last good configuration must not be older than outlives keepers and the node: where both name [`super::worker::COUNTER`],
//! pod-watcher tells the highest counter after its Hello and whenever it rises, and the keeper tells it what it has seen.
//!
//! The keeper has no network, so what it counts travels here: to a pod-watcher whose Hello names [`STATS`] it sends
//! [`FromKeeper::Stats`] now and then. Others never see one, and a keeper that knows nothing of it is one whose counts are missing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Hello, NodeFacts, PodFacts};

/// Where pod-watcher listens.
pub const SOCKET: &str = "/run/culvert/proxy.sock";

/// pod-watcher's ability to take [`FromKeeper::Stats`].
pub const STATS: &str = "keeper-stats";

/// Both ends' knowledge that rules know the proxy's packets by its sockets: to a pod-watcher that names it a keeper gives listeners the
/// pod's mark and makes them transparent before it acknowledges the pod, and one that does not name it cannot serve such rules.
pub const OWNED: &str = "owned-packets";

/// Both ends' ability to take part in a hand-over.
pub const HANDOVER: &str = "hand-over";

/// pod-watcher's packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToKeeper {
    /// First.
    Hello(Hello),
    /// Facts of the node; sent after Hello and whenever they change. Descriptors: none.
    Node(NodeFacts),
    /// Spare sock_diag sockets opened in the node's netns, in answer to [`FromKeeper::WantDiag`]. Descriptors: up to 16 of them.
    Diag,
    /// Hand over what you hold to whoever is at the other end of this. Descriptor: one end of a socket pair.
    Successor,
    /// Take over what is handed to you here, before you read on. Descriptor: the other end.
    Predecessor,
    /// The highest counter of a last good configuration that was seen on this node. Only to a keeper that names
    /// [`super::worker::COUNTER`].
    Counter {
        /// The highest.
        highest: u64,
    },
    /// Serve this pod. Descriptor: its netns. Acked when all listeners are open and the worker has acknowledged the pod.
    Add {
        /// To be acknowledged.
        id: u64,
        /// The pod.
        pod: PodFacts,
    },
    /// Facts of a served pod changed (probe ports, addresses). Acked by the worker.
    Update {
        /// To be acknowledged.
        id: u64,
        /// The pod.
        pod: PodFacts,
    },
    /// Stop serving this pod. With `drain`, open connections live on up to the drain deadline (opt-out); without, they end
    /// (the pod is gone). Acked when the listeners are closed and the netns is let go.
    Del {
        /// To be acknowledged.
        id: u64,
        /// Pod uid.
        uid: String,
        /// Whether connections may live on.
        drain: bool,
    },
    /// All pods have been named.
    SnapshotEnd {
        /// To be acknowledged.
        id: u64,
    },
}

/// The keeper's packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromKeeper {
    /// First.
    Hello(Hello),
    /// The message with this id took effect, or why not.
    Ack {
        /// Id of the message.
        id: u64,
        /// `None`: done.
        refused: Option<Refused>,
    },
    /// It was asked to stop, and stays until its worker has drained: new pods are for others. Only to a pod-watcher with [`HANDOVER`].
    Leaving,
    /// The keeper's stock of sock_diag sockets is short.
    WantDiag {
        /// How many more it would like.
        count: u8,
    },
    /// The highest counter of a last good configuration that it has seen. Only to a pod-watcher that names
    /// [`super::worker::COUNTER`].
    Counter {
        /// The highest.
        highest: u64,
    },
    /// What it has counted; only to a pod-watcher that asked for it by [`STATS`].
    Stats(KeeperStats),
}

/// What a keeper counts since its start, and what it holds and uses now. Every field may be missing, for later ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeeperStats {
    /// Requests for sockets that the worker made.
    pub mint_requests: u64,
    /// Sockets made in pods' namespaces and handed to a worker.
    pub minted: u64,
    /// Requests of the worker that got fewer sockets than were asked for, by [`mesh_model::Reason`].
    pub mint_short: BTreeMap<String, u64>,
    /// Requests of pod-watcher that were refused, by [`mesh_model::Reason`].
    pub refused: BTreeMap<String, u64>,
    /// Listening sockets opened in pods' namespaces.
    pub listeners_opened: u64,
    /// Listening sockets handed to workers; each new worker gets all of them.
    pub listeners_handed: u64,
    /// Workers that have greeted us.
    pub workers: u64,
    /// Workers that went away.
    pub workers_lost: u64,
    /// Whether a worker is there.
    pub worker_up: bool,
    /// Pods held.
    pub pods: u64,
    /// Spare sock_diag sockets.
    pub spare_diag: u64,
    /// Whether certificates are kept for a successor of the worker.
    pub certificates_kept: bool,
    /// User and system CPU time, in microseconds.
    pub cpu_micros: u64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// Most descriptors it may open.
    pub max_fds: u64,
    /// When it started, in milliseconds since the epoch: tells a new keeper's counts from an old one's.
    pub start_millis: u64,
    /// Its build.
    pub version: String,
}

/// Why a pod cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The [`mesh_model::Reason`] name; `Conflict` when an app listens on one of our ports.
    pub reason: String,
    /// The cause with its object, for a person.
    pub message: String,
}

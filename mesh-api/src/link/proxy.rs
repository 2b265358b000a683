//! pod-watcher ↔ keeper, `/run/culvert/proxy.sock`: pod-watcher listens, keepers dial.
//!
//! Order: Hello both ways; `Node`; one `Add` per enrolled pod; `SnapshotEnd`; then deltas. After `SnapshotEnd` the keeper lets go of
//! every pod that was not named since the Hello. Each message with an id is acknowledged exactly once, in any order.

use serde::{Deserialize, Serialize};

use super::{Hello, NodeFacts, PodFacts};

/// Where pod-watcher listens.
pub const SOCKET: &str = "/run/culvert/proxy.sock";

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
    /// The keeper's stock of sock_diag sockets is short.
    WantDiag {
        /// How many more it would like.
        count: u8,
    },
}

/// Why a pod cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The [`mesh_model::Reason`] name; `Conflict` when an app listens on one of our ports.
    pub reason: String,
    /// The cause with its object, for a person.
    pub message: String,
}

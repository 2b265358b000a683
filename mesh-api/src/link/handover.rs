//! keeper → its successor, on a socket pair that pod-watcher made for the two (see [`super::proxy`]).
//!
//! One direction, no answer: every pod that is held, the worker's certificates if some are kept, [`Handed::End`]. The other end takes
//! what it can use; what does not come, it opens itself.

use serde::{Deserialize, Serialize};

/// The older keeper's packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handed {
    /// A pod's listeners. Descriptors: in the order of [`super::worker::LISTENERS`].
    Pod {
        /// Pod uid.
        uid: String,
        /// The pod's netns as (device, inode): a pod whose sandbox was made anew is another one.
        netns: (u64, u64),
    },
    /// What the worker left for its successor, unread. Descriptor: the memfd.
    Certificates,
    /// That was all.
    End,
}

//! The unix links between Culvert's processes: SOCK_SEQPACKET, one message a packet, descriptors on the message they belong to.
//!
//! ```text
//! cni-plugin ──cni──► pod-watcher ◄──proxy── keeper ◄──worker── worker      (arrow: who dials)
//! ```
//!
//! Every link starts with a [`Hello`] from both sides. After it: a snapshot, an end marker, then deltas, each carrying an id that
//! the receiver acknowledges. Messages are JSON ([`encode`]/[`decode`]), except worker → keeper: the keeper trusts the worker with
//! nothing, so those are fixed-size records ([`worker::FromWorker`]) with no parser to attack.

pub mod cni;
pub mod facts;
pub mod handover;
pub mod proxy;
pub mod state_dir;
pub mod worker;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use facts::{NodeFacts, PodFacts};

/// The newest link version this build speaks.
pub const VERSION: u32 = 1;
/// The oldest link version this build speaks (N-1, once there is one).
pub const OLDEST_VERSION: u32 = 1;
/// What every message is made to fit into, by whoever makes it: a pod's facts are under 2 KiB, the rest is room for growth. Nothing here
/// looks at it; the sockets refuse what is longer than twice this, when it is sent and when it is received.
pub const MAX_PACKET: usize = 64 * 1024;

/// First message of both sides on every link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender, for logs: `cni-plugin`, `pod-watcher`, `keeper`, `worker`.
    pub component: String,
    /// Oldest version the sender speaks.
    pub oldest: u32,
    /// Newest version the sender speaks.
    pub newest: u32,
    /// Named abilities beyond the version; unknown ones are ignored.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

impl Hello {
    /// This build's greeting.
    pub fn of(component: &str) -> Self {
        Self { component: component.to_owned(), oldest: OLDEST_VERSION, newest: VERSION, capabilities: Vec::new() }
    }

    /// The same with a named ability.
    pub fn with(mut self, capability: &str) -> Self {
        self.capabilities.push(capability.to_owned());
        self
    }

    /// Whether the sender has a named ability.
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|known| known == capability)
    }

    /// The newest version both sides speak.
    pub fn agree(&self) -> Result<u32, LinkError> {
        let version = self.newest.min(VERSION);
        if version >= self.oldest.max(OLDEST_VERSION) {
            Ok(version)
        } else {
            Err(LinkError::Version { component: self.component.clone(), oldest: self.oldest, newest: self.newest })
        }
    }
}

/// A message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Not a message of this link.
    #[error("message on the {link} link cannot be read")]
    Malformed {
        /// Which link.
        link: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No common version.
    #[error("{component} speaks link versions {oldest} to {newest}, this build {OLDEST_VERSION} to {VERSION}")]
    Version {
        /// The peer.
        component: String,
        /// Its oldest.
        oldest: u32,
        /// Its newest.
        newest: u32,
    },
}

/// One packet from a message.
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    serde_json::to_vec(message).expect("link messages hold only strings, numbers, lists and maps with string keys")
}

/// A message from one packet.
pub fn decode<M: DeserializeOwned>(link: &'static str, packet: &[u8]) -> Result<M, LinkError> {
    serde_json::from_slice(packet).map_err(|source| LinkError::Malformed { link, source })
}

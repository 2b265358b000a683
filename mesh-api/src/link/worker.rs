//! keeper ↔ worker, a socket in the emptyDir they share: the keeper listens, the worker dials.
//!
//! Order: Hello both ways (the worker's as a fixed-size record); `Node`; `Certificates` if an earlier worker left some, later if a
//! predecessor of the keeper hands them over later; one `Pod` per pod; `SnapshotEnd`; then deltas.
//! A pod is called by its `slot`, a small number that is never reused within one keeper.

use mesh_model::ports;
use serde::{Deserialize, Serialize};

use super::{Hello, NodeFacts, PodFacts};

/// Descriptors of one pod's listeners, in this order on the `Pod` message. Each is a dual-stack `[::]` listener.
pub const LISTENERS: [u16; 3] = [ports::OUTBOUND, ports::INBOUND, ports::TUNNEL];
/// The keeper's ability to keep the highest counter of a last good configuration, named in its Hello. A worker says
/// [`FromWorker::Counter`] to such a keeper alone: an older one would take it for garbage and cut the link.
pub const COUNTER: &str = "last-good-counter";
/// The keeper's ability to mint [`Purpose::Inspect`], named in its Hello. An older one would take such a request for garbage and cut the
/// link.
pub const INSPECT: &str = "pod-sockets";
/// Most sockets that one mint request may ask for.
pub const MAX_MINT: u8 = 64;

/// The keeper's packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// First.
    Hello(Hello),
    /// Facts of the node. Descriptors: sock_diag sockets for this worker alone, one per thread, on the first such message.
    Node(NodeFacts),
    /// Certificates that an earlier worker left. Descriptor: the memfd.
    Certificates,
    /// Serve this pod. Descriptors: its listeners, in the order of [`LISTENERS`].
    Pod {
        /// To be acknowledged.
        id: u64,
        /// The keeper's number for the pod.
        slot: u32,
        /// The pod.
        pod: PodFacts,
    },
    /// Facts of a served pod changed.
    Update {
        /// To be acknowledged.
        id: u64,
        /// The pod's slot.
        slot: u32,
        /// The pod.
        pod: PodFacts,
    },
    /// Stop serving; acked when its listeners are closed (connections may still drain).
    Gone {
        /// To be acknowledged.
        id: u64,
        /// The pod's slot.
        slot: u32,
        /// Whether open connections may live on up to the drain deadline.
        drain: bool,
    },
    /// All pods have been named.
    SnapshotEnd {
        /// To be acknowledged.
        id: u64,
    },
    /// The highest counter that was seen on this node: an older configuration is not to be believed. Sent to a worker that has said
    /// [`FromWorker::Counter`], in answer to it and whenever it rises.
    Counter {
        /// The highest.
        highest: u64,
    },
    /// Answer to a mint request. Descriptors: the sockets; fewer than asked (even none) when the pod is gone or a limit is reached.
    Minted {
        /// The request's number.
        request: u32,
        /// Set when there is less than was asked for: the [`mesh_model::Reason`] name.
        short: Option<String>,
    },
}

/// What a minted socket is for; decides its options. All carry the pod's mark and are made in the pod's netns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Towards the pod's own application, from a foreign source address: IP(V6)_TRANSPARENT, FREEBIND, BIND_ADDRESS_NO_PORT,
    /// REUSEADDR, bound to `lo`.
    TowardsApp,
    /// From the pod to the world: a tunnel or a passthrough connection.
    TowardsPeer,
    /// To ask the kernel about the pod's sockets (sock_diag): whether one that called the proxy has been closed. Of no family; the request
    /// names any. Only of a keeper that names [`INSPECT`].
    Inspect,
}

/// Address family of a minted socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

/// The worker's packets: one fixed size, no parser. Layout (little-endian): kind u8 · a u8 · b u8 · c u8 · slot-or-newest u32 ·
/// id u64 · 16 bytes zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromWorker {
    /// First: versions it speaks and how many threads it runs (it gets as many sock_diag sockets).
    Hello {
        /// Oldest.
        oldest: u8,
        /// Newest.
        newest: u8,
        /// Threads.
        threads: u8,
    },
    /// The message with this id took effect.
    Ack {
        /// Its id.
        id: u64,
    },
    /// It did not. The reason is an index into [`mesh_model::Reason::ALL`].
    Nack {
        /// Its id.
        id: u64,
        /// The reason.
        reason: mesh_model::Reason,
    },
    /// Mint sockets.
    Mint {
        /// Echoed in the answer.
        request: u32,
        /// In which pod.
        slot: u32,
        /// Which family.
        family: Family,
        /// What for.
        purpose: Purpose,
        /// How many, 1 to [`MAX_MINT`].
        count: u8,
    },
    /// Keep this memfd for my successor, unread; replaces the one kept. Descriptor: the memfd.
    Keep,
    /// The last good configuration on the disk has this counter. 0: none is known, which asks for the highest and tells nothing. Only to
    /// a keeper that names [`COUNTER`].
    Counter {
        /// The counter.
        counter: u64,
    },
}

/// Size of every worker packet.
pub const RECORD: usize = 32;

/// A worker packet is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("worker record is malformed")]
pub struct BadRecord;

impl FromWorker {
    /// The packet.
    pub fn to_bytes(self) -> [u8; RECORD] {
        let (head, word, id): ([u8; 4], u32, u64) = match self {
            FromWorker::Hello { oldest, newest, threads } => ([1, oldest, newest, threads], 0, 0),
            FromWorker::Ack { id } => ([2, 0, 0, 0], 0, id),
            FromWorker::Nack { id, reason } => {
                let index = mesh_model::Reason::ALL.iter().position(|known| *known == reason).unwrap_or(0);
                ([3, index as u8, 0, 0], 0, id)
            }
            FromWorker::Mint { request, slot, family, purpose, count } => {
                let family = match family {
                    Family::V4 => 4,
                    Family::V6 => 6,
                };
                let purpose = match purpose {
                    Purpose::TowardsApp => 1,
                    Purpose::TowardsPeer => 2,
                    Purpose::Inspect => 3,
                };
                ([4, family, purpose, count], slot, u64::from(request))
            }
            FromWorker::Keep => ([5, 0, 0, 0], 0, 0),
            FromWorker::Counter { counter } => ([6, 0, 0, 0], 0, counter),
        };
        let mut out = [0; RECORD];
        out[..4].copy_from_slice(&head);
        out[4..8].copy_from_slice(&word.to_le_bytes());
        out[8..16].copy_from_slice(&id.to_le_bytes());
        out
    }

    /// From a packet. Every byte is checked: the keeper believes nothing else about the sender.
    pub fn from_bytes(packet: &[u8]) -> Result<Self, BadRecord> {
        let packet: &[u8; RECORD] = packet.try_into().map_err(|_| BadRecord)?;
        let [kind, a, b, c, w0, w1, w2, w3, i0, i1, i2, i3, i4, i5, i6, i7, rest @ ..] = *packet;
        if rest != [0; 16] {
            return Err(BadRecord);
        }
        let word = u32::from_le_bytes([w0, w1, w2, w3]);
        let id = u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
        match (kind, a, b, c, word, id) {
            (1, oldest, newest, threads, 0, 0) => Ok(FromWorker::Hello { oldest, newest, threads }),
            (2, 0, 0, 0, 0, id) => Ok(FromWorker::Ack { id }),
            (3, index, 0, 0, 0, id) => {
                let reason = *mesh_model::Reason::ALL.get(usize::from(index)).ok_or(BadRecord)?;
                Ok(FromWorker::Nack { id, reason })
            }
            (4, family, purpose, count, slot, request) => Ok(FromWorker::Mint {
                request: u32::try_from(request).map_err(|_| BadRecord)?,
                slot,
                family: match family {
                    4 => Family::V4,
                    6 => Family::V6,
                    _ => return Err(BadRecord),
                },
                purpose: match purpose {
                    1 => Purpose::TowardsApp,
                    2 => Purpose::TowardsPeer,
                    3 => Purpose::Inspect,
                    _ => return Err(BadRecord),
                },
                count: if (1..=MAX_MINT).contains(&count) { count } else { return Err(BadRecord) },
            }),
            (5, 0, 0, 0, 0, 0) => Ok(FromWorker::Keep),
            (6, 0, 0, 0, 0, counter) => Ok(FromWorker::Counter { counter }),
            _ => Err(BadRecord),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [FromWorker; 7] = [
        FromWorker::Hello { oldest: 1, newest: 1, threads: 2 },
        FromWorker::Ack { id: 7 },
        FromWorker::Nack { id: 8, reason: mesh_model::Reason::NotReady },
        FromWorker::Mint { request: 9, slot: 3, family: Family::V6, purpose: Purpose::TowardsApp, count: 64 },
        FromWorker::Keep,
        FromWorker::Counter { counter: u64::MAX },
        FromWorker::Mint { request: 10, slot: 3, family: Family::V4, purpose: Purpose::Inspect, count: 1 },
    ];

    #[test]
    fn every_record_reads_back() {
        for record in ALL {
            assert_eq!(FromWorker::from_bytes(&record.to_bytes()), Ok(record));
        }
    }

    #[test]
    fn a_record_with_any_byte_out_of_place_is_refused_or_another_valid_record() {
        for record in ALL {
            for position in 16..RECORD {
                let mut bytes = record.to_bytes();
                bytes[position] = 1;
                assert_eq!(FromWorker::from_bytes(&bytes), Err(BadRecord));
            }
        }
        for count in [0, 65, 255] {
            let mut bytes = ALL[3].to_bytes();
            bytes[3] = count;
            assert_eq!(FromWorker::from_bytes(&bytes), Err(BadRecord));
        }
        assert_eq!(FromWorker::from_bytes(&[]), Err(BadRecord));
        assert_eq!(FromWorker::from_bytes(&[2; RECORD + 1]), Err(BadRecord));
    }
}

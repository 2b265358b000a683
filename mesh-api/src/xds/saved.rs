//! The last good configuration as a file: what the control plane sent, kept so that a node can start and judge without it.
//!
//! Layout, numbers little-endian: magic (8 bytes) · schema u32 · payload length u64 · payload (`culvert.saved.v1.Saved`) · CRC-64 of
//! everything before. The checksum finds decay and torn writes, not forgery: the file's owner and mode keep others out. It holds no
//! secrets. What is refused here is set aside by the caller, who then starts as if there were nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;

#[allow(missing_docs, clippy::all)]
mod wire {
    tonic::include_proto!("culvert.saved.v1");
}

const MAGIC: &[u8; 8] = b"CULVERT\n";
/// Changed when an older reader would misread the payload; a reader takes its own schema only.
const SCHEMA: u32 = 1;
const HEADER: usize = 8 + 4 + 8;
const CHECKSUM: usize = 8;

/// One xDS resource as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedResource {
    /// Type.
    pub type_url: String,
    /// Name.
    pub name: String,
    /// Version, as the sender gave it.
    pub version: String,
    /// The message.
    pub body: Vec<u8>,
}

/// A last good configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The node it was meant for.
    pub node: String,
    /// The cluster it was meant for.
    pub cluster: String,
    /// When it was written.
    pub written_at: SystemTime,
    /// Everything, in the sender's order.
    pub resources: Vec<SavedResource>,
    /// One more than any that was seen on the node before it was written: an older file cannot pass for it. 0: not counted.
    pub counter: u64,
}

/// A file is not a last good configuration of this node.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadSaved {
    /// Not our file.
    #[error("the file does not start as a saved configuration does")]
    Magic,
    /// Written by another build.
    #[error("the file has schema {0}, this build reads {SCHEMA}")]
    Schema(u32),
    /// Cut short, or longer than it says.
    #[error("the file has {found} bytes and should have {expected}")]
    Length {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// Changed after it was written.
    #[error("the file's checksum does not fit its content")]
    Checksum,
    /// The payload is not the message it should be.
    #[error("the file's payload cannot be decoded")]
    Payload(#[source] prost::DecodeError),
    /// A time that no clock shows.
    #[error("the file's time of writing is out of range")]
    Time,
    /// Of another node or cluster.
    #[error("the file is of node {node:?} in cluster {cluster:?}")]
    Elsewhere {
        /// The node it names.
        node: String,
        /// The cluster it names.
        cluster: String,
    },
}

impl Saved {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let Self { node, cluster, written_at, resources, counter } = self;
        // A clock before 1970 is written as 1970: the age then is too great, never too small.
        let written = written_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let payload = wire::Saved {
            node: node.clone(),
            cluster: cluster.clone(),
            written_seconds: written.as_secs(),
            written_nanos: written.subsec_nanos(),
            resources: resources.iter().map(to_wire).collect(),
            counter: *counter,
        };
        let length = payload.encoded_len();
        let mut file = Vec::with_capacity(HEADER + length + CHECKSUM);
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&SCHEMA.to_le_bytes());
        file.extend_from_slice(&(length as u64).to_le_bytes());
        payload.encode(&mut file).expect("a Vec grows as it is written to");
        file.extend_from_slice(&crc64(&file).to_le_bytes());
        file
    }

    /// Reads a file's bytes; whatever is not exactly what [`Saved::encode`] writes is refused.
    pub fn decode(file: &[u8]) -> Result<Self, BadSaved> {
        let length = |expected: u64| BadSaved::Length { found: file.len() as u64, expected };
        if !file.starts_with(MAGIC) {
            return Err(BadSaved::Magic);
        }
        let least = length((HEADER + CHECKSUM) as u64);
        let (header, rest) = file.split_first_chunk::<HEADER>().ok_or_else(|| least.clone())?;
        let [_, _, _, _, _, _, _, _, s0, s1, s2, s3, l0, l1, l2, l3, l4, l5, l6, l7] = *header;
        let schema = u32::from_le_bytes([s0, s1, s2, s3]);
        if schema != SCHEMA {
            return Err(BadSaved::Schema(schema));
        }
        let (payload, checksum) = rest.split_last_chunk::<CHECKSUM>().ok_or(least)?;
        let said = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        if said != payload.len() as u64 {
            return Err(length(said.saturating_add((HEADER + CHECKSUM) as u64)));
        }
        if u64::from_le_bytes(*checksum) != crc64(&file[..file.len() - CHECKSUM]) {
            return Err(BadSaved::Checksum);
        }
        let wire::Saved { node, cluster, written_seconds, written_nanos, resources, counter } =
            wire::Saved::decode(payload).map_err(BadSaved::Payload)?;
        if written_nanos >= 1_000_000_000 {
            return Err(BadSaved::Time);
        }
        let written_at = UNIX_EPOCH.checked_add(Duration::new(written_seconds, written_nanos)).ok_or(BadSaved::Time)?;
        let resources = resources.into_iter().map(from_wire).collect();
        Ok(Self { node, cluster, written_at, resources, counter })
    }

    /// Whether it was meant for this node of this cluster: a copied disk or a renamed node must not bring another's policies.
    pub fn belongs_to(&self, node: &str, cluster: &str) -> Result<(), BadSaved> {
        if self.node == node && self.cluster == cluster {
            Ok(())
        } else {
            Err(BadSaved::Elsewhere { node: self.node.clone(), cluster: self.cluster.clone() })
        }
    }
}

/// [`Saved::decode`] as a function.
pub fn decode(file: &[u8]) -> Result<Saved, BadSaved> {
    Saved::decode(file)
}

fn to_wire(resource: &SavedResource) -> wire::Resource {
    let SavedResource { type_url, name, version, body } = resource.clone();
    wire::Resource { type_url, name, version, body }
}

fn from_wire(resource: wire::Resource) -> SavedResource {
    let wire::Resource { type_url, name, version, body } = resource;
    SavedResource { type_url, name, version, body }
}

/// CRC-64/XZ (ECMA-182 polynomial, reflected): finds every error of up to 64 neighbouring bits.
pub(super) fn crc64(bytes: &[u8]) -> u64 {
    const TABLE: [u64; 256] = table();
    !bytes.iter().fold(!0, |crc: u64, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const fn table() -> [u64; 256] {
    const POLYNOMIAL: u64 = 0xc96c_5795_d787_0f42;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn saved() -> impl Strategy<Value = Saved> {
        let resource = ("[a-z./]{0,12}", "[a-z/]{0,12}", "[0-9a-f]{0,4}", prop::collection::vec(any::<u8>(), 0..40));
        let resource =
            resource.prop_map(|(type_url, name, version, body)| SavedResource { type_url, name, version, body });
        let time = (0..1u64 << 40, 0..1_000_000_000u32).prop_map(|(s, n)| UNIX_EPOCH + Duration::new(s, n));
        ("[a-z0-9-]{0,12}", "[A-Za-z]{0,12}", time, prop::collection::vec(resource, 0..5), any::<u64>()).prop_map(
            |(node, cluster, written_at, resources, counter)| Saved { node, cluster, written_at, resources, counter },
        )
    }

    fn sample() -> Saved {
        let body = (0..=255).collect();
        let name = "shop/p".to_owned();
        let resource = SavedResource {
            type_url: super::super::AUTHORIZATION_TYPE.to_owned(),
            name,
            version: "7".to_owned(),
            body,
        };
        let written_at = UNIX_EPOCH + Duration::new(1_800_000_000, 5);
        let (node, cluster) = ("node-1".to_owned(), "Kubernetes".to_owned());
        Saved { node, cluster, written_at, resources: vec![resource], counter: 7 }
    }

    #[test]
    fn the_checksum_is_crc_64_xz() {
        // The check value of the catalogue of parametrised CRC algorithms.
        assert_eq!(crc64(b"123456789"), 0x995d_c9bb_df19_39fa);
    }

    #[test]
    fn any_changed_byte_any_cut_and_anything_added_is_refused() {
        let file = sample().encode();
        assert_eq!(decode(&file), Ok(sample()));
        for at in 0..file.len() {
            for bits in [1u8, 0x80, 0xff] {
                let mut damaged = file.clone();
                damaged[at] ^= bits;
                assert!(decode(&damaged).is_err(), "byte {at} changed by {bits:#x} was not noticed");
            }
            assert!(decode(&file[..at]).is_err(), "a file cut at {at} was read");
        }
        assert!(decode(&[file.as_slice(), b"\0"].concat()).is_err());
    }

    #[test]
    fn a_file_of_another_schema_or_node_is_named_as_such() {
        let mut file = sample().encode();
        file[8] = 2;
        assert_eq!(decode(&file), Err(BadSaved::Schema(2)));
        assert_eq!(decode(b"PNG"), Err(BadSaved::Magic));
        assert_eq!(sample().belongs_to("node-1", "Kubernetes"), Ok(()));
        assert!(matches!(sample().belongs_to("node-2", "Kubernetes"), Err(BadSaved::Elsewhere { .. })));
        assert!(matches!(sample().belongs_to("node-1", "other"), Err(BadSaved::Elsewhere { .. })));
    }

    /// As a build writes that knows no counter: read as "not counted", and what this build adds is passed over by that one.
    #[test]
    fn a_file_without_a_counter_is_read_and_counts_as_the_oldest() {
        let bare = Saved { counter: 0, ..sample() };
        assert_eq!(decode(&bare.encode()).map(|saved| saved.counter), Ok(0));
        let field = sample().encode().len() - bare.encode().len();
        assert_eq!(field, 2, "one small field at the end: its tag and its value");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(saved in saved()) {
            prop_assert_eq!(decode(&saved.encode()), Ok(saved));
        }

        #[test]
        fn any_changed_byte_of_any_file_is_refused(saved in saved(), at in any::<prop::sample::Index>(), bits in 1..=255u8) {
            let mut file = saved.encode();
            *at.get_mut(&mut file) ^= bits;
            prop_assert!(decode(&file).is_err());
        }

        #[test]
        fn garbage_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
            if magic {
                bytes.splice(0..0, MAGIC.iter().copied());
            }
            prop_assert!(decode(&bytes).is_err());
        }
    }
}

//! A pod as the node knows it: from the CNI call and the pod's own record, never from `status.podIP`.

use std::fmt;

/// Kubernetes' `metadata.uid` of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(String);

/// The text cannot be a pod uid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "pod uid {0:?} is empty, longer than 63 bytes or holds characters other than letters, digits, '-', '_' and '.'"
)]
pub struct BadPodUid(String);

impl PodUid {
    /// Checks the text: it becomes part of file names and log fields. Kubernetes uses UUIDs (static pods: a hex hash).
    pub fn parse(text: &str) -> Result<Self, BadPodUid> {
        let fine = !text.is_empty()
            && text.len() <= 63
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !text.starts_with('.');
        if fine { Ok(Self(text.to_owned())) } else { Err(BadPodUid(text.chars().take(80).collect())) }
    }

    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Namespace and name of a pod; printed `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name within the namespace.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The packet mark of one enrolment: 31 random bits, never zero. It alone exempts a socket from capture, so it is a secret
/// towards the pod (a pod with NET_RAW may set any mark it can guess).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark(u32);

impl Mark {
    /// The bits of the packet mark that we compare and set; the top bit is left to others.
    pub const MASK: u32 = 0x7fff_ffff;

    /// From 32 random bits (masked). `None` for zero and for values that other meshes reserve (`0x539`, `0x111`).
    pub fn from_random(bits: u32) -> Option<Self> {
        match bits & Self::MASK {
            0 | 0x539 | 0x111 => None,
            mark => Some(Self(mark)),
        }
    }

    /// The value for `SO_MARK` and for rules, compared under [`Mark::MASK`].
    pub const fn value(self) -> u32 {
        self.0
    }
}

// Not printed: whoever reads a log must not learn how to escape capture.
impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<mark>")
    }
}

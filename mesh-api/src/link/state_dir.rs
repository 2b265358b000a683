//! The files that pod-watcher and the plugin share in `stateDir`, so that the plugin can decide while pod-watcher is down.
//!
//! `last-good-counter` is pod-watcher's own: the highest counter of a last good configuration that a worker of this node has told of.
//!
//! `namespaces` is written by pod-watcher (atomically, root-owned, survives a reboot) and read by the plugin. `pending/` holds one
//! marker a container, left by the plugin when pod-watcher could not be asked, and worked off by pod-watcher on its return.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cni::Attachment;

/// Version of both files; a reader refuses any other.
pub const VERSION: u32 = 1;
/// Largest file either side reads.
pub const MAX_FILE: usize = 4 * 1024 * 1024;

/// What a namespace is to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It, or a pod in it, is in the mesh: an ADD must wait for pod-watcher.
    Enrolled,
    /// Nothing in it is in the mesh: an ADD may pass, and is worked off later.
    Plain,
    /// Excluded by pod-watcher's configuration: never enrolled.
    Excluded,
    /// The mesh's own.
    Own,
}

/// The file `namespaces`. A namespace that is not listed is unknown, which is not the same as plain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// [`VERSION`].
    pub version: u32,
    /// By name.
    pub namespaces: BTreeMap<String, Standing>,
}

/// The file `last-good-counter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGoodCounter {
    /// [`VERSION`].
    pub version: u32,
    /// The highest.
    pub highest: u64,
}

impl LastGoodCounter {
    /// Where it is.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("last-good-counter")
    }

    /// From the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let read: Self = serde_json::from_slice(bytes)?;
        if read.version == VERSION { Ok(read) } else { Err(BadState::Version(read.version)) }
    }
}

/// A marker or the namespaces file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadState {
    /// Not of this form.
    #[error("state file cannot be read")]
    Malformed(#[from] serde_json::Error),
    /// Of a version this build does not know.
    #[error("state file has version {0}, this build knows {VERSION}")]
    Version(u32),
}

impl Namespaces {
    /// Where it is.
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("namespaces")
    }

    /// From the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let read: Self = serde_json::from_slice(bytes)?;
        if read.version == VERSION { Ok(read) } else { Err(BadState::Version(read.version)) }
    }
}

/// Which call left a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkedVerb {
    /// The pod was let through without asking.
    Add,
    /// The container is gone and pod-watcher was not told.
    Del,
}

/// One file in `pending/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// [`VERSION`].
    pub version: u32,
    /// What happened.
    pub verb: MarkedVerb,
    /// To whom.
    pub attachment: Attachment,
}

impl Marker {
    /// The directory of markers.
    pub fn dir(state_dir: &Path) -> PathBuf {
        state_dir.join("pending")
    }

    /// The file name: one per container and interface, so that a DEL replaces the ADD it undoes. Both parts are checked by the
    /// plugin to hold no '/'; what is not a plain file name character is written as '_' all the same.
    pub fn file_name(attachment: &Attachment) -> String {
        let plain = |text: &str| -> String {
            text.chars()
                .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' })
                .collect()
        };
        format!("{}@{}.json", plain(&attachment.container_id), plain(&attachment.ifname))
    }

    /// From the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadState> {
        let read: Self = serde_json::from_slice(bytes)?;
        if read.version == VERSION { Ok(read) } else { Err(BadState::Version(read.version)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_version_one_stay_readable() {
        let namespaces = br#"{"version":1,"namespaces":{"shop":"enrolled","tools":"plain","kube-system":"excluded","culvert-system":"own"}}"#;
        let read = Namespaces::decode(namespaces).expect("frozen bytes");
        assert_eq!(read.namespaces["tools"], Standing::Plain);
        assert_eq!(serde_json::to_vec(&read).expect("encodes").len(), namespaces.len());
        let marker = br#"{"version":1,"verb":"del","attachment":{"container_id":"c1","ifname":"eth0","pod_namespace":"shop","pod_name":"cart","pod_uid":"","addresses":[]}}"#;
        let counter = br#"{"version":1,"highest":18446744073709551615}"#;
        let read = LastGoodCounter::decode(counter).expect("frozen bytes");
        assert_eq!((read.highest, serde_json::to_vec(&read).expect("encodes")), (u64::MAX, counter.to_vec()));
        let read = Marker::decode(marker).expect("frozen bytes");
        assert_eq!((read.verb, Marker::file_name(&read.attachment).as_str()), (MarkedVerb::Del, "c1@eth0.json"));
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let error = Namespaces::decode(br#"{"version":2,"namespaces":{}}"#).expect_err("unknown version");
        assert_eq!(error.to_string(), "state file has version 2, this build knows 1");
    }
}

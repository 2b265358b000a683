//! The last good configuration as a file: read at start, written after changes, set aside when it is broken or suspected.
//!
//! It holds no secret, but it decides who may speak: 0600, written beside and renamed into place after fsync, with node, cluster,
//! schema and checksum inside (`mesh_api::xds::saved`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mesh_api::xds::saved::{BadSaved, Saved, SavedResource};

/// The file's name in the state directory.
pub(super) const NAME: &str = "last-good";
/// Where a broken or suspected one goes; the next one replaces it.
const ASIDE: &str = "last-good.bad";
/// Larger files are not ours: 100,000 records of 1 KiB, and room.
const LARGEST: u64 = 256 << 20;

/// One node's last good configuration.
#[derive(Clone, Debug)]
pub(super) struct LastGood {
    dir: PathBuf,
    node: String,
    cluster: String,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    /// No file.
    Nothing,
    /// Ours and whole.
    Good(Saved),
    /// Whole, and of another node or cluster: left alone.
    Elsewhere(BadSaved),
    /// Broken: set aside.
    Broken(BadSaved),
}

impl LastGood {
    pub(super) fn new(dir: &Path, node: &str, cluster: &str) -> Self {
        Self { dir: dir.to_owned(), node: node.to_owned(), cluster: cluster.to_owned() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the file; a broken one is set aside.
    pub(super) fn load(&self) -> io::Result<Found> {
        let mut bytes = Vec::new();
        match File::open(self.dir.join(NAME)) {
            Ok(file) => file.take(LARGEST + 1).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        match Saved::decode(&bytes) {
            Ok(saved) => Ok(match saved.belongs_to(&self.node, &self.cluster) {
                Ok(()) => Found::Good(saved),
                Err(error) => Found::Elsewhere(error),
            }),
            Err(error) => {
                self.set_aside()?;
                Ok(Found::Broken(error))
            }
        }
    }

    /// Moves the file out of the way; whether there was one.
    pub(super) fn set_aside(&self) -> io::Result<bool> {
        match std::fs::rename(self.dir.join(NAME), self.dir.join(ASIDE)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the file. Blocks for the disk.
    pub(super) fn save(&self, resources: Vec<SavedResource>, counter: u64) -> io::Result<()> {
        let (node, cluster) = (self.node.clone(), self.cluster.clone());
        let bytes = Saved { node, cluster, written_at: SystemTime::now(), resources, counter }.encode();
        let temporary = self.dir.join(".last-good.new");
        // One left by a killed writer may have any mode.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.dir.join(NAME))?;
        // The rename itself must survive a power cut too.
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn place() -> (tempfile::TempDir, LastGood) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let good = LastGood::new(dir.path(), "node-1", "Kubernetes");
        (dir, good)
    }

    #[test]
    fn what_is_saved_is_found_again_and_only_its_owner_may_read_it() {
        let (dir, good) = place();
        std::fs::write(dir.path().join(".last-good.new"), "left by a killed writer").expect("write");
        good.save(Vec::new(), 1).expect("save");
        assert!(matches!(good.load(), Ok(Found::Good(saved)) if saved.resources.is_empty()));
        let mode = std::fs::metadata(dir.path().join(NAME)).expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names: Vec<_> =
            std::fs::read_dir(dir.path()).expect("dir").map(|entry| entry.expect("entry").file_name()).collect();
        assert_eq!(names, [NAME]);
    }

    #[test]
    fn a_broken_file_is_set_aside_and_another_nodes_is_left_alone() {
        let (dir, good) = place();
        good.save(Vec::new(), 1).expect("save");
        let other = LastGood::new(dir.path(), "node-2", "Kubernetes");
        assert!(matches!(other.load(), Ok(Found::Elsewhere(_))));
        let mut bytes = std::fs::read(dir.path().join(NAME)).expect("read");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(dir.path().join(NAME), bytes).expect("write");
        assert!(matches!(good.load(), Ok(Found::Broken(_))));
        assert!(matches!(good.load(), Ok(Found::Nothing)));
        assert!(dir.path().join(ASIDE).exists());
    }
}

//! A watch on one directory of files that are replaced by rename (`kubectl`-style manifests, projected volumes, a state file).
//!
//! It tells that something changed, not what: the reader loads the directory again, which is the only thing that is right after
//! a burst, an overflow or a swapped symlink.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

/// Changes within this time are one change: a client that writes ten files wants one reload. Small against the second in
/// which a policy must bite.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A burst is reported after this time even if it goes on.
const DEBOUNCE_MAX: Duration = Duration::from_millis(200);

/// Watches one directory.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    inotify: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Starts watching; the directory must exist. Call within a tokio runtime. Changes from now on are seen.
    pub fn new(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        // Files are read again on completed writes and renames only; a half-written file is caught by its own close.
        let interest = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MOVED_FROM
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::MOVE_SELF
            | inotify::WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, path, interest)?;
        // Deprecated for types whose descriptor may change under the registration; an `OwnedFd` keeps its own for life, and the
        // replacement is `unsafe`, which only mesh-net may use.
        #[expect(deprecated, reason = "sound for OwnedFd")]
        let inotify = AsyncFd::new(fd)?;
        Ok(Self { path: path.to_owned(), inotify })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Resolves after the next change, once the burst it belongs to is over. Safe to drop half-way before the first event is
    /// read; after that a change may be lost, so do not race it against branches that keep the watch.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.wait().await?;
        let until = tokio::time::Instant::now() + DEBOUNCE_MAX;
        while tokio::time::timeout(DEBOUNCE, self.wait()).await.is_ok_and(|result| result.is_ok()) {
            if tokio::time::Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    async fn wait(&self) -> io::Result<()> {
        let mut buffer = [0_u8; 8192];
        loop {
            let mut guard = self.inotify.readable().await?;
            match guard.try_io(|fd| rustix::io::read(fd.get_ref(), &mut buffer).map_err(io::Error::from)) {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_renamed_into_place_is_a_change_and_so_is_a_deletion() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let outside = tempfile::tempdir().expect("temporary directory");
        let mut watch = Watch::new(dir.path()).expect("watch");
        let fresh = outside.path().join("new");
        std::fs::write(&fresh, "x").expect("write");
        std::fs::rename(&fresh, dir.path().join("a.yaml")).expect("rename");
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.expect("in time").expect("change");
        std::fs::remove_file(dir.path().join("a.yaml")).expect("remove");
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.expect("in time").expect("change");
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(Watch::new(&dir.path().join("missing")).is_err());
    }
}

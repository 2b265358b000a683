//! The highest counter of a last good configuration that this node has seen, kept over keepers and reboots.
//!
//! The worker's own file lies in a directory of the worker's user, who can put an older one back. What must not be older than what lies
//! here, in a directory of root (`docs/decisions/0017-last-good-counter.md`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_api::link;
use mesh_api::link::state_dir::{LastGoodCounter, VERSION};
use tokio::sync::watch;

use crate::state_dir::write_atomically;

/// After the file could not be written.
const AGAIN: Duration = Duration::from_secs(10);

/// The way to the counter; clones share it.
#[derive(Clone, Debug)]
pub struct Counter(watch::Sender<u64>);

impl Counter {
    /// What the state directory says; a file that cannot be read counts as none, named: only root writes there, so it decayed.
    pub fn load(state_dir: &Path) -> Self {
        let path = LastGoodCounter::path(state_dir);
        let read = match std::fs::read(&path) {
            Ok(bytes) => {
                LastGoodCounter::decode(&bytes).map(|read| read.highest).map_err(|error| mesh_daemon::causes(&error))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error.to_string()),
        };
        let highest = read.unwrap_or_else(|error| {
            tracing::error!(file = %path.display(), error, "the counter of last good configurations is lost; it starts anew");
            0
        });
        Self(watch::channel(highest).0)
    }

    /// The highest, now and whenever it rises.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    /// A keeper has seen this one.
    pub fn seen(&self, counter: u64) {
        self.0.send_if_modified(|highest| {
            let rises = counter > *highest;
            *highest = (*highest).max(counter);
            rises
        });
    }

    /// Writes each new value down, the latest only; for as long as anybody may raise it.
    pub fn keep(self, state_dir: PathBuf) -> impl Future<Output = ()> {
        // Before the task first runs: nothing that is seen from now on is missed.
        let mut highest = self.follow();
        drop(self);
        async move {
            while highest.changed().await.is_ok() {
                loop {
                    let latest = *highest.borrow_and_update();
                    let Err(error) = write(latest, &state_dir).await else { break };
                    tracing::warn!(%error, latest, "the counter of last good configurations is not written down");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// The disk may be slow or hang: written beside the runtime.
async fn write(highest: u64, state_dir: &Path) -> std::io::Result<()> {
    let (path, bytes) =
        (LastGoodCounter::path(state_dir), link::encode(&LastGoodCounter { version: VERSION, highest }));
    let written = tokio::task::spawn_blocking(move || write_atomically(&path, &bytes)).await;
    written.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_seen_is_there_after_a_restart_and_never_sinks() {
        let dir = tempfile::tempdir().expect("dir");
        let counter = Counter::load(dir.path());
        assert_eq!(*counter.follow().borrow(), 0);
        let keeping = tokio::spawn(counter.clone().keep(dir.path().to_owned()));
        let mut highest = counter.follow();
        counter.seen(7);
        counter.seen(3);
        assert_eq!(*highest.borrow_and_update(), 7);
        drop(counter);
        keeping.await.expect("it ends with the last who may raise it");
        assert_eq!(*Counter::load(dir.path()).follow().borrow(), 7);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_and_counts_as_none() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(LastGoodCounter::path(dir.path()), "half").expect("written");
        assert_eq!(*Counter::load(dir.path()).follow().borrow(), 0);
    }
}

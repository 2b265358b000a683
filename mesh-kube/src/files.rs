//! The file source: a watched directory of manifests, read again whole when anything in it changes.
//!
//! Thousands of objects take milliseconds, and there is no state that could drift.

use std::path::PathBuf;
use std::time::Duration;

use mesh_api::manifests::{Objects, Rejected, load_dir};
use mesh_daemon::dir;
use mesh_model::PodName;

use crate::source::{Ended, Source};

/// Looks again without being told, for what notification misses (a directory replaced as a whole, an overflow, a network file
/// system).
const ANYWAY: Duration = Duration::from_secs(30);
/// Between looks at a directory that cannot be watched.
const UNWATCHED: Duration = Duration::from_secs(1);

/// A directory of manifests.
#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
    objects: Objects,
    /// Made before each reading, so that a change while it goes on is not lost; `None` before the first and where it cannot be made.
    watch: Option<dir::Watch>,
    wanted: bool,
}

impl Files {
    /// Reads nothing yet.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, objects: Objects::default(), watch: None, wanted: true }
    }
}

impl Source for Files {
    async fn changed(&mut self) {
        if self.wanted {
            return;
        }
        match &mut self.watch {
            // A notification that is lost by the timer, or that broke, is met by the reading that follows.
            Some(watch) => drop(tokio::time::timeout(ANYWAY, watch.changed()).await),
            None => tokio::time::sleep(UNWATCHED).await,
        }
    }

    async fn read<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Objects, &[Rejected]) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        // A directory that was replaced is found again.
        self.watch = dir::Watch::new(&self.dir)
            .inspect_err(|error| tracing::warn!(%error, dir = %self.dir.display(), "directory cannot be watched"))
            .ok();
        self.wanted = false;
        let (dir, last) = (self.dir.clone(), std::mem::take(&mut self.objects));
        // Shared and not moved: a panic of `work` must not take what was known along.
        let last = std::sync::Arc::new(last);
        let before = last.clone();
        let worked = tokio::task::spawn_blocking(move || {
            let (objects, rejected) = load_dir(&dir, &before);
            let made = work(&objects, &rejected);
            (objects, made)
        });
        match worked.await {
            Ok((objects, made)) => {
                self.objects = objects;
                Ok(made)
            }
            Err(error) => {
                tracing::error!(%error, "reading the manifests ended badly");
                self.objects = std::sync::Arc::unwrap_or_clone(last);
                Err(Ended)
            }
        }
    }

    fn fetch(&mut self, _pod: &PodName) {
        // Whoever writes manifests writes the file before the pod comes; the notification may be on its way.
        self.wanted = true;
    }
}

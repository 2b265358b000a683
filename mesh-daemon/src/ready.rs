//! Readiness as a set of named latches, each released once by whoever holds it. What is still missing can always be asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The set of latches of one process.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    // Name → how many latches of that name are closed.
    missing: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// One thing that must have happened before the process is ready. Dropping it is the release.
#[derive(Debug)]
#[must_use = "dropping a latch releases it"]
pub struct Latch {
    name: &'static str,
    of: Readiness,
}

impl Readiness {
    /// A process with nothing missing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds something that is missing. May be called again later (a lost link makes the process unready).
    pub fn latch(&self, name: &'static str) -> Latch {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Latch { name, of: self.clone() }
    }

    /// The names of what is missing.
    pub fn missing(&self) -> Vec<String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).keys().map(|name| (*name).to_owned()).collect()
    }

    /// Whether nothing is missing.
    pub fn is_ready(&self) -> bool {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Latch {
    /// What it stands for is there.
    pub fn release(self) {}
}

impl Drop for Latch {
    fn drop(&mut self) {
        let mut missing = self.of.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = missing.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                missing.remove(self.name);
                tracing::info!(latch = self.name, left = missing.len(), "readiness latch released");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_latch_is_released_and_unready_again_with_a_new_one() {
        let readiness = Readiness::new();
        let first = readiness.latch("configuration");
        let second = readiness.latch("snapshot");
        assert_eq!(readiness.missing(), ["configuration", "snapshot"]);
        first.release();
        drop(second);
        assert!(readiness.is_ready());
        let _again = readiness.latch("link");
        assert_eq!(readiness.missing(), ["link"]);
    }
}

//! The records that claim one index key, best first.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::policy::Policy;
use crate::{Service, Workload};

/// A record that can share an index key with others.
pub(super) trait Claim {
    /// Which of two claims comes first. Total over distinct records, so that the order of arrival decides nothing.
    fn precedence(&self, other: &Self) -> Ordering;
}

impl Claim for Workload {
    fn precedence(&self, other: &Self) -> Ordering {
        self.claim_order(other)
    }
}

impl Claim for Service {
    fn precedence(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

impl Claim for Policy {
    fn precedence(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

/// Records in order of precedence.
#[derive(Debug)]
pub(super) struct Group<T>(Arc<Vec<Arc<T>>>);

impl<T> Clone for Group<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Group<T> {
    /// The record that wins the key.
    pub(super) fn first(&self) -> Option<&Arc<T>> {
        self.0.first()
    }

    /// All, best first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.iter()
    }

    /// Whether nobody claims the key any more.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Claim> Group<T> {
    /// Adds a record that is not in the group.
    pub(super) fn add(&mut self, record: &Arc<T>) {
        let records = Arc::make_mut(&mut self.0);
        let at = records.partition_point(|known| known.precedence(record).is_lt());
        records.insert(at, record.clone());
    }

    /// Takes a record out, given as it was when it was added.
    pub(super) fn take(&mut self, record: &T) {
        let records = Arc::make_mut(&mut self.0);
        if let Ok(at) = records.binary_search_by(|known| known.precedence(record)) {
            records.remove(at);
        }
    }
}

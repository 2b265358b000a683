//! What the node holds for one pod beside the state of its enrolment.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use mesh_api::link::PodFacts;
use mesh_model::Mark;
use mesh_net::capture;
use rand::TryRngCore;
use tokio::time::Instant;

use crate::enrol::{KeeperId, Pod, Want};
use crate::metrics::labels::{Cause, DriftKind};
use crate::sandbox::Sandbox;
use crate::source::PodRecord;
use crate::status::Condition;

/// One pod.
#[derive(Debug)]
pub struct Entry {
    /// Its enrolment.
    pub machine: Pod,
    /// What the source said last.
    pub record: PodRecord,
    /// Addresses that the CNI gave it; empty for a pod that was there before us.
    pub addresses: Vec<IpAddr>,
    /// Addresses read in the netns of a pod that was there before us: used while its record names none, and never one that
    /// another pod's record names (a pod may hold NET_ADMIN over itself).
    pub found: Vec<IpAddr>,
    /// The mark of this enrolment.
    pub mark: Mark,
    /// Of the rules.
    pub generation: u64,
    /// Its netns.
    pub sandbox: Option<Sandbox>,
    /// The sandbox before it, until the machine lets go of it.
    pub previous: Option<Sandbox>,
    /// (container id, interface) of its ADDs; empty for a pod that was there before us.
    pub containers: BTreeSet<(String, String)>,
    /// As last read back.
    pub rules: Option<capture::Stage>,
    /// As last read back.
    pub listeners: bool,
    /// Last word and sentence for its condition.
    pub said: (String, String),
    /// As last written.
    pub condition: Option<Condition>,
    /// What an audit found, for the event that the machine asks for.
    pub drift: String,
    /// The same, for counting.
    pub drifted: (DriftKind, Cause),
    /// What was told last of what it excludes.
    pub excluded_told: String,
    /// When the stage of its enrolment began that is going on.
    pub stage_since: Instant,
    /// Whether a process of it was ever seen.
    pub seen_alive: bool,
    /// Scans in a row that saw none.
    pub missed: u32,
    /// A DEL came that could not be told to be of this very container.
    pub deleted: bool,
    /// Whether its rules are being read for the first time.
    pub reading: bool,
    /// Failures in a row, for the time between tries.
    pub failures: u32,
    /// Events it may still cause.
    pub budget: Budget,
}

/// A pod that holds NET_ADMIN over itself can change its rules in a loop; each time is repaired and counted, and not each is told.
#[derive(Debug)]
pub struct Budget {
    since: Instant,
    left: u32,
    untold: u32,
}

impl Budget {
    /// Events of one pod in one [`Self::WINDOW`] (guess: more than any orderly life of a pod has).
    const EVENTS: u32 = 20;
    /// See above.
    const WINDOW: Duration = Duration::from_secs(10);

    fn new() -> Self {
        Self { since: Instant::now(), left: Self::EVENTS, untold: 0 }
    }

    /// Takes one: how many were not told since the last that was; `None` when this one is not to be told.
    pub fn take(&mut self) -> Option<u32> {
        if self.since.elapsed() >= Self::WINDOW {
            (self.since, self.left) = (Instant::now(), Self::EVENTS);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.untold))
            }
            None => {
                self.untold += 1;
                None
            }
        }
    }
}

impl Entry {
    /// A pod that nothing is known of but its record.
    pub fn new(record: PodRecord, keepers: impl IntoIterator<Item = KeeperId>) -> std::io::Result<Self> {
        Ok(Self {
            machine: Pod::new(want(Some(&record)), keepers),
            record,
            addresses: Vec::new(),
            found: Vec::new(),
            mark: draw_mark()?,
            generation: 0,
            sandbox: None,
            previous: None,
            containers: BTreeSet::new(),
            rules: None,
            listeners: false,
            said: ("Pending".to_owned(), "enrolment has begun".to_owned()),
            condition: None,
            drift: String::new(),
            drifted: (DriftKind::Table, Cause::Timer),
            excluded_told: String::new(),
            stage_since: Instant::now(),
            seen_alive: false,
            missed: 0,
            deleted: false,
            reading: false,
            failures: 0,
            budget: Budget::new(),
        })
    }

    /// What keepers are told.
    pub fn facts(&self) -> PodFacts {
        let known = [&self.addresses, &self.record.addresses, &self.found];
        let mut addresses = known.into_iter().find(|known| !known.is_empty()).cloned().unwrap_or_default();
        // The same facts look the same after a restart.
        addresses.sort();
        PodFacts {
            uid: self.record.uid.to_string(),
            namespace: self.record.name.namespace.clone(),
            name: self.record.name.name.clone(),
            service_account: self.record.service_account.clone(),
            addresses,
            mark: self.mark.value(),
            probe_ports: self.record.probe_ports.clone(),
        }
    }
}

/// What the record wants.
pub fn want(record: Option<&PodRecord>) -> Want {
    match record {
        Some(record) if record.enrolment.is_enrolled() => Want::Enrolled,
        Some(_) => Want::Plain,
        None => Want::Gone,
    }
}

/// From the kernel's generator: who could guess it could leave capture.
pub fn draw_mark() -> std::io::Result<Mark> {
    loop {
        let bits = rand::rngs::OsRng.try_next_u32().map_err(std::io::Error::other)?;
        let public = capture::is_public(bits & Mark::MASK);
        if let Some(mark) = Mark::from_random(bits).filter(|_| !public) {
            return Ok(mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_causes_events_in_a_loop_is_told_of_in_bounds_and_counted() {
        let mut budget = Budget::new();
        let told = (0..1000).filter(|_| budget.take().is_some()).count();
        assert_eq!(told, 20);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(budget.take(), Some(980));
        assert_eq!(budget.take(), Some(0));
    }
}

//! The traffic series of one workload of this node, within a budget. Pure: threads and time are inputs.
//!
//! Every label set has one block of counters per thread that uses it. What does not fit the budget, and what has been idle, counts
//! into one `other` per end, so that no sum over the table ever goes down. What this must never do: drop a count, or take a
//! block away while a connection still holds it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::labels::{Far, Reporter};
use super::threads::Count;

/// One thread's counters of one label set.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Cells {
    /// Connections opened.
    pub opened: Count,
    /// Connections ended.
    pub closed: Count,
    /// Connections refused.
    pub failed: Count,
    /// Bytes from destination to client (Istio names bytes from the server's view).
    pub sent: Count,
    /// Bytes from client to destination.
    pub received: Count,
}

/// The counters of one label set, summed: opened, closed, failed, sent, received.
pub type Totals = [u64; 5];

impl Cells {
    fn add_to(&self, totals: &mut Totals) {
        let own = [&self.opened, &self.closed, &self.failed, &self.sent, &self.received];
        totals.iter_mut().zip(own).for_each(|(total, own)| *total += own.get());
    }
}

/// One label set.
#[derive(Debug, Default)]
struct Entry {
    by_thread: Vec<Option<Arc<Cells>>>,
    // What was folded into it.
    folded: Totals,
    // Looked up since the last sweep.
    fresh: bool,
    used: Option<Instant>,
}

impl Entry {
    fn cells(&mut self, thread: usize) -> Arc<Cells> {
        self.fresh = true;
        if self.by_thread.len() <= thread {
            self.by_thread.resize(thread + 1, None);
        }
        self.by_thread[thread].get_or_insert_default().clone()
    }

    fn totals(&self) -> Totals {
        let mut totals = self.folded;
        self.by_thread.iter().flatten().for_each(|cells| cells.add_to(&mut totals));
        totals
    }

    /// Whether a connection holds one of its blocks. `get_mut` sees what the last holder wrote.
    fn is_held(&mut self) -> bool {
        self.by_thread.iter_mut().flatten().any(|cells| Arc::get_mut(cells).is_none())
    }

    fn idle(&mut self, now: Instant, limit: Duration) -> bool {
        if std::mem::take(&mut self.fresh) || self.is_held() {
            self.used = Some(now);
        }
        now.saturating_duration_since(*self.used.get_or_insert(now)) >= limit
    }
}

/// Since when nobody uses a table, and how many scrapes there had been.
#[derive(Clone, Copy, Debug)]
struct Quiet {
    since: Instant,
    scrapes: u64,
}

/// How long the series of a pod that is gone stay at least: two scrapes at the usual 30 s.
const SEEN: Duration = Duration::from_secs(60);
/// How long they stay when nobody scrapes.
const UNSEEN: Duration = Duration::from_secs(600);

/// Whether what nobody has used for this long may leave: whoever scrapes has seen what it came to. A scrape began since then and [`SEEN`]
/// has passed, or nobody scrapes and [`UNSEEN`] has.
pub fn is_over(quiet_for: Duration, scraped: bool) -> bool {
    (quiet_for >= SEEN && scraped) || quiet_for >= UNSEEN
}

/// The series of one workload of this node.
#[derive(Debug, Default)]
pub struct Table {
    entries: HashMap<Far, Entry>,
    other: [Option<Entry>; 2],
    /// The pods it is the table of, by slot.
    pub pods: HashSet<u32>,
    quiet: Option<Quiet>,
}

/// A lookup.
#[derive(Debug)]
pub struct Found {
    /// Where the thread counts.
    pub cells: Arc<Cells>,
    /// Whether that is `other`, for want of room.
    pub folded: bool,
}

impl Table {
    /// The counters of this label set for one thread.
    pub fn get(&mut self, far: Far, thread: usize, budget: usize) -> Found {
        self.quiet = None;
        let reporter = far.reporter;
        let room = self.entries.len() < budget;
        let entry = match self.entries.entry(far) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) if room => new.insert(Entry::default()),
            std::collections::hash_map::Entry::Vacant(_) => {
                let other = self.other[reporter as usize].get_or_insert_default();
                return Found { cells: other.cells(thread), folded: true };
            }
        };
        Found { cells: entry.cells(thread), folded: false }
    }

    /// Folds what has been idle for `limit`; how many label sets left.
    pub fn sweep(&mut self, now: Instant, limit: Duration) -> usize {
        let before = self.entries.len();
        let other = &mut self.other;
        self.entries.retain(|far, entry| {
            let idle = entry.idle(now, limit);
            if idle {
                let into = other[far.reporter as usize].get_or_insert_default();
                into.folded.iter_mut().zip(entry.totals()).for_each(|(total, own)| *total += own);
            }
            !idle
        });
        if self.entries.len() < before {
            self.entries.shrink_to(16);
        }
        before - self.entries.len()
    }

    /// Whether it may leave: its pods are gone, no connection holds on to it, and that [`is_over`].
    pub fn is_over(&mut self, now: Instant, scrapes: u64) -> bool {
        let mut all = self.entries.values_mut().chain(self.other.iter_mut().flatten());
        if !self.pods.is_empty() || all.any(Entry::is_held) {
            self.quiet = None;
            return false;
        }
        let quiet = *self.quiet.get_or_insert(Quiet { since: now, scrapes });
        is_over(now.saturating_duration_since(quiet.since), scrapes > quiet.scrapes)
    }

    /// Every label set with what it came to.
    pub fn read(&self) -> Vec<(Far, Totals)> {
        self.entries.iter().map(|(far, entry)| (far.clone(), entry.totals())).collect()
    }

    /// What was folded at this end, if anything was.
    pub fn read_other(&self, reporter: Reporter) -> Option<Totals> {
        self.other[reporter as usize].as_ref().map(Entry::totals)
    }
}

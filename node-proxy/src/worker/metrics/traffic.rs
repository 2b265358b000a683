//! Istio's TCP metrics: the tables of all workloads of this node, and the collector that adds them up.
//!
//! Pods of one workload have the same labels and so share a table and its budget: a scrape must not show one label set twice. A
//! connection takes its table's lock once, when it is set up, and once more if it fails; bytes take none. A scrape holds one
//! table's lock at a time, for as long as it takes to add up at most a budget of label sets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, MetricFamily};

use super::family::{Spec, pair};
use super::flags::Flags;
use super::labels::{self, End, Far, Reporter};
use super::series::{Cells, Table, Totals};
use super::threads;

const OPENED: Spec = Spec {
    name: "istio_tcp_connections_opened_total",
    help: "Connections that were set up, by both ends' names. response_flags is always \"-\" here.",
};
const CLOSED: Spec = Spec {
    name: "istio_tcp_connections_closed_total",
    help: "Connections that were set up and have ended; response_flags says why, \"-\" for both ends' end of data.",
};
const FAILED: Spec = Spec {
    name: "istio_tcp_connections_failed_total",
    help: "Connections that were refused before a byte moved; response_flags says why.",
};
const SENT: Spec = Spec {
    name: "istio_tcp_sent_bytes_total",
    help: "Bytes from destinations to clients (responses: Istio names bytes from the server's view at both ends).",
};
const RECEIVED: Spec =
    Spec { name: "istio_tcp_received_bytes_total", help: "Bytes from clients to destinations (requests)." };
const FOLDED: Spec = Spec {
    name: "culvert_series_folded_total",
    help: "By cause: budget counts connections that went into a workload's \"other\" series for want of room, idle counts \
           label sets that left into it.",
};
const LABEL_SETS: Spec =
    Spec { name: "culvert_series_label_sets", help: "Label sets of traffic series now kept, \"other\" not counted." };

/// All tables.
#[derive(Debug)]
pub struct Traffic {
    threads: usize,
    budget: usize,
    idle: Duration,
    tables: Mutex<HashMap<End, Shared>>,
    folded: [AtomicU64; 2],
    scrapes: AtomicU64,
}

/// A table as pods and threads share it.
pub type Shared = Arc<Mutex<Table>>;

impl Traffic {
    /// None yet. `budget`: label sets per workload; `idle`: after this long without a connection a label set leaves.
    pub fn new(threads: usize, budget: usize, idle: Duration) -> Self {
        let (folded, scrapes) = (Default::default(), AtomicU64::new(0));
        Self { threads, budget, idle, tables: Mutex::default(), folded, scrapes }
    }

    /// Counts this pod among those of the table of `own`.
    pub fn join(&self, slot: u32, own: &End) -> Shared {
        let mut tables = lock(&self.tables);
        let table = tables.entry(own.clone()).or_default().clone();
        lock(&table).pods.insert(slot);
        table
    }

    /// The counters for the calling thread, in a table that was joined.
    pub fn cells(&self, table: &Mutex<Table>, far: Far) -> Arc<Cells> {
        let found = lock(table).get(far, threads::here(self.threads), self.budget);
        if found.folded {
            self.folded[0].fetch_add(1, Ordering::Relaxed);
        }
        found.cells
    }

    /// The same for a connection that outlived its pod: nothing keeps the table but the connection itself.
    pub fn late(&self, own: &End, far: Far) -> Arc<Cells> {
        let mut tables = lock(&self.tables);
        // Looked up under both locks, so that a sweep cannot take the table out in between.
        let table = tables.entry(own.clone()).or_default().clone();
        self.cells(&table, far)
    }

    /// The pod is gone from the table.
    pub fn leave(&self, slot: u32) {
        for table in lock(&self.tables).values() {
            lock(table).pods.remove(&slot);
        }
    }

    /// A scrape begins.
    pub fn scraped(&self) {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
    }

    /// Folds what has been idle, drops what is over.
    pub fn sweep(&self, now: Instant) {
        let scrapes = self.scrapes.load(Ordering::Relaxed);
        let all: Vec<Shared> = lock(&self.tables).values().cloned().collect();
        let mut over = false;
        for table in all {
            let mut table = lock(&table);
            self.folded[1].fetch_add(table.sweep(now, self.idle) as u64, Ordering::Relaxed);
            over |= table.is_over(now, scrapes);
        }
        if over {
            lock(&self.tables).retain(|_, table| !lock(table).is_over(now, scrapes));
        }
    }

    /// Every label set of every table.
    fn read(&self) -> Vec<(Vec<LabelPair>, Option<Flags>, Totals)> {
        let tables: Vec<(End, Shared)> =
            lock(&self.tables).iter().map(|(own, table)| (own.clone(), table.clone())).collect();
        let mut out = Vec::new();
        for (own, table) in tables {
            let (sets, other) = {
                let table = lock(&table);
                (table.read(), Reporter::ALL.map(|reporter| table.read_other(reporter)))
            };
            out.extend(sets.into_iter().map(|(far, totals)| (labels::labels(&own, &far), Some(far.flags), totals)));
            let other = Reporter::ALL.into_iter().zip(other);
            out.extend(other.filter_map(|(reporter, totals)| Some((labels::other(&own, reporter), None, totals?))));
        }
        out
    }
}

impl Collector for Traffic {
    fn desc(&self) -> Vec<&Desc> {
        static DESCS: std::sync::LazyLock<Vec<Desc>> = std::sync::LazyLock::new(|| {
            [OPENED, CLOSED, FAILED, SENT, RECEIVED, FOLDED, LABEL_SETS].map(Spec::desc).into()
        });
        DESCS.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let all = self.read();
        // A set that was never opened into (it stands for refusals or early ends alone) shows only what it is for.
        let shown = |index: usize, always: bool| {
            all.iter()
                .filter(move |(_, flags, totals)| {
                    totals[index] > 0 || (always && flags.is_none_or(|f| f == Flags::None))
                })
                .map(move |(labels, _, totals)| (labels.clone(), totals[index] as f64))
        };
        let folded = ["budget", "idle"].into_iter().zip(&self.folded);
        let folded = folded.map(|(cause, count)| (vec![pair("cause", cause)], count.load(Ordering::Relaxed) as f64));
        let sets = all.iter().filter(|(_, flags, _)| flags.is_some()).count();
        vec![
            OPENED.counters(shown(0, true)),
            CLOSED.counters(shown(1, true)),
            FAILED.counters(shown(2, false)),
            SENT.counters(shown(3, true)),
            RECEIVED.counters(shown(4, true)),
            FOLDED.counters(folded),
            LABEL_SETS.gauges([(Vec::new(), sets as f64)]),
        ]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

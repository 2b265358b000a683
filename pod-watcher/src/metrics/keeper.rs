//! What keepers say of themselves, offered in their stead with the prefix `culvert_keeper_`.
//!
//! Two may be connected while a node-proxy is replaced: counts are summed over all that ever were, what is held now over those that
//! are. A keeper that reconnects goes on where it was: it is known by its process and start, not by its connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_api::link::proxy::KeeperStats;
use mesh_model::Reason;
use prometheus::core::Collector;
use prometheus::{Counter, Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::enrol::KeeperId;

/// Keepers that are gone and remembered, in case they come back: one a replaced node-proxy, and room.
const REMEMBERED: usize = 16;

/// Who a keeper is, whatever its connection: its process and when it started.
type Who = (i32, u64);

/// What of a report a metric shows.
type Of = fn(&KeeperStats) -> u64;

/// The metrics. Clones are the same.
#[derive(Clone, Debug)]
pub struct Keepers {
    counters: [(IntCounter, Of); 6],
    gauges: [(IntGauge, Of); 7],
    short: IntCounterVec,
    refused: IntCounterVec,
    cpu: Counter,
    start: Gauge,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Connected keepers that have reported.
    now: BTreeMap<KeeperId, Who>,
    /// Last reports, also of those that went away; the number says which is the oldest.
    last: HashMap<Who, (u64, KeeperStats)>,
    reports: u64,
}

impl Keepers {
    /// Nobody has reported yet.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, of: fn(&KeeperStats) -> u64| {
            let counter = IntCounter::new(format!("culvert_keeper_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>((counter, of))
        };
        let gauge = |name: &str, help: &str, of: fn(&KeeperStats) -> u64| {
            let gauge = IntGauge::new(format!("culvert_keeper_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>((gauge, of))
        };
        let reasons = |name: &str, help: &str| {
            let counters = IntCounterVec::new(Opts::new(format!("culvert_keeper_{name}"), help), &["reason"])?;
            Reason::ALL.iter().for_each(|reason| drop(counters.with_label_values(&[reason.as_str()])));
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let cpu = Counter::new("culvert_keeper_cpu_seconds_total", "CPU time of keepers, in seconds.")?;
        let start = Gauge::new(
            "culvert_keeper_start_time_seconds",
            "When the newest keeper started, in seconds since the epoch.",
        )?;
        for metric in [Box::new(cpu.clone()) as Box<dyn Collector>, Box::new(start.clone())] {
            registry.register(metric)?;
        }
        Ok(Self {
            counters: [
                counter("mint_requests_total", "Requests of workers for sockets.", |stats| stats.mint_requests)?,
                counter("minted_sockets_total", "Sockets made in pods' namespaces for workers.", |stats| stats.minted)?,
                counter("listeners_opened_total", "Listening sockets opened in pods' namespaces.", |stats| {
                    stats.listeners_opened
                })?,
                counter("listeners_handed_total", "Listening sockets handed to workers.", |stats| {
                    stats.listeners_handed
                })?,
                counter("workers_total", "Workers that connected: generations, each restart is one.", |stats| {
                    stats.workers
                })?,
                counter("workers_lost_total", "Workers that went away.", |stats| stats.workers_lost)?,
            ],
            gauges: [
                gauge("workers_connected", "Workers connected now.", |stats| u64::from(stats.worker_up))?,
                gauge("pods", "Pods that keepers hold.", |stats| stats.pods)?,
                gauge("spare_diag_sockets", "Spare sock_diag sockets.", |stats| stats.spare_diag)?,
                gauge(
                    "certificates_kept",
                    "Keepers that keep certificates for a successor of their worker.",
                    |stats| u64::from(stats.certificates_kept),
                )?,
                gauge("resident_memory_bytes", "Resident memory of keepers, in bytes.", |stats| stats.resident_bytes)?,
                gauge("open_fds", "Open file descriptors of keepers.", |stats| stats.open_fds)?,
                gauge("max_fds", "Most file descriptors that keepers may open.", |stats| stats.max_fds)?,
            ],
            short: reasons("mints_short_total", "Requests that got fewer sockets than were asked for, by reason.")?,
            refused: reasons("requests_refused_total", "Requests of pod-watcher that keepers refused, by reason.")?,
            cpu,
            start,
            known: Arc::default(),
        })
    }

    /// A keeper reported.
    pub fn report(&self, keeper: KeeperId, pid: i32, stats: KeeperStats) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let who = (pid, stats.start_millis);
        known.reports += 1;
        let number = known.reports;
        let before = known.last.insert(who, (number, stats.clone())).map(|(_, before)| before).unwrap_or_default();
        known.now.insert(keeper, who);
        for (counter, of) in &self.counters {
            counter.inc_by(of(&stats).saturating_sub(of(&before)));
        }
        self.cpu.inc_by(Duration::from_micros(stats.cpu_micros.saturating_sub(before.cpu_micros)).as_secs_f64());
        by_reason(&self.short, &stats.mint_short, &before.mint_short);
        by_reason(&self.refused, &stats.refused, &before.refused);
        self.gauge(&known);
        known.forget();
    }

    /// A keeper's connection ended.
    pub fn gone(&self, keeper: KeeperId) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.now.remove(&keeper);
        self.gauge(&known);
    }

    fn gauge(&self, known: &Known) {
        let connected = || known.now.values().filter_map(|who| known.last.get(who)).map(|(_, stats)| stats);
        for (gauge, of) in &self.gauges {
            gauge.set(i64::try_from(connected().map(of).fold(0, u64::saturating_add)).unwrap_or(i64::MAX));
        }
        self.start.set(connected().map(|stats| stats.start_millis).max().unwrap_or(0) as f64 / 1e3);
    }
}

impl Known {
    fn forget(&mut self) {
        while self.last.len() > REMEMBERED {
            let away = self.last.iter().filter(|(who, _)| !self.now.values().any(|now| now == *who));
            let Some(oldest) = away.min_by_key(|(_, (number, _))| *number).map(|(who, _)| *who) else { return };
            self.last.remove(&oldest);
        }
    }
}

/// Reasons that we do not know are a newer keeper's; they make no series of their own.
fn by_reason(counters: &IntCounterVec, now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) {
    for (text, count) in now {
        let reason = text.parse().unwrap_or(Reason::Internal);
        let grown = count.saturating_sub(before.get(text).copied().unwrap_or(0));
        counters.with_label_values(&[reason.as_str()]).inc_by(grown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(registry: &Registry, name: &str) -> f64 {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("encodes");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }

    fn stats(start_millis: u64, minted: u64, pods: u64) -> KeeperStats {
        let mint_short = [("Overloaded".to_owned(), minted / 10), ("OfALaterVersion".to_owned(), 1)].into();
        KeeperStats { start_millis, minted, pods, mint_short, cpu_micros: 500_000, ..KeeperStats::default() }
    }

    #[test]
    fn counts_are_summed_over_all_keepers_that_were_and_holdings_over_those_that_are() {
        let registry = Registry::new();
        let keepers = Keepers::new(&registry).expect("names");
        let minted = || value(&registry, "culvert_keeper_minted_sockets_total");
        let pods = || value(&registry, "culvert_keeper_pods");
        keepers.report(1, 10, stats(5, 100, 3));
        keepers.report(1, 10, stats(5, 150, 4));
        assert_eq!((minted(), pods()), (150.0, 4.0));
        // It reconnects: the same process goes on.
        keepers.gone(1);
        assert_eq!(pods(), 0.0);
        keepers.report(2, 10, stats(5, 160, 4));
        assert_eq!((minted(), pods()), (160.0, 4.0));
        // A successor beside it, by chance with the same number in its own namespace.
        keepers.report(3, 10, stats(9, 7, 1));
        assert_eq!((minted(), pods()), (167.0, 5.0));
        keepers.gone(2);
        assert_eq!((minted(), pods()), (167.0, 1.0));
        assert_eq!(value(&registry, "culvert_keeper_mints_short_total{reason=\"Overloaded\"}"), 16.0);
        assert_eq!(value(&registry, "culvert_keeper_mints_short_total{reason=\"Internal\"}"), 2.0);
        assert_eq!(value(&registry, "culvert_keeper_cpu_seconds_total"), 1.0);
        assert_eq!(value(&registry, "culvert_keeper_start_time_seconds"), 0.009);
    }

    #[test]
    fn keepers_that_come_and_go_without_end_are_forgotten() {
        let keepers = Keepers::new(&Registry::new()).expect("names");
        for n in 0..1000 {
            keepers.report(n, 10, stats(n, 1, 1));
            keepers.gone(n);
        }
        assert!(keepers.known.lock().expect("no panic").last.len() <= REMEMBERED + 1);
    }
}

//! Metrics that are no more than a number, set or counted far from the bytes.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use prometheus::core::Collector;
use prometheus::{Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Identities whose expiry is shown: as many as a node has pods, and room.
const IDENTITIES: usize = 512;

/// See the module.
#[derive(Debug)]
pub struct Plain {
    /// Pods with listeners here.
    pub pods: IntGauge,
    /// Accepts that failed for want of descriptors or memory.
    pub accept_errors: IntCounter,
    /// Access log lines written whole.
    pub lines_written: IntCounter,
    /// Access log lines left out or lost, by cause (`access_log::Cause`).
    pub lines_dropped: IntCounterVec,
    /// Sockets the keeper made for us.
    pub minted: IntCounter,
    /// Mint requests that came back short or not at all.
    pub mint_failed: IntCounter,
    /// Minted sockets waiting for a use.
    pub mint_stock: IntGauge,
    /// Connections judged again after a change.
    pub judged_again: IntCounter,
    /// Probes of the kubelet, passed unjudged.
    pub probes: IntCounter,
    /// Generation of the configuration that is in force.
    pub config_generation: IntGauge,
    /// Age of the configuration in seconds; 0 while the control plane is there.
    pub config_age: Gauge,
    /// From an answer's receipt until it is in force for open connections too.
    pub config_push: Histogram,
    /// Workers of this supervisor that ended unasked before this one.
    pub restarts: IntCounter,
    attempts: IntCounter,
    failures: IntCounter,
    soonest: GaugeVec,
    expiry: GaugeVec,
    shown: Mutex<BTreeSet<String>>,
}

impl Plain {
    /// All at zero, registered.
    pub fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help));
        let by = |name: &str, help: &str, labels: &[&str]| {
            registered(registry, GaugeVec::new(Opts::new(name, help), labels))
        };
        let push = HistogramOpts::new(
            "culvert_config_push_seconds",
            "From the receipt of an answer of the control plane until it is in force, in seconds: decoded, published, and \
             every open connection that it touches judged again.",
        )
        .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]);
        Self {
            pods: gauge("culvert_pods", "Pods with listeners here."),
            accept_errors: counter(
                "culvert_accept_errors_total",
                "Accepts that failed for want of descriptors or memory.",
            ),
            lines_written: counter("culvert_access_log_written_total", "Access log lines written."),
            lines_dropped: registered(
                registry,
                IntCounterVec::new(
                    Opts::new("culvert_access_log_dropped_total", "Access log lines left out or lost, by cause."),
                    &["cause"],
                ),
            ),
            minted: counter("culvert_sockets_minted_total", "Sockets the keeper made in pods."),
            mint_failed: counter("culvert_mint_failed_total", "Mint requests that came back short or not at all."),
            mint_stock: gauge("culvert_mint_stock", "Minted sockets waiting for a use."),
            judged_again: counter("culvert_judged_again_total", "Connections judged again after a change."),
            probes: counter("culvert_probes_total", "Kubelet probes passed unjudged."),
            config_generation: gauge("culvert_config_generation", "Generation of the configuration in force."),
            config_age: registered(
                registry,
                Gauge::new(
                    "culvert_config_age_seconds",
                    "Seconds since the configuration in force was last known to be the control plane's: 0 while a stream is \
                     open, else since it ended, or since the last good configuration was written.",
                ),
            ),
            config_push: registered(registry, Histogram::with_opts(push)),
            restarts: counter("culvert_worker_restarts_total", "Workers of this supervisor that ended unasked so far."),
            attempts: counter("culvert_certificate_attempts_total", "Attempts at certificates."),
            failures: counter("culvert_certificate_failures_total", "Attempts at certificates that failed."),
            soonest: by(
                "culvert_certificate_soonest_expiry_seconds",
                "Seconds until the first certificate of a pod of this node runs out, negative after; absent without one.",
                &[],
            ),
            expiry: by(
                "culvert_certificate_expiry_timestamp_seconds",
                "When the identity's certificate runs out, in seconds since 1970, for the identities of this node's pods; the \
                 first 512 by name.",
                &["identity"],
            ),
            shown: Mutex::default(),
        }
    }

    /// Attempts at certificates and failures so far, as another counts them.
    pub fn certificates(&self, attempts: u64, failures: u64) {
        // Scrapes may overlap: a smaller number is an older one.
        self.attempts.inc_by(attempts.saturating_sub(self.attempts.get()));
        self.failures.inc_by(failures.saturating_sub(self.failures.get()));
    }

    /// Identities with a certificate and when it runs out, in seconds since 1970.
    pub fn expiries(&self, now: SystemTime, all: impl Iterator<Item = (String, u64)>) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<(String, u64)> = all.collect();
        all.sort();
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        match all.iter().map(|(_, at)| *at).min() {
            Some(at) => self.soonest.with_label_values::<&str>(&[]).set(at as f64 - now),
            None => self.soonest.reset(),
        }
        all.truncate(IDENTITIES);
        for (identity, at) in &all {
            self.expiry.with_label_values(&[identity]).set(*at as f64);
        }
        let now_shown: BTreeSet<String> = all.into_iter().map(|(identity, _)| identity).collect();
        for gone in shown.difference(&now_shown) {
            // Fails only for what is not there, which is what is wanted.
            let _ = self.expiry.remove_label_values(&[gone]);
        }
        *shown = now_shown;
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("names are constants in metric form");
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

//! Every metric of pod-watcher, in one place. Label values are closed enums ([`labels`]), kinds of objects, and pods that this node
//! has now ([`passed`]). What keepers count is offered here too, since they have no network ([`keeper`]).

pub mod chain;
pub mod keeper;
pub mod labels;
pub mod passed;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_api::manifests::{Kind, Rejected};
use mesh_model::Reason;
use mesh_net::capture::Mode;
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use keeper::Keepers;
use labels::{AddStage, Cause, DriftKind, Link, OUTCOMES, Outcome, PodState};
use passed::Passed;

/// From 0.2 ms (nothing to do) to the plugin's deadline; seen: 20 to 60 ms with a keeper that answers at once.
const BUCKETS: [f64; 19] = [
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    15.0,
];

/// Handles, looked up once. Clones are the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Our part of an ADD, from the request to the answer.
    pub add_seconds: Histogram,
    /// Our part of a DEL.
    pub del_seconds: Histogram,
    /// Running pods that came into the mesh.
    pub opt_ins: IntCounter,
    /// Running pods that left it.
    pub opt_outs: IntCounter,
    /// Repairs that did not work.
    pub repair_failures: IntCounter,
    /// Keepers connected.
    pub keepers: IntGauge,
    /// Keepers cut off because their queue was full.
    pub keeper_overflow: IntCounter,
    /// What keepers say of themselves.
    pub of_keepers: Keepers,
    /// Packets that pass uncaptured.
    pub passed: Passed,
    /// Following the API server.
    pub source: mesh_kube::Metrics,
    /// Our plugin in the node's CNI chain.
    pub chain: chain::Metrics,
    add_stages: HistogramVec,
    enrolments: IntCounterVec,
    failures: IntCounterVec,
    audits: IntCounterVec,
    drifts: IntCounterVec,
    repairs: IntCounterVec,
    pods: IntGaugeVec,
    table_mode: IntGaugeVec,
    link_errors: IntCounterVec,
    rejected: IntGaugeVec,
    age: Gauge,
    read_at: Arc<Mutex<Option<Instant>>>,
}

impl Metrics {
    /// Registers all, each series of a closed label set at zero.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let name = |name: &str| format!("culvert_watcher_{name}");
        let counter = |n: &str, help: &str| add(registry, IntCounter::new(name(n), help)?);
        let counters =
            |n: &str, help: &str, labels: &[&str]| add(registry, IntCounterVec::new(Opts::new(name(n), help), labels)?);
        let gauges =
            |n: &str, help: &str, label: &str| add(registry, IntGaugeVec::new(Opts::new(name(n), help), &[label])?);
        let times = |n: &str, help: &str| HistogramOpts::new(name(n), help).buckets(BUCKETS.to_vec());
        let metrics = Self {
            add_seconds: add(
                registry,
                Histogram::with_opts(times("add_seconds", "pod-watcher's part of CNI ADD, from request to answer."))?,
            )?,
            del_seconds: add(
                registry,
                Histogram::with_opts(times("del_seconds", "pod-watcher's part of CNI DEL, from request to answer."))?,
            )?,
            add_stages: add(
                registry,
                HistogramVec::new(
                    times("add_stage_seconds", "Parts of an ADD that captures a pod, by stage."),
                    &["stage"],
                )?,
            )?,
            enrolments: counters("enrolments_total", "Enrolments by result.", &["result"])?,
            failures: counters("enrolment_failures_total", "Enrolments that failed, by reason.", &["reason"])?,
            opt_ins: counter("opt_ins_total", "Running pods that came into the mesh.")?,
            opt_outs: counter("opt_outs_total", "Running pods that left the mesh.")?,
            audits: counters("audits_total", "Rules read back and compared, by what asked for it.", &["cause"])?,
            drifts: counters(
                "drifts_total",
                "Rules found changed by somebody else, by what was changed and how it was noticed.",
                &["kind", "cause"],
            )?,
            repairs: counters(
                "repairs_total",
                "Rules written again after a change, by what was changed and how it was noticed.",
                &["kind", "cause"],
            )?,
            repair_failures: counter("repair_failures_total", "Repairs that did not work; each is tried again.")?,
            pods: gauges("pods", "Pods by what was read back of them last.", "state")?,
            table_mode: gauges("table_mode", "1 for the way in which capture tables are made here.", "mode")?,
            keepers: add(registry, IntGauge::new(name("keeper_links"), "Keepers connected.")?)?,
            keeper_overflow: counter("keeper_queue_full_total", "Keepers cut off because their queue was full.")?,
            link_errors: counters("link_errors_total", "Conversations on a unix link that ended badly.", &["link"])?,
            rejected: gauges("rejected_manifests", "Manifests refused at the last reading, by kind.", "kind")?,
            age: add(registry, Gauge::new(name("manifests_age_seconds"), "Time since the manifests were read last.")?)?,
            read_at: Arc::default(),
            of_keepers: Keepers::new(registry)?,
            passed: Passed::new(registry)?,
            source: mesh_kube::Metrics::new(registry, "watcher")?,
            chain: chain::Metrics::new(registry)?,
        };
        metrics.zero();
        Ok(metrics)
    }

    fn zero(&self) {
        AddStage::ALL.iter().for_each(|stage| drop(self.add_stages.with_label_values(&[stage.as_str()])));
        OUTCOMES.iter().for_each(|outcome| drop(self.enrolments.with_label_values(&[outcome])));
        Reason::ALL.iter().for_each(|reason| drop(self.failures.with_label_values(&[reason.as_str()])));
        PodState::ALL.iter().for_each(|state| drop(self.pods.with_label_values(&[state.as_str()])));
        Link::ALL.iter().for_each(|link| drop(self.link_errors.with_label_values(&[link.as_str()])));
        for cause in Cause::ALL {
            self.audits.with_label_values(&[cause.as_str()]);
            for kind in DriftKind::ALL {
                self.drifts.with_label_values(&[kind.as_str(), cause.as_str()]);
                self.repairs.with_label_values(&[kind.as_str(), cause.as_str()]);
            }
        }
        self.rejected(&[]);
    }

    /// An enrolment ended.
    pub fn enrolment(&self, outcome: Outcome) {
        self.enrolments.with_label_values(&[outcome.as_str()]).inc();
        if let Outcome::Failed(reason) = outcome {
            self.failures.with_label_values(&[reason.as_str()]).inc();
        }
    }

    /// A stage of an ADD is over.
    pub fn add_stage(&self, stage: AddStage, took: Duration) {
        self.add_stages.with_label_values(&[stage.as_str()]).observe(took.as_secs_f64());
    }

    /// Rules were read and compared.
    pub fn audit(&self, cause: Cause) {
        self.audits.with_label_values(&[cause.as_str()]).inc();
    }

    /// They differed.
    pub fn drift(&self, kind: DriftKind, cause: Cause) {
        self.drifts.with_label_values(&[kind.as_str(), cause.as_str()]).inc();
    }

    /// They were written again.
    pub fn repair(&self, kind: DriftKind, cause: Cause) {
        self.repairs.with_label_values(&[kind.as_str(), cause.as_str()]).inc();
    }

    /// Pods in each state.
    pub fn pods(&self, states: impl Iterator<Item = PodState>) {
        let mut counts = [0; PodState::ALL.len()];
        states.for_each(|state| counts[state as usize] += 1);
        for (state, count) in PodState::ALL.iter().zip(counts) {
            self.pods.with_label_values(&[state.as_str()]).set(count);
        }
    }

    /// How tables are made.
    pub fn table_mode(&self, mode: Mode) {
        for (one, label) in [(Mode::Owned, "owned"), (Mode::Plain, "plain")] {
            self.table_mode.with_label_values(&[label]).set(i64::from(one == mode));
        }
    }

    /// A link ended badly.
    pub fn link_error(&self, link: Link) {
        self.link_errors.with_label_values(&[link.as_str()]).inc();
    }

    /// The manifests were read.
    pub fn manifests_read(&self, rejected: &[Rejected]) {
        *self.read_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.rejected(rejected);
    }

    fn rejected(&self, rejected: &[Rejected]) {
        let mut counts: BTreeMap<&str, i64> = Kind::LABELS.iter().map(|kind| (*kind, 0)).collect();
        rejected.iter().for_each(|one| *counts.entry(Kind::label(&one.kind)).or_default() += 1);
        for (kind, count) in counts {
            self.rejected.with_label_values(&[kind]).set(count);
        }
    }

    /// To be called before each scrape.
    pub fn refresh(&self) {
        if let Some(at) = *self.read_at.lock().unwrap_or_else(PoisonError::into_inner) {
            self.age.set(at.elapsed().as_secs_f64());
        }
    }
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("encodes")
    }

    #[test]
    fn every_state_is_counted_under_its_own_label() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).expect("names are well formed and used once");
        for (at, state) in PodState::ALL.iter().enumerate() {
            assert_eq!(*state as usize, at);
        }
        metrics.pods([PodState::Served, PodState::Denied, PodState::Served].into_iter());
        let text = text(&registry);
        assert!(text.contains("culvert_watcher_pods{state=\"served\"} 2"), "{text}");
        assert!(text.contains("culvert_watcher_pods{state=\"denied\"} 1"), "{text}");
        assert!(text.contains("culvert_watcher_pods{state=\"plain\"} 0"), "{text}");
    }

    #[test]
    fn a_kind_that_nobody_knows_makes_no_series_of_its_own() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).expect("metrics");
        let before = text(&registry).lines().count();
        let rejected =
            |kind: String| Rejected { file: "x".into(), line: 1, kind, name: String::new(), error: String::new() };
        let many: Vec<Rejected> = (0..1000).map(|n| rejected(format!("Kind{n}"))).collect();
        metrics.manifests_read(&many);
        assert_eq!(text(&registry).lines().count(), before);
        assert!(text(&registry).contains("culvert_watcher_rejected_manifests{kind=\"other\"} 1000"));
        metrics.manifests_read(&[rejected("Pod".to_owned())]);
        let text = text(&registry);
        assert!(text.contains("culvert_watcher_rejected_manifests{kind=\"Pod\"} 1"), "{text}");
        assert!(text.contains("culvert_watcher_rejected_manifests{kind=\"other\"} 0"), "{text}");
    }
}

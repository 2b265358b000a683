//! Every metric of pod-watcher. Labels come from closed enums only.

use mesh_model::Reason;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Handles, looked up once.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Our part of an ADD, from the request to the answer.
    pub add_seconds: Histogram,
    enrolments: IntCounterVec,
    /// Rules read back, by timer or after a notification.
    pub audits: IntCounter,
    /// Rules found changed by somebody else.
    pub drifts: IntCounter,
    /// Rules written again.
    pub repairs: IntCounter,
    /// Keepers connected.
    pub keepers: IntGauge,
    /// Pods with redirect in force.
    pub captured: IntGauge,
    /// Of these, pods that a keeper serves.
    pub served: IntGauge,
    /// Keepers cut off because their queue was full.
    pub keeper_overflow: IntCounter,
    /// Manifests that were refused at the last load.
    pub rejected_manifests: IntGauge,
}

/// How an enrolment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Redirect in force, listeners read back.
    Captured,
    /// Found in force after a restart.
    Adopted,
    /// Left the mesh while running.
    OptedOut,
    /// Did not work.
    Failed(Reason),
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Captured => "Captured",
            Self::Adopted => "Adopted",
            Self::OptedOut => "OptedOut",
            Self::Failed(reason) => reason.as_str(),
        }
    }
}

impl Metrics {
    /// Registers all.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(format!("culvert_watcher_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(format!("culvert_watcher_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        // From 2 ms (nothing to do) to the deadline; seen: 20 to 60 ms with a keeper that answers at once.
        let buckets =
            vec![0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0];
        let opts = HistogramOpts::new("culvert_watcher_add_seconds", "pod-watcher's part of CNI ADD").buckets(buckets);
        let add_seconds = Histogram::with_opts(opts)?;
        registry.register(Box::new(add_seconds.clone()))?;
        let enrolments =
            IntCounterVec::new(Opts::new("culvert_watcher_enrolments_total", "Enrolments by result"), &["result"])?;
        registry.register(Box::new(enrolments.clone()))?;
        Ok(Self {
            add_seconds,
            enrolments,
            audits: counter("audits_total", "Rules read back and compared")?,
            drifts: counter("drifts_total", "Rules found changed by somebody else")?,
            repairs: counter("repairs_total", "Rules written again after a change")?,
            keepers: gauge("keepers", "Keepers connected")?,
            captured: gauge("pods_captured", "Pods with redirect in force")?,
            served: gauge("pods_served", "Captured pods that a keeper serves")?,
            keeper_overflow: counter("keeper_queue_full_total", "Keepers cut off because their queue was full")?,
            rejected_manifests: gauge("rejected_manifests", "Manifests refused at the last load")?,
        })
    }

    /// An enrolment ended.
    pub fn enrolment(&self, outcome: Outcome) {
        self.enrolments.with_label_values(&[outcome.as_str()]).inc();
    }
}

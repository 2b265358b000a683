//! Counters of the configuration client. Labels are the two types and closed words.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::Origin;
use super::store::TYPES;

/// What happened to the last good configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Started from.
    Loaded,
    /// Written.
    Saved,
    /// Not written.
    SaveFailed,
    /// Not understood.
    Broken,
    /// Another node's or cluster's.
    Elsewhere,
    /// Older than one that this node has had.
    Outdated,
    /// Put away after crashes.
    SetAside,
}

impl Fate {
    const ALL: [Self; 7] =
        [Self::Loaded, Self::Saved, Self::SaveFailed, Self::Broken, Self::Elsewhere, Self::Outdated, Self::SetAside];

    /// The label `event`.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Saved => "saved",
            Self::SaveFailed => "save_failed",
            Self::Broken => "broken",
            Self::Elsewhere => "elsewhere",
            Self::Outdated => "outdated",
            Self::SetAside => "set_aside",
        }
    }
}

/// See the module. Clones share the counters.
#[derive(Clone, Debug)]
pub struct Metrics {
    connected: IntGauge,
    // When the last stream ended; `None` while one is open, and before the first.
    lost: Arc<Mutex<Option<Instant>>>,
    /// Streams that could not be opened or ended.
    pub(super) disconnects: IntCounter,
    /// Answers by type.
    pub(super) answers: IntCounterVec,
    /// Records refused, by type.
    pub(super) rejected: IntCounterVec,
    /// Records held, by type.
    pub(super) held: IntGaugeVec,
    /// What happened to the last good configuration ([`Fate`]).
    pub(super) last_good: IntCounterVec,
    /// When the last good configuration that was loaded, or the last that was written, was made; seconds since 1970.
    pub(super) last_good_time: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let counter =
            |name: &str, help: &str| IntCounter::new(name, help).expect("the name is a constant in metric form");
        let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("the name is a constant in metric form");
        let by = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(name, help), &[label]).expect("name and label are constants in metric form")
        };
        let this = Self {
            connected: gauge("culvert_xds_connected", "1 while a configuration stream is open."),
            lost: Arc::default(),
            disconnects: counter("culvert_xds_disconnects_total", "Configuration streams that failed or ended."),
            answers: by("culvert_xds_answers_total", "Answers of the control plane, by type of record.", "type"),
            rejected: by("culvert_xds_rejected_total", "Records that could not be used, by type.", "type"),
            held: IntGaugeVec::new(Opts::new("culvert_xds_records", "Records held, by type."), &["type"])
                .expect("name and label are constants in metric form"),
            last_good: by("culvert_last_good_total", "Events of the last good configuration, by event.", "event"),
            last_good_time: gauge(
                "culvert_last_good_timestamp_seconds",
                "When the last good configuration was written, in seconds since 1970; 0: never.",
            ),
        };
        for type_url in TYPES {
            // Series exist at zero.
            this.answers.with_label_values(&[label(type_url)]);
            this.rejected.with_label_values(&[label(type_url)]);
            this.held.with_label_values(&[label(type_url)]);
        }
        Fate::ALL.iter().for_each(|event| drop(this.last_good.with_label_values(&[event.as_str()])));
        this
    }
}

impl Metrics {
    /// Makes them visible.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let Self { connected, lost: _, disconnects, answers, rejected, held, last_good, last_good_time } = self;
        registry.register(Box::new(connected.clone()))?;
        registry.register(Box::new(disconnects.clone()))?;
        registry.register(Box::new(answers.clone()))?;
        registry.register(Box::new(rejected.clone()))?;
        registry.register(Box::new(held.clone()))?;
        registry.register(Box::new(last_good.clone()))?;
        registry.register(Box::new(last_good_time.clone()))
    }

    /// A stream was opened, or has ended or could not be opened.
    pub(super) fn connected(&self, is: bool) {
        self.connected.set(i64::from(is));
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if is {
            *lost = None;
        } else {
            lost.get_or_insert_with(Instant::now);
        }
    }

    /// Whether a stream is open.
    #[cfg(test)]
    pub(super) fn is_connected(&self) -> bool {
        self.connected.get() == 1
    }

    /// How long ago a configuration of this origin was last known to be the control plane's.
    pub fn age(&self, origin: Origin) -> Duration {
        match origin {
            Origin::Nothing => Duration::ZERO,
            Origin::LastGood { written_at } => written_at.elapsed().unwrap_or_default(),
            Origin::Live => {
                let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
                lost.map_or(Duration::ZERO, |lost| lost.elapsed())
            }
        }
    }

    pub(super) fn event(&self, event: Fate) {
        self.last_good.with_label_values(&[event.as_str()]).inc();
    }
}

/// The label of a type: its last part.
pub(super) fn label(type_url: &'static str) -> &'static str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}

//! What following the API server costs and how often it goes wrong, by kind. The kinds are a closed set.

use mesh_api::manifests::Kind;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

/// Why a watch had to be begun again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The server ended it, as it does every few minutes.
    Over,
    /// The connection broke, or could not be made.
    Cut,
    /// Nothing came, not even a bookmark.
    Silent,
    /// The server answered with an error.
    Refused,
    /// The version is not kept any more: everything is listed again.
    Gone,
    /// Something came that makes no sense: everything is listed again.
    Garbage,
}

impl Cause {
    const ALL: [Self; 6] = [Self::Over, Self::Cut, Self::Silent, Self::Refused, Self::Gone, Self::Garbage];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Over => "over",
            Self::Cut => "cut",
            Self::Silent => "silent",
            Self::Refused => "refused",
            Self::Gone => "gone",
            Self::Garbage => "garbage",
        }
    }
}

/// The handles. Clones are the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    restarts: IntCounterVec,
    lists: IntCounterVec,
    bad: IntCounterVec,
    connected: IntGaugeVec,
    lookups: IntCounterVec,
    pub(crate) writes: IntCounterVec,
}

impl Metrics {
    /// Registers all under `culvert_<daemon>_source_…`, each series at zero.
    pub fn new(registry: &Registry, daemon: &str) -> prometheus::Result<Self> {
        let name = |name: &str| format!("culvert_{daemon}_source_{name}");
        let counter = |n: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name(n), help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let connected = IntGaugeVec::new(
            Opts::new(
                name("connected"),
                "1 while a watch of the API server is open, by kind; 0 also where it is not followed.",
            ),
            &["kind"],
        )?;
        registry.register(Box::new(connected.clone()))?;
        let metrics = Self {
            restarts: counter(
                "restarts_total",
                "Watches of the API server begun again, by kind and cause.",
                &["kind", "cause"],
            )?,
            lists: counter("lists_total", "Complete lists read from the API server, by kind.", &["kind"])?,
            bad: counter(
                "bad_objects_total",
                "Objects and lines of the API server that could not be used, by kind.",
                &["kind"],
            )?,
            lookups: counter(
                "lookups_total",
                "Pods asked for by name since their CNI ADD was ahead of the watch, by result.",
                &["result"],
            )?,
            writes: counter(
                "writes_total",
                "Conditions of pods or policies and Events written to the API server, by what and result.",
                &["what", "result"],
            )?,
            connected,
        };
        for kind in Kind::ALL {
            for cause in Cause::ALL {
                metrics.restarts.with_label_values(&[kind.as_str(), cause.as_str()]);
            }
            metrics.lists.with_label_values(&[kind.as_str()]);
            metrics.bad.with_label_values(&[kind.as_str()]);
            metrics.connected.with_label_values(&[kind.as_str()]);
        }
        for result in ["found", "missing", "failed", "busy"] {
            metrics.lookups.with_label_values(&[result]);
        }
        for what in ["condition", "event"] {
            for result in ["written", "failed", "dropped"] {
                metrics.writes.with_label_values(&[what, result]);
            }
        }
        Ok(metrics)
    }

    pub(crate) fn restarted(&self, kind: Kind, cause: Cause) {
        self.restarts.with_label_values(&[kind.as_str(), cause.as_str()]).inc();
    }

    pub(crate) fn listed(&self, kind: Kind) {
        self.lists.with_label_values(&[kind.as_str()]).inc();
    }

    pub(crate) fn bad(&self, kind: Kind) {
        self.bad.with_label_values(&[kind.as_str()]).inc();
    }

    pub(crate) fn connected(&self, kind: Kind, open: bool) {
        self.connected.with_label_values(&[kind.as_str()]).set(open.into());
    }

    pub(crate) fn lookup(&self, result: &'static str) {
        self.lookups.with_label_values(&[result]).inc();
    }

    /// A `condition` or an `event` was `written`, `failed` (a condition is tried again) or `dropped`.
    pub fn wrote(&self, what: &'static str, result: &'static str) {
        self.writes.with_label_values(&[what, result]).inc();
    }

    /// Restarts of a kind, of all causes: for tests.
    #[cfg(test)]
    pub(crate) fn restarts_of(&self, kind: Kind, cause: Cause) -> u64 {
        self.restarts.with_label_values(&[kind.as_str(), cause.as_str()]).get()
    }

    /// Lists of a kind: for tests.
    #[cfg(test)]
    pub(crate) fn lists_of(&self, kind: Kind) -> u64 {
        self.lists.with_label_values(&[kind.as_str()]).get()
    }

    /// Bad objects of a kind: for tests.
    #[cfg(test)]
    pub(crate) fn bad_of(&self, kind: Kind) -> u64 {
        self.bad.with_label_values(&[kind.as_str()]).get()
    }
}

//! What is counted of our plugin in the node's CNI chain.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

use super::add;

/// What had to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A network configuration.
    Chain,
    /// The plugin.
    Binary,
}

impl Part {
    const ALL: [Self; 2] = [Self::Chain, Self::Binary];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Chain => "chain",
            Self::Binary => "binary",
        }
    }
}

/// The handles. Clones are the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    in_place: IntGauge,
    left: IntGauge,
    writes: IntCounterVec,
}

impl Metrics {
    /// Registers all, each series at zero.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            in_place: add(
                registry,
                IntGauge::new(
                    "culvert_watcher_chain_in_place",
                    "1 while the plugin is in the chain that the runtime uses; 0 also where pod-watcher does not put it there.",
                )?,
            )?,
            left: add(
                registry,
                IntGauge::new(
                    "culvert_watcher_chain_files_left",
                    "Network configurations left alone since they cannot be understood or chained.",
                )?,
            )?,
            writes: add(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "culvert_watcher_chain_writes_total",
                        "Changes to the node's network configurations and plugins, at first and after somebody else's, by what was written.",
                    ),
                    &["what"],
                )?,
            )?,
        };
        Part::ALL.iter().for_each(|part| drop(metrics.writes.with_label_values(&[part.as_str()])));
        Ok(metrics)
    }

    /// What a look found.
    pub fn state(&self, in_place: bool, left: usize) {
        self.in_place.set(in_place.into());
        self.left.set(i64::try_from(left).unwrap_or(i64::MAX));
    }

    /// So much was written.
    pub fn wrote(&self, part: Part, times: u32) {
        self.writes.with_label_values(&[part.as_str()]).inc_by(times.into());
    }
}

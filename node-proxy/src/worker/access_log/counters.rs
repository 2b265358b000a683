//! What became of lines: written, or lost and why. Handles that are looked up once.

use prometheus::{IntCounter, IntCounterVec};

/// Why a line was left out or lost; the label `cause` of `culvert_access_log_dropped_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// `--access-log-sample` left it out.
    Sampled,
    /// `--access-log-rate` left it out.
    Rate,
    /// The writer was behind: its reader or disk stands still.
    QueueFull,
    /// The write failed: disk full, pipe closed.
    WriteFailed,
}

impl Cause {
    /// All of them, for a metric that exists at zero.
    #[cfg(test)]
    pub const ALL: [Cause; 4] = [Cause::Sampled, Cause::Rate, Cause::QueueFull, Cause::WriteFailed];

    /// The spelling in the metric.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Sampled => "sampled",
            Cause::Rate => "rate",
            Cause::QueueFull => "queue_full",
            Cause::WriteFailed => "write_failed",
        }
    }
}

/// One handle per fate.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Written whole.
    pub written: IntCounter,
    /// See [`Cause::Sampled`].
    pub sampled: IntCounter,
    /// See [`Cause::Rate`].
    pub rate: IntCounter,
    /// See [`Cause::QueueFull`].
    pub queue_full: IntCounter,
    /// See [`Cause::WriteFailed`].
    pub write_failed: IntCounter,
}

impl Counters {
    /// The handles of these metrics; `dropped` has the one label `cause`.
    pub fn of(written: &IntCounter, dropped: &IntCounterVec) -> Self {
        let by = |cause: Cause| dropped.with_label_values(&[cause.as_str()]);
        Self {
            written: written.clone(),
            sampled: by(Cause::Sampled),
            rate: by(Cause::Rate),
            queue_full: by(Cause::QueueFull),
            write_failed: by(Cause::WriteFailed),
        }
    }

    /// Of no registry.
    #[cfg(test)]
    pub fn unregistered() -> Self {
        let opts = prometheus::Opts::new("dropped", "test");
        let dropped = IntCounterVec::new(opts, &["cause"]).expect("constant name");
        Self::of(&IntCounter::new("written", "test").expect("constant name"), &dropped)
    }

    /// All that were left out or lost.
    #[cfg(test)]
    pub fn dropped(&self) -> u64 {
        [&self.sampled, &self.rate, &self.queue_full, &self.write_failed].map(IntCounter::get).iter().sum()
    }
}

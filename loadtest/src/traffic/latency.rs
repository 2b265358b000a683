//! Times of many operations, in a histogram of three digits.

use std::time::Duration;

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Quantiles of a sample, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// 999 of 1,000 took no longer.
    pub p999: f64,
    /// None took longer.
    pub max: f64,
}

/// Times being collected.
pub(super) struct Times(Histogram<u64>);

impl Times {
    /// From 1 ns to 2 minutes: longer than any client runs.
    pub(super) fn new() -> Result<Times> {
        Ok(Times(Histogram::new_with_bounds(1, 120_000_000_000, 3).map_err(|error| anyhow!("histogram: {error}"))?))
    }

    /// Adds one.
    pub(super) fn add(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// What they were; `None` without any.
    pub(super) fn latency(&self) -> Option<Latency> {
        let at = |quantile: f64| self.0.value_at_quantile(quantile) as f64 / 1e3;
        let some = !self.0.is_empty();
        some.then(|| Latency { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: self.0.max() as f64 / 1e3 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_added() {
        let mut times = Times::new().expect("constant bounds");
        assert_eq!(times.latency(), None);
        for us in 1..=1000 {
            times.add(Duration::from_micros(us));
        }
        let Latency { p50, p99, p999, max } = times.latency().expect("1,000 times");
        for (is, should) in [(p50, 500.0), (p99, 990.0), (p999, 999.0), (max, 1000.0)] {
            assert!((is / should - 1.0_f64).abs() < 0.002, "{is} is not {should}");
        }
    }
}

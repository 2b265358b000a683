//! How long to wait before the next try.

use std::time::Duration;

use rand::Rng as _;

/// Doubles from failure to failure, up to a limit, and is never the same for two that failed at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is about `first`, none is longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// It failed (again): wait this long. Between half and all of what the doubling gives: after an outage the nodes of a cluster do not
    /// come back in one instant.
    pub fn failed(&mut self) -> Duration {
        let whole = self.first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// It worked.
    pub fn worked(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_differ_and_start_over_after_a_success() {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(10));
        let mut backoff = Backoff::new(first, longest);
        let waits: Vec<Duration> = (0..80).map(|_| backoff.failed()).collect();
        assert!(waits[0] >= first / 2 && waits[0] <= first, "{:?}", waits[0]);
        assert!(waits.iter().all(|wait| *wait <= longest) && waits[10..].iter().all(|wait| *wait >= longest / 2));
        assert!(waits[10..].windows(2).any(|pair| pair[0] != pair[1]));
        backoff.worked();
        assert!(backoff.failed() <= first);
    }
}

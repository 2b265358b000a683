//! How fast one pod's sockets may be minted: a token bucket over a clock that is passed in.

use std::time::Duration;

/// Sockets that may be minted at once: 64 requests of 64, more than any stock fetches (guessed, generous).
const BURST: u32 = 4_096;
/// Sockets a second in the long run: at 9 us each (measured) 18 % of a core for one greedy pod (guessed).
const RATE: u32 = 20_000;

/// The bucket of one pod.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    level: u32,
    at: Duration,
}

impl Bucket {
    /// Full.
    pub fn new(now: Duration) -> Self {
        Self { level: BURST, at: now }
    }

    /// Takes up to `wanted`; how many there were.
    pub fn take(&mut self, now: Duration, wanted: u32) -> u32 {
        let earned = now.saturating_sub(self.at).as_micros() * u128::from(RATE) / 1_000_000;
        if earned > 0 {
            // The clock moves on only when something was earned, so that frequent asking loses no fractions.
            self.level = BURST.min(self.level.saturating_add(u32::try_from(earned).unwrap_or(BURST)));
            self.at = now;
        }
        let granted = wanted.min(self.level);
        self.level -= granted;
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_pod_gets_the_burst_and_then_the_rate() {
        let mut bucket = Bucket::new(Duration::ZERO);
        let mut granted = 0;
        // 10 s of asking for 64 sockets 10,000 times a second.
        for tick in 0..100_000_u64 {
            granted += bucket.take(Duration::from_micros(tick * 100), 64);
        }
        let bound = BURST + 10 * RATE;
        assert!((bound - 64..=bound).contains(&granted), "{granted}");
    }

    #[test]
    fn an_idle_pod_earns_no_more_than_the_burst_and_a_clock_that_stands_still_earns_nothing() {
        let mut bucket = Bucket::new(Duration::ZERO);
        assert_eq!(bucket.take(Duration::from_secs(3600), u32::MAX), BURST);
        assert_eq!(bucket.take(Duration::from_secs(3600), 1), 0);
        assert_eq!(bucket.take(Duration::ZERO, 1), 0);
    }
}

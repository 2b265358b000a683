//! When a worker that ended is started again: at once, unless it ends again and again.

use std::collections::VecDeque;
use std::time::Duration;

/// Ends are counted over this time.
const WINDOW: Duration = Duration::from_secs(10);
/// So many within the window are restarted at once.
const FREE: usize = 3;
const SHORTEST: Duration = Duration::from_millis(100);
/// Longest wait: connections wait in the listeners' queues meanwhile.
pub const LONGEST: Duration = Duration::from_secs(1);

/// What has happened to workers so far.
#[derive(Debug, Default)]
pub struct Restarts {
    ends: VecDeque<Duration>,
    quick: u32,
    all: u32,
    backoff: Option<Duration>,
}

impl Restarts {
    /// A worker that lived for `lived` has ended; how long to wait before the next.
    pub fn ended(&mut self, now: Duration, lived: Duration) -> Duration {
        self.quick = if lived < WINDOW { self.quick.saturating_add(1) } else { 0 };
        self.all = self.all.saturating_add(1);
        self.ends.retain(|end| now.saturating_sub(*end) < WINDOW);
        self.ends.push_back(now);
        if self.ends.len() <= FREE {
            self.backoff = None;
            return Duration::ZERO;
        }
        let wait = self.backoff.map_or(SHORTEST, |last| (last * 2).min(LONGEST));
        self.backoff = Some(wait);
        wait
    }

    /// How many workers ended.
    pub fn all(&self) -> u32 {
        self.all
    }

    /// How many workers in a row ended within ten seconds of their start.
    pub fn quick(&self) -> u32 {
        self.quick
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits after each end, for workers that live as long as said, with the waits themselves passing too.
    fn waits(lives: &[u64]) -> (Vec<u64>, u32) {
        let (mut restarts, mut now) = (Restarts::default(), Duration::ZERO);
        let waits = lives.iter().map(|lived| {
            now += Duration::from_millis(*lived);
            let wait = restarts.ended(now, Duration::from_millis(*lived));
            now += wait;
            wait.as_millis() as u64
        });
        (waits.collect(), restarts.quick())
    }

    #[test]
    fn the_first_three_ends_within_ten_seconds_cost_no_wait_and_further_ones_at_most_a_second() {
        assert_eq!(waits(&[1; 9]), (vec![0, 0, 0, 100, 200, 400, 800, 1000, 1000], 9));
    }

    #[test]
    fn a_worker_that_ends_now_and_then_is_always_restarted_at_once() {
        assert_eq!(waits(&[60_000; 20]), (vec![0; 20], 0));
        assert_eq!(waits(&[4_000; 20]).0, vec![0; 20]);
    }

    #[test]
    fn a_worker_that_lives_ends_the_row_of_quick_crashes() {
        assert_eq!(waits(&[1, 1, 1]).1, 3);
        assert_eq!(waits(&[1, 1, 1, 10_000]).1, 0);
        assert_eq!(waits(&[1, 1, 1, 10_000, 1]).1, 1);
    }
}

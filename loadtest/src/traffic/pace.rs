//! When each operation of a fixed rate is due. An operation's time counts from then, not from when the client got round to it:
//! a path that stalls is charged for everything that should have happened meanwhile (no coordinated omission).

use std::collections::VecDeque;
use std::time::Duration;

/// A schedule, in time since its start.
pub(super) struct Pace {
    period: Duration,
    made: u32,
    end: Duration,
    waiting: VecDeque<Duration>,
}

impl Pace {
    /// `rate` per second for `lasts`.
    pub(super) fn new(rate: f64, lasts: Duration) -> Pace {
        Pace { period: Duration::from_secs_f64(1.0 / rate.max(0.001)), made: 0, end: lasts, waiting: VecDeque::new() }
    }

    /// Time between two operations.
    pub(super) fn period(&self) -> Duration {
        self.period
    }

    /// Moves what is due by `now` to those that wait for a connection.
    pub(super) fn advance(&mut self, now: Duration) {
        loop {
            let due = self.period * self.made;
            if due > now || due >= self.end {
                return;
            }
            self.made += 1;
            self.waiting.push_back(due);
        }
    }

    /// The moment at which the longest waiting one was due; it is begun now.
    pub(super) fn take(&mut self) -> Option<Duration> {
        self.waiting.pop_front()
    }

    /// Those that were due and never begun.
    pub(super) fn left(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_stall_is_charged_to_every_operation_that_was_due_in_it() {
        let mut pace = Pace::new(1000.0, MS * 200);
        // Serves each at once, but does nothing between 50 and 150 ms.
        let mut late = Vec::new();
        for now in (0..50).chain(150..200).map(|ms| MS * ms) {
            pace.advance(now);
            while let Some(due) = pace.take() {
                late.push(now - due);
            }
        }
        assert_eq!(late.len(), 200, "every operation of the schedule is there");
        let charged = late.iter().filter(|late| **late > Duration::ZERO).count();
        assert_eq!((charged, late.iter().max()), (100, Some(&(MS * 100))));
    }

    #[test]
    fn nothing_is_due_before_its_time_or_after_the_end() {
        let mut pace = Pace::new(100.0, MS * 30);
        pace.advance(Duration::ZERO);
        assert_eq!((pace.take(), pace.take()), (Some(Duration::ZERO), None));
        pace.advance(MS * 9);
        assert_eq!(pace.take(), None);
        pace.advance(MS * 1000);
        assert_eq!(pace.left(), 2, "10 and 20 ms, and 30 is the end");
    }
}

//! The highest counter of a last good configuration that was seen on this node: what a worker must not go back behind.
//!
//! Pure. pod-watcher keeps it on the disk, where the worker's user cannot write; this process has it in memory and is the only one that a
//! worker can ask. A worker is answered only when pod-watcher has been heard, so that a new keeper does not say 0 of a node with a past.
//! A worker tells what it has written, and is believed as little as in anything: see [`LEAP`] and [`PAUSE`].

use std::time::Duration;

/// A worker writes once a second at most and tells each time. What comes sooner than this after the last is not taken, so that a worker
/// which has been taken over cannot keep pod-watcher's disk busy.
const PAUSE: Duration = Duration::from_millis(100);
/// Furthest that one record may raise the counter: whoever leaped to the end would leave no number for anybody after him. 2^32 leaps at
/// the pace of [`PAUSE`] take 13 years. A jump from 0 happens once, when pod-watcher's file was lost and the worker's was not.
const LEAP: u64 = 1 << 32;

/// See the module.
#[derive(Debug, Default)]
pub struct Highest {
    highest: u64,
    /// pod-watcher has told, or is one that keeps no counter.
    known: bool,
    worker: Worker,
    raised: Option<Duration>,
}

/// What the worker knows of counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Worker {
    /// There is none, or it is one of a release that has never asked.
    #[default]
    Silent,
    /// It has asked, and waits for the answer.
    Waits,
    /// It was told.
    Told,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// To the worker.
    Worker(u64),
    /// To pod-watcher.
    Watcher(u64),
}

impl Highest {
    /// pod-watcher is there; one that keeps no counter tells none.
    pub fn watcher_up(&mut self, keeps: bool) -> Vec<Say> {
        if keeps {
            return Vec::new();
        }
        self.known = true;
        self.answer().into_iter().collect()
    }

    /// pod-watcher's word, after its greeting and whenever it hears of a higher one.
    pub fn watcher_says(&mut self, highest: u64) -> Vec<Say> {
        let rises = highest > self.highest;
        self.highest = self.highest.max(highest);
        self.known = true;
        let more = (self.highest > highest).then_some(Say::Watcher(self.highest));
        let told = match self.worker {
            Worker::Told if rises => Some(Say::Worker(self.highest)),
            _ => self.answer(),
        };
        more.into_iter().chain(told).collect()
    }

    /// The worker's word. It is answered whatever it says.
    pub fn worker_says(&mut self, now: Duration, counter: u64) -> Vec<Say> {
        self.worker = Worker::Waits;
        let soon = self.raised.is_some_and(|raised| now.saturating_sub(raised) < PAUSE);
        let raises = counter > self.highest && counter - self.highest <= LEAP && !soon;
        let told = raises.then(|| {
            self.highest = counter;
            self.raised = Some(now);
            Say::Watcher(counter)
        });
        told.into_iter().chain(self.answer()).collect()
    }

    /// The next one has to ask.
    pub fn worker_gone(&mut self) {
        self.worker = Worker::Silent;
    }

    fn answer(&mut self) -> Option<Say> {
        (self.known && self.worker == Worker::Waits).then(|| {
            self.worker = Worker::Told;
            Say::Worker(self.highest)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Duration {
        LATER * seconds
    }

    #[test]
    fn a_worker_that_is_quicker_than_pod_watcher_waits_for_the_nodes_past() {
        let mut highest = Highest::default();
        assert_eq!(highest.watcher_up(true), []);
        assert_eq!(highest.worker_says(at(1), 0), []);
        assert_eq!(highest.watcher_says(7), [Say::Worker(7)]);
        // Once known, always: losing pod-watcher changes nothing.
        highest.worker_gone();
        assert_eq!(highest.worker_says(at(2), 0), [Say::Worker(7)]);
    }

    #[test]
    fn what_a_worker_has_written_goes_to_pod_watcher_and_to_no_worker_that_has_not_asked() {
        let mut highest = Highest::default();
        highest.watcher_says(7);
        assert_eq!(highest.worker_says(at(1), 8), [Say::Watcher(8), Say::Worker(8)]);
        assert_eq!(highest.worker_says(at(2), 8), [Say::Worker(8)]);
        assert_eq!(highest.worker_says(at(3), 3), [Say::Worker(8)], "it never sinks");
        // Another keeper's worker has written meanwhile: ours hears of it.
        assert_eq!(highest.watcher_says(9), [Say::Worker(9)]);
        assert_eq!(highest.watcher_says(9), []);
        // One of the release before knows no such message.
        highest.worker_gone();
        assert_eq!(highest.watcher_says(10), []);
    }

    #[test]
    fn a_pod_watcher_of_the_release_before_tells_nothing_and_memory_has_to_do() {
        let mut highest = Highest::default();
        assert_eq!(highest.worker_says(at(1), 0), []);
        assert_eq!(highest.watcher_up(false), [Say::Worker(0)]);
        highest.worker_says(at(2), 1);
        highest.worker_gone();
        assert_eq!(highest.worker_says(at(3), 0), [Say::Worker(1)]);
    }

    #[test]
    fn a_pod_watcher_that_has_forgotten_is_told() {
        let mut highest = Highest::default();
        highest.watcher_says(7);
        assert_eq!(highest.watcher_says(0), [Say::Watcher(7)]);
    }

    #[test]
    fn a_worker_can_neither_use_the_counter_up_nor_raise_it_all_the_time() {
        let mut highest = Highest::default();
        highest.watcher_says(7);
        assert_eq!(highest.worker_says(at(1), u64::MAX), [Say::Worker(7)]);
        assert_eq!(highest.worker_says(at(1), 8 + LEAP), [Say::Worker(7)]);
        assert_eq!(highest.worker_says(at(1), 8), [Say::Watcher(8), Say::Worker(8)]);
        assert_eq!(highest.worker_says(at(1) + PAUSE / 2, 9), [Say::Worker(8)]);
        assert_eq!(highest.worker_says(at(1) + PAUSE, 9), [Say::Watcher(9), Say::Worker(9)]);
    }
}

//! Counters that each thread has for itself, added up when they are read.
//!
//! A counter that all threads share moves its cache line between cores with every byte counted. Here each thread writes its own
//! line, with a plain load and a plain store: nobody else writes it. What this must never become: a place that two threads write.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static INDEX: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Gives the calling thread its number, from 0 up to the number of threads; once, before it counts anything.
pub fn enter(index: usize) {
    INDEX.set(index);
}

/// The calling thread's place among `threads` and one more, which threads without a number share (there only one of them counts:
/// the main thread, or a test's).
pub fn here(threads: usize) -> usize {
    INDEX.get().min(threads)
}

/// A number that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds. Only the thread whose it is may call this.
    pub fn add(&self, more: u64) {
        // No `fetch_add`: there is one writer, and an atomic addition costs as much as all else that is counted for a small read.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Takes away, for what is now rather than so far. One thread's number may wrap below zero; the sum over threads does not.
    pub fn sub(&self, less: u64) {
        self.add(less.wrapping_neg());
    }

    /// As it is.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// `count` numbers, all 0.
pub fn counts(count: usize) -> Box<[Count]> {
    (0..count).map(|_| Count::default()).collect()
}

/// Two cache lines each, so that no two threads write to one (some processors fetch lines in pairs).
#[derive(Debug)]
#[repr(align(128))]
struct Own<T>(T);

/// One value for each thread.
#[derive(Debug)]
pub struct PerThread<T>(Box<[Own<T>]>);

impl<T> PerThread<T> {
    /// For this many threads and one more.
    pub fn new(threads: usize, make: impl Fn() -> T) -> Self {
        Self((0..=threads).map(|_| Own(make())).collect())
    }

    /// The calling thread's.
    pub fn here(&self) -> &T {
        &self.0[here(self.0.len() - 1)].0
    }

    /// Every thread's.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|own| &own.0)
    }

    /// The sum of one number over all threads.
    pub fn sum(&self, of: impl Fn(&T) -> &Count) -> u64 {
        self.0.iter().fold(0, |sum, own| sum.wrapping_add(of(&own.0).get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_count_for_themselves_adds_up_and_what_is_taken_elsewhere_too() {
        let numbers = PerThread::new(4, Count::default);
        std::thread::scope(|scope| {
            for index in 0..4 {
                let numbers = &numbers;
                scope.spawn(move || {
                    enter(index);
                    (0..100_000).for_each(|_| numbers.here().add(3));
                });
            }
        });
        assert_eq!(numbers.sum(|count| count), 1_200_000);
        // This thread has no number.
        numbers.here().sub(200_000);
        assert_eq!(numbers.sum(|count| count), 1_000_000);
    }
}

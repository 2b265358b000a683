//! Traffic that goes on while something happens: every request is counted, and each that fails is kept.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::shop::{Member, say};
use crate::support::figure;

/// Between two rounds of one target.
const PACE: Duration = Duration::from_millis(20);

/// Waits for this time and no less: a thread that has joined others may be woken early by them.
pub(crate) fn lasts(time: Duration) {
    let begun = Instant::now();
    while let Some(left) = time.checked_sub(begun.elapsed()) {
        std::thread::park_timeout(left);
    }
}

/// What came of the traffic meanwhile.
#[derive(Default)]
struct Count {
    sent: usize,
    failed: Vec<String>,
}

/// Who talks to whom, and what failed in all of it.
pub(crate) struct Traffic<'a> {
    from: &'a Member,
    to: &'a [Member],
    failed: Vec<String>,
}

impl<'a> Traffic<'a> {
    pub(crate) fn new(from: &'a Member, to: &'a [Member]) -> Traffic<'a> {
        Traffic { from, to, failed: Vec::new() }
    }

    /// Talks while `work` is done, and prints what failed.
    pub(crate) fn during(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let count = self.talk(work).with_context(|| name.to_owned())?;
        figure(&format!("failed while {name}"), count.failed.len(), "requests", &format!("of {}", count.sent));
        ensure!(count.sent > 100, "{name}: only {} requests were tried", count.sent);
        self.failed.extend(count.failed.into_iter().take(5).map(|what| format!("{name}: {what}")));
        Ok(())
    }

    /// That nothing did.
    pub(crate) fn never_failed(&self) -> Result<()> {
        ensure!(self.failed.is_empty(), "{:#?}", self.failed);
        Ok(())
    }

    /// New connections and one old one, to each target over each family, one after the other, until `work` is done.
    fn talk(&self, work: impl FnOnce() -> Result<()>) -> Result<Count> {
        let (over, count, from) = (AtomicBool::new(false), Mutex::new(Count::default()), self.from);
        let done = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .to
                .iter()
                .flat_map(Member::echo)
                .map(|to| {
                    let (over, count) = (&over, &count);
                    scope.spawn(move || -> Result<()> {
                        let old = from.connect(to)??;
                        while !over.load(Ordering::Relaxed) {
                            let met = [say(&old), from.asks(to)?];
                            let mut count = count.lock().expect("no panic while held");
                            count.sent += met.len();
                            count
                                .failed
                                .extend(met.into_iter().filter_map(|met| Some(format!("{to}: {}", met.err()?))));
                            drop(count);
                            lasts(PACE);
                        }
                        Ok(())
                    })
                })
                .collect();
            let done = work();
            over.store(true, Ordering::Relaxed);
            threads.into_iter().try_for_each(|thread| thread.join().expect("what fails is returned"))?;
            done
        });
        done.map(|()| count.into_inner().expect("no panic while held"))
    }
}

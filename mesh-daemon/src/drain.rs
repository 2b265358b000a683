//! Drain as two handles: one asks and waits, clones of the other are held by work in progress. Dropping is the answer.
//!
//! Stop order everywhere: stop accepting → finish or deadline → force (the owner's `tasks::Group` cuts what is left).

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Asks for the drain and waits for it.
#[derive(Debug)]
pub struct Trigger {
    ask: watch::Sender<bool>,
    held: mpsc::Receiver<()>,
}

/// Held by work in progress; learns when the drain is asked for.
#[derive(Clone, Debug)]
pub struct Watch {
    asked: watch::Receiver<bool>,
    _hold: mpsc::Sender<()>,
}

/// A connected pair.
pub fn pair() -> (Trigger, Watch) {
    let (ask, asked) = watch::channel(false);
    // Nothing is ever sent: the channel closes when the last `Watch` is dropped.
    let (hold, held) = mpsc::channel(1);
    (Trigger { ask, held }, Watch { asked, _hold: hold })
}

impl Trigger {
    /// Asks everyone to come to an end. Twice is the same as once.
    pub fn ask(&self) {
        self.ask.send_replace(true);
    }

    /// Waits until every [`Watch`] is dropped, up to the deadline. Whether all were.
    pub async fn drained(mut self, deadline: Duration) -> bool {
        self.ask();
        tokio::time::timeout(deadline, self.held.recv()).await.is_ok()
    }
}

impl Watch {
    /// Resolves once the drain is asked for, or when the asking side is gone (nobody is left to ask: the same). Safe to drop
    /// half-way in a `select!`.
    pub async fn asked(&self) {
        let mut asked = self.asked.clone();
        // An error means the trigger was dropped.
        let _ = asked.wait_for(|asked| *asked).await;
    }

    /// Whether it was asked for.
    pub fn is_asked(&self) -> bool {
        *self.asked.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drained_means_that_the_last_holder_let_go() {
        let (trigger, watch) = pair();
        let work = tokio::spawn({
            let watch = watch.clone();
            async move {
                watch.asked().await;
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
        });
        drop(watch);
        assert!(trigger.drained(Duration::from_secs(10)).await);
        assert!(work.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_stays_makes_the_deadline_pass() {
        let (trigger, watch) = pair();
        assert!(!watch.is_asked());
        assert!(!trigger.drained(Duration::from_secs(1)).await);
        assert!(watch.is_asked());
    }
}

//! What is due when. One sorted list instead of a task per timer: all of it is the node's.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_model::PodUid;
use tokio::time::Instant;

use crate::enrol::{RequestId, Timer};

/// What a timer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Of a pod's enrolment.
    Pod {
        /// Whose.
        uid: PodUid,
        /// Echoed.
        epoch: u32,
        /// Which.
        timer: Timer,
    },
    /// A keeper should have answered this message.
    Answer(u64),
    /// The record of this ADD should have come.
    Waiting(RequestId),
}

/// Sorted by time.
#[derive(Debug, Default)]
pub struct Timers {
    all: BTreeMap<(Instant, u64), Due>,
    next: u64,
}

impl Timers {
    /// Starts one.
    pub fn arm(&mut self, after: Duration, due: Due) {
        self.next += 1;
        self.all.insert((Instant::now() + after, self.next), due);
    }

    /// Resolves when the first is due; never if there is none. May be dropped at any time.
    pub async fn wait(&self) {
        match self.all.keys().next() {
            Some((at, _)) => tokio::time::sleep_until(*at).await,
            None => std::future::pending().await,
        }
    }

    /// Takes what is due.
    pub fn due(&mut self) -> Vec<Due> {
        let later = self.all.split_off(&(Instant::now(), u64::MAX));
        std::mem::replace(&mut self.all, later).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn timers_come_due_in_order_and_once() {
        let mut timers = Timers::default();
        timers.arm(Duration::from_secs(2), Due::Answer(2));
        timers.arm(Duration::from_secs(1), Due::Answer(1));
        timers.wait().await;
        assert_eq!(timers.due(), [Due::Answer(1)]);
        timers.wait().await;
        assert_eq!(timers.due(), [Due::Answer(2)]);
        assert_eq!(timers.due(), []);
    }
}

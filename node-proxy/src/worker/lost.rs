//! Whether an accept loop has ended that should not have: by a bug, for its pod leaves no other way.
//!
//! The keeper still holds the listener, so the kernel goes on taking connections, which nobody would ever serve. Whoever runs the
//! worker hears of it and ends it: a new one takes the listener up within milliseconds.

use std::sync::OnceLock;

use tokio::sync::Notify;

use super::accept::Port;
use super::pods::Pod;

/// See the module.
#[derive(Debug, Default)]
pub struct Lost {
    first: OnceLock<String>,
    told: Notify,
}

impl Lost {
    /// Resolves with what was lost first. Safe to drop half-way; heard by one.
    pub async fn heard(&self) -> String {
        loop {
            if let Some(what) = self.first.get() {
                return what.clone();
            }
            self.told.notified().await;
        }
    }

    /// Runs an accept loop. However it ends, by a panic too, while its pod does not leave: it is told.
    pub async fn watched(&self, pod: &Pod, port: Port, accepting: impl Future<Output = ()>) {
        let _watched = Watched { lost: self, pod, port };
        accepting.await;
    }
}

struct Watched<'w> {
    lost: &'w Lost,
    pod: &'w Pod,
    port: Port,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if !self.pod.leaving().is_asked() {
            let _ = self.lost.first.set(format!("accept loop of pod {}, {:?}", self.pod.name(), self.port));
            self.lost.told.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::pods::testing::{facts, pod};
    use super::*;

    #[tokio::test]
    async fn an_accept_loop_that_ends_unasked_is_told_also_when_it_panics() {
        for panics in [false, true] {
            let lost = Arc::new(Lost::default());
            let of_task = lost.clone();
            let accepting = tokio::spawn(async move {
                let pod = pod(1, &facts("shop", "web", "198.18.1.5"));
                let ends = async move { assert!(!panics, "on purpose") };
                of_task.watched(&pod, Port::Inbound, ends).await;
            });
            let heard = tokio::time::timeout(Duration::from_secs(1), lost.heard()).await.expect("within a second");
            assert_eq!(heard, "accept loop of pod shop/web, Inbound");
            assert_eq!(accepting.await.is_err(), panics);
        }
    }

    #[tokio::test]
    async fn an_accept_loop_of_a_pod_that_leaves_may_end() {
        let (lost, pod) = (Lost::default(), pod(1, &facts("shop", "web", "198.18.1.5")));
        pod.leave();
        lost.watched(&pod, Port::Inbound, async {}).await;
        assert!(lost.first.get().is_none());
    }
}

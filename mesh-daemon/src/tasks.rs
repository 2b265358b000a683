//! Owned tasks: every task has a group, and the group is waited for. A bare `tokio::spawn` makes a reader ask who ends it.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

/// A set of tasks with one owner. Dropping the group aborts what is left.
#[derive(Debug)]
pub struct Group {
    inner: Arc<Inner>,
}

/// Spawns into a group without owning it. After the group has finished or was dropped, nothing is spawned any more.
#[derive(Clone, Debug)]
pub struct Handle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: &'static str,
    // `None` once the group is finished. A short std lock: never held over an await.
    tasks: Mutex<Option<JoinSet<()>>>,
}

impl Group {
    /// An empty group; the name is for logs.
    pub fn new(name: &'static str) -> Self {
        Self { inner: Arc::new(Inner { name, tasks: Mutex::new(Some(JoinSet::new())) }) }
    }

    /// Starts a task in this group on the current runtime.
    pub fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.inner.spawn(what, task);
    }

    /// A handle for those who start tasks but do not own them.
    pub fn handle(&self) -> Handle {
        Handle { inner: self.inner.clone() }
    }

    /// How many tasks are running.
    pub fn len(&self) -> usize {
        self.inner.with(|tasks| {
            reap(self.inner.name, tasks);
            tasks.len()
        })
    }

    /// Whether no task is running.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for all tasks up to the deadline, then aborts the rest. Returns how many were aborted. The caller has asked them
    /// to end by other means (a drain, a closed queue) before.
    pub async fn finish(self, deadline: Duration) -> usize {
        let Some(mut tasks) = self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).take() else { return 0 };
        let ended = tokio::time::timeout(deadline, async {
            while let Some(result) = tasks.join_next().await {
                note(self.inner.name, result);
            }
        })
        .await;
        let left = tasks.len();
        if ended.is_err() {
            tracing::warn!(group = self.inner.name, left, "tasks did not end in time and are cut");
            tasks.shutdown().await;
        }
        left
    }

    /// Aborts all tasks and waits until they are gone: for those that are for ever, once nobody needs them any more. What they
    /// held is dropped when this returns.
    pub async fn cut(self) {
        let tasks = self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Dropping the JoinSet aborts its tasks.
        drop(self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Handle {
    /// Starts a task in the group; `false` when the group has ended and the task was dropped unstarted.
    pub fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) -> bool {
        self.inner.spawn(what, task)
    }
}

impl Inner {
    fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let mut slot = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tasks) = slot.as_mut() else {
            tracing::debug!(group = self.name, what, "not started: the group has ended");
            return false;
        };
        reap(self.name, tasks);
        tasks.spawn(task);
        true
    }

    fn with<T: Default>(&self, read: impl FnOnce(&mut JoinSet<()>) -> T) -> T {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(read).unwrap_or_default()
    }
}

/// Takes ended tasks out, so that a long-lived group does not grow with every connection it has seen.
fn reap(group: &'static str, tasks: &mut JoinSet<()>) {
    while let Some(result) = tasks.try_join_next() {
        note(group, result);
    }
}

fn note(group: &'static str, result: Result<(), tokio::task::JoinError>) {
    if let Err(error) = result
        && error.is_panic()
    {
        tracing::error!(group, %error, "a task panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn finish_waits_for_tasks_that_end_and_cuts_those_that_do_not() {
        let group = Group::new("test");
        group.spawn("ends", async { tokio::time::sleep(Duration::from_secs(1)).await });
        group.spawn("stays", std::future::pending());
        assert_eq!(group.len(), 2);
        assert_eq!(group.finish(Duration::from_secs(5)).await, 1);
    }

    #[tokio::test]
    async fn an_ended_task_leaves_the_group() {
        let group = Group::new("test");
        for _ in 0..100 {
            group.spawn("short", async {});
            tokio::task::yield_now().await;
        }
        while !group.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_a_cut_task_held_is_gone() {
        let group = Group::new("test");
        let held = Arc::new(());
        let of_task = held.clone();
        group.spawn("for ever", async move {
            let _held = of_task;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        group.cut().await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn a_finished_group_starts_nothing_more() {
        let group = Group::new("test");
        let handle = group.handle();
        assert!(handle.spawn("in time", async {}));
        group.finish(Duration::from_secs(1)).await;
        assert!(!handle.spawn("late", async {}));
    }
}

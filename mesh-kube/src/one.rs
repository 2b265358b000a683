//! Follows a single object by its name: for questions about oneself (is our DaemonSet still there, what does our node say), which need
//! no conversion and no store.

use std::time::Duration;

use mesh_daemon::drain;
use serde_json::Value;
use tokio::sync::watch;

use crate::api::Api;
use crate::backoff::Backoff;
use crate::lines::Lines;
use crate::paths::escape;

/// Waits after failures.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Between looks for an object that is not there.
const ABSENT: Duration = Duration::from_secs(5);
/// A watch is asked to end after this time, and taken for dead some time later: an object that nobody changes is silent, and here no
/// bookmarks are waited for.
const LIFE: Duration = Duration::from_secs(120);
const DEAD: Duration = Duration::from_secs(150);

/// What is known of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Known {
    /// Nobody has said anything yet.
    #[default]
    Unknown,
    /// It is not there, and was not before as far as we know.
    Never,
    /// As it was said last.
    There(Value),
    /// It was there and was deleted.
    Gone,
}

impl Known {
    /// After the server has said that it is there (`Some`) or not.
    #[must_use]
    pub fn then(&self, object: Option<Value>) -> Self {
        match (self, object) {
            (_, Some(object)) => Self::There(object),
            (Self::Unknown | Self::Never, None) => Self::Never,
            (Self::There(_) | Self::Gone, None) => Self::Gone,
        }
    }
}

/// Where one object is.
#[derive(Clone, Debug)]
pub struct Single {
    collection: String,
    name: String,
}

impl Single {
    /// A Node.
    pub fn node(name: &str) -> Self {
        Self { collection: "/api/v1/nodes".to_owned(), name: name.to_owned() }
    }

    /// A DaemonSet.
    pub fn daemon_set(namespace: &str, name: &str) -> Self {
        let collection = format!("/apis/apps/v1/namespaces/{}/daemonsets", escape(namespace));
        Self { collection, name: name.to_owned() }
    }

    /// Its own path.
    pub fn path(&self) -> String {
        format!("{}/{}", self.collection, escape(&self.name))
    }

    /// Asks once. What was known, and what the answer makes of it; without an answer it stays.
    pub async fn ask(&self, api: &Api, known: &Known) -> Known {
        match api.get(&self.path()).await {
            Ok(object) => known.then(object),
            Err(error) => {
                tracing::warn!(object = self.path(), %error, "the API server cannot be asked; what was known before counts");
                known.clone()
            }
        }
    }

    /// Tells of each change until the stop is asked for. While the server cannot be asked, what is known stays.
    pub async fn follow(self, api: Api, tell: watch::Sender<Known>, stop: drain::Watch) {
        // Dropping the work half-way is safe: it writes nothing.
        tokio::select! {
            biased;
            () = stop.asked() => {}
            () = self.for_ever(&api, &tell) => {}
        }
    }

    async fn for_ever(&self, api: &Api, tell: &watch::Sender<Known>) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match api.get(&self.path()).await {
                Ok(object) => {
                    backoff.worked();
                    let version = object.as_ref().and_then(version_of).map(str::to_owned);
                    self.heard(tell, object);
                    match version {
                        Some(version) => self.watch(api, tell, &version).await,
                        None => tokio::time::sleep(ABSENT).await,
                    }
                }
                Err(error) => {
                    if backoff.failures() == 0 {
                        tracing::warn!(object = self.path(), %error, "the API server cannot be asked; what is known stays");
                    }
                    tokio::time::sleep(backoff.failed()).await;
                }
            }
        }
    }

    fn heard(&self, tell: &watch::Sender<Known>, object: Option<Value>) {
        tell.send_if_modified(|known| {
            let next = known.then(object);
            if next == Known::Gone && *known != next {
                tracing::info!(object = self.path(), "deleted");
            }
            std::mem::replace(known, next) != *known
        });
    }

    /// Until the watch ends, in whatever way: the object is read again then.
    async fn watch(&self, api: &Api, tell: &watch::Sender<Known>, version: &str) {
        let path = format!(
            "{}?watch=true&fieldSelector=metadata.name%3D{}&resourceVersion={}&timeoutSeconds={}",
            self.collection,
            escape(&self.name),
            escape(version),
            LIFE.as_secs()
        );
        let begun = tokio::time::Instant::now();
        if let Ok(body) = api.stream(&path).await {
            let mut lines = Lines::new(body);
            while let Ok(Ok(Some(line))) = tokio::time::timeout_at(begun + DEAD, lines.next()).await {
                let Some(object) = event(&self.name, &line) else { break };
                self.heard(tell, object);
            }
        }
        // A server that ends every watch at once is not asked in a loop.
        tokio::time::sleep_until(begun + RETRY.0).await;
    }
}

/// What a line says of the object of this name: `Some(None)` that it was deleted, `None` that there is no going on.
fn event(name: &str, line: &[u8]) -> Option<Option<Value>> {
    let mut event: Value = serde_json::from_slice(line).ok()?;
    let object = event.get_mut("object").map(Value::take)?;
    if object.pointer("/metadata/name").and_then(Value::as_str) != Some(name) {
        return None;
    }
    match event.get("type").and_then(Value::as_str) {
        Some("ADDED" | "MODIFIED") => Some(Some(object)),
        Some("DELETED") => Some(None),
        _ => None,
    }
}

fn version_of(object: &Value) -> Option<&str> {
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake::Fake;

    #[test]
    fn gone_is_only_what_was_there() {
        let there = Known::There(json!({}));
        for (before, answer, after) in [
            (Known::Unknown, None, Known::Never),
            (Known::Never, None, Known::Never),
            (there.clone(), None, Known::Gone),
            (Known::Gone, None, Known::Gone),
            (Known::Gone, Some(json!({})), there.clone()),
            (Known::Unknown, Some(json!({})), there),
        ] {
            assert_eq!(before.then(answer), after);
        }
    }

    #[tokio::test]
    async fn changes_and_deletion_are_told_through_cuts_and_refusals_that_say_nothing() {
        let fake = Fake::start("127.0.0.1").await;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, fake.kubeconfig()).expect("written");
        let api = Api::connect(Some(&path)).await.expect("a client");
        let single = Single::daemon_set("mesh", "ours");
        let set = |n: u32| json!({"metadata": {"namespace": "mesh", "name": "ours", "generation": n}});
        let (tell, mut known) = watch::channel(Known::Unknown);
        let (trigger, stop) = drain::pair();
        let task = tokio::spawn(single.clone().follow(api.clone(), tell, stop));
        let mut until = async |what: &str, wanted: &dyn Fn(&Known) -> bool| {
            let waited = tokio::time::timeout(Duration::from_secs(20), known.wait_for(|known| wanted(known))).await;
            assert!(waited.is_ok(), "{what}");
        };
        let generation =
            |n: u32| move |known: &Known| matches!(known, Known::There(one) if one["metadata"]["generation"] == n);
        until("never", &|known| *known == Known::Never).await;
        fake.put_in("/apis/apps/v1/daemonsets", set(1));
        until("there", &generation(1)).await;
        fake.put_in("/apis/apps/v1/daemonsets", json!({"metadata": {"namespace": "mesh", "name": "other"}}));
        fake.put_in("/apis/apps/v1/daemonsets", set(2));
        until("changed", &generation(2)).await;
        fake.refuse("daemonsets", 403, 1000);
        fake.cut();
        let before = fake.requests().len();
        while fake.requests().len() < before + 2 {
            tokio::task::yield_now().await;
        }
        until("a refusal is no answer", &generation(2)).await;
        assert_eq!(single.ask(&api, &Known::Gone).await, Known::Gone);
        fake.forgive();
        fake.delete_in("/apis/apps/v1/daemonsets", "mesh", "ours");
        until("deleted", &|known| *known == Known::Gone).await;
        assert_eq!(single.ask(&api, &Known::Unknown).await, Known::Never);
        trigger.ask();
        task.await.expect("ends");
    }
}

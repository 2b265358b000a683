//! Writes what has to be written, while we hold the Lease: one after the other, a condition against the version that was read, and never
//! the same twice. What waits is the latest list that was compiled, so there is no queue that could grow.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::ObjectRef;
use mesh_daemon::drain;
use mesh_kube::{Api, Backoff, Error, Method, Metrics, object_path};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Needed;

/// Between writes: at most 20 a second, so 1,000 new policies are told within a minute. Each write is heard by every control plane, and
/// compiled.
const SPACING: Duration = Duration::from_millis(50);
/// Of one object, so often at most, where it may wait: only numbers of a condition's message differ, since pods come and go, or an Event
/// says something else.
const CALM: Duration = Duration::from_secs(60);
/// What was said and still holds is said again after this time, in which an API server forgets Events (`--event-ttl`, one hour).
const AGAIN: Duration = Duration::from_secs(61 * 60);
/// How often what was put off is looked at again.
const LOOK: Duration = Duration::from_secs(10);
/// For one write, answer included.
const PATIENCE: Duration = Duration::from_secs(20);
/// Waits after failures.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Nothing is to be tried again.
    Done,
    /// Something is, and was waited for.
    Failed,
}

/// Writes conditions and Events.
pub struct Writer {
    api: Api,
    /// Our own name.
    me: String,
    leads: watch::Receiver<bool>,
    needed: watch::Receiver<Arc<Vec<Needed>>>,
    metrics: Metrics,
    /// What was tried: for which cause, and when. No longer than it matters.
    tried: HashMap<ObjectRef, (String, Instant)>,
    /// The last one, so that one that cannot be written does not hold up those behind it.
    last: Option<ObjectRef>,
    backoff: Backoff,
}

impl Writer {
    /// Writes nothing yet; later as this pod.
    pub fn new(
        api: Api,
        me: String,
        leads: watch::Receiver<bool>,
        needed: watch::Receiver<Arc<Vec<Needed>>>,
        metrics: Metrics,
    ) -> Self {
        let backoff = Backoff::new(RETRY.0, RETRY.1);
        Self { api, me, leads, needed, metrics, tried: HashMap::new(), last: None, backoff }
    }

    /// Until the drain is asked for.
    pub async fn run(mut self, drain: drain::Watch) {
        // Dropping a write half-way is safe: whoever leads next compares with what the server has.
        tokio::select! {
            biased;
            () = drain.asked() => {}
            () = self.for_ever() => {}
        }
    }

    async fn for_ever(&mut self) {
        loop {
            if *self.leads.borrow_and_update() && self.pass().await == Pass::Failed {
                // It has waited already.
                continue;
            }
            // Each may be dropped: all are looked at anew.
            let there = tokio::select! {
                there = self.leads.changed() => there,
                there = self.needed.changed() => there,
                () = tokio::time::sleep(LOOK) => Ok(()),
            };
            // Whoever compiles, or takes part in the election, has ended.
            if there.is_err() {
                return;
            }
        }
    }

    /// The latest list, from behind the last one tried, until there is a later list.
    async fn pass(&mut self) -> Pass {
        let mut pass = Pass::Done;
        let needed = self.needed.borrow_and_update().clone();
        let listed = |object: &ObjectRef| needed.binary_search_by(|one| one.object().cmp(object)).is_ok();
        self.tried.retain(|object, (_, at)| at.elapsed() < CALM || listed(object));
        let from = needed.partition_point(|one| Some(one.object()) <= self.last.as_ref());
        for one in needed[from..].iter().chain(&needed[..from]) {
            if !self.is_due(one) {
                continue;
            }
            if self.write(one).await == Pass::Failed {
                pass = Pass::Failed;
            }
            if !*self.leads.borrow() || self.needed.has_changed().unwrap_or(true) {
                return Pass::Done;
            }
        }
        pass
    }

    fn is_due(&self, one: &Needed) -> bool {
        let Some((cause, at)) = self.tried.get(one.object()) else { return true };
        // For the same cause: we wrote, and have not heard of it yet; or it was refused as it is.
        let wait = match *cause == one.cause() {
            true => AGAIN,
            false if one.is_urgent() => Duration::ZERO,
            false => CALM,
        };
        at.elapsed() >= wait
    }

    async fn write(&mut self, one: &Needed) -> Pass {
        let object = one.object();
        let what = match one {
            Needed::Condition(_) => "condition",
            Needed::Event(_) => "event",
        };
        let written = tokio::time::timeout(PATIENCE, self.put(one)).await.unwrap_or(Err(Error::Late(PATIENCE)));
        self.last = Some(object.clone());
        let result = match &written {
            Ok(()) => "written",
            // Gone, or changed since: the watch tells. Or refused for what it says, which will not be another thing next time.
            Err(error) if matches!(error.code(), Some(400 | 404 | 409 | 422)) => "dropped",
            // Of a namespace that is being deleted, or has had its share of Events: policies' conditions do not wait for that.
            Err(error) if matches!((one, error.code()), (Needed::Event(_), Some(403))) => "dropped",
            Err(_) => "failed",
        };
        self.metrics.wrote(what, result);
        match written {
            Err(error) if result == "failed" => {
                if self.backoff.failures().is_multiple_of(50) {
                    tracing::warn!(%object, %error, failures = self.backoff.failures(), "{what} cannot be written to the API server");
                }
                tokio::time::sleep(self.backoff.failed()).await;
                return Pass::Failed;
            }
            Err(error) => tracing::debug!(%object, %error, "{what} not written"),
            Ok(()) => tracing::debug!(%object, "{what} written"),
        }
        self.tried.insert(object.clone(), (one.cause().to_owned(), Instant::now()));
        self.backoff.worked();
        tokio::time::sleep(SPACING).await;
        Pass::Done
    }

    async fn put(&self, one: &Needed) -> Result<(), Error> {
        let object = one.object();
        let path = object_path(object.kind, &object.namespace, &object.name);
        match one {
            Needed::Condition(condition) => {
                let patch = condition.patch(Timestamp::now());
                self.api.write(Method::Merge, &format!("{path}/status"), &patch).await.map(drop)
            }
            Needed::Event(event) => {
                // An Event is of one uid, and of one that is gone there is nothing to say.
                let Some(there) = self.api.get(&path).await? else { return Ok(()) };
                let uid = there.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
                let body = event.body(uid, &self.me, Timestamp::now());
                self.api.write(Method::Post, &event.path(), &body).await.map(drop)
            }
        }
    }
}

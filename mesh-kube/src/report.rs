//! What is written back: a condition of each pod, latest wins, events, and what is so of the node, latest wins too. Nobody waits for it:
//! with the API server away, conditions and the state of the node are written when it is back, and events are dropped and counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::Kind;
use mesh_daemon::tasks;
use mesh_model::{PodName, PodUid};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, watch};

use crate::api::{Api, Error, Method};
use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::paths;

/// Events that wait. A full node of pods that start at once has some 110, each with one.
const EVENTS: usize = 256;
/// Between writes: at most 50 a second from one node, however many pods flap.
const SPACING: Duration = Duration::from_millis(20);
/// Waits after failures.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// The API server refuses longer notes (events.k8s.io/v1, `note`: less than 1 kB), and counts bytes.
const NOTE: usize = 1000;
/// And longer names of who reports (`reportingInstance`).
const INSTANCE: usize = 128;

/// `Normal` or `Warning`, as Kubernetes has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// All is as it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

#[derive(Clone, Debug)]
struct Condition {
    pod: PodName,
    holds: bool,
    reason: String,
    message: String,
}

/// Where what was observed goes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reporter {
    node: Arc<str>,
    condition: &'static str,
    waiting: Arc<Mutex<Waiting>>,
    wake: Arc<Notify>,
    events: mpsc::Sender<Event>,
    state: watch::Sender<Option<Event>>,
    metrics: Metrics,
}

/// An event, and where it is posted.
type Event = (String, Value);

#[derive(Debug, Default)]
struct Waiting {
    /// To be written, by pod: bounded by the pods of a node.
    conditions: BTreeMap<PodUid, Condition>,
    /// Whether it held when it was written last: its time of transition is that of a change.
    written: BTreeMap<PodUid, bool>,
}

impl Reporter {
    /// Writes conditions of this type, in the name of the node's pod-watcher.
    pub fn start(api: Api, node: &str, condition: &'static str, metrics: Metrics, group: &tasks::Handle) -> Self {
        let (events, queue) = mpsc::channel(EVENTS);
        let (state, newest) = watch::channel(None);
        let reporter = Self {
            node: node.into(),
            condition,
            waiting: Arc::default(),
            wake: Arc::default(),
            events,
            state,
            metrics: metrics.clone(),
        };
        group.spawn("pod events", write_events(api.clone(), queue, metrics.clone()));
        group.spawn("node state", write_state(api.clone(), newest, metrics.clone()));
        let (waiting, wake) = (reporter.waiting.clone(), reporter.wake.clone());
        let listener = reporter.events.downgrade();
        group.spawn("pod conditions", async move {
            // Ends with the last reporter, which is when the events' queue closes; a write half-way is written anew by the next process.
            let work = write_conditions(api, condition, waiting, wake, metrics);
            let ended = async {
                while listener.upgrade().is_some() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            };
            tokio::select! {
                () = work => {}
                () = ended => {}
            }
        });
        reporter
    }

    /// What holds of a pod now.
    pub fn condition(&self, uid: &PodUid, pod: &PodName, holds: bool, reason: &str, message: &str) {
        let condition =
            Condition { pod: pod.clone(), holds, reason: word(reason), message: message.chars().take(NOTE).collect() };
        self.waiting().conditions.insert(uid.clone(), condition);
        self.wake.notify_one();
    }

    /// The pod has gone.
    pub fn forget(&self, uid: &PodUid) {
        self.waiting().written.remove(uid);
    }

    /// Something happened to a pod.
    pub fn event(&self, kind: EventType, reason: &str, pod: &PodName, uid: &PodUid, message: &str) {
        let regarding = json!({"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": uid.as_str()});
        self.send(self.made(kind, reason, (&pod.namespace, &pod.name), regarding, message));
    }

    /// Something happened to the node.
    pub fn node_event(&self, kind: EventType, reason: &str, message: &str) {
        self.send(self.of_node(kind, reason, message));
    }

    /// What is so of the node now: an event too, but one that is not dropped before it is written or something newer is so.
    pub fn node_state(&self, kind: EventType, reason: &str, message: &str) {
        self.state.send_replace(Some(self.of_node(kind, reason, message)));
    }

    /// The node's name stands for its uid, as in kubelet's own events: so `kubectl describe node` finds them.
    fn of_node(&self, kind: EventType, reason: &str, message: &str) -> Event {
        let node = &*self.node;
        let regarding = json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": node});
        // What is in no namespace has its events in this one.
        self.made(kind, reason, ("default", node), regarding, message)
    }

    fn send(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.metrics.writes.with_label_values(&["event", "dropped"]).inc();
        }
    }

    fn made(
        &self,
        kind: EventType,
        reason: &str,
        (namespace, name): (&str, &str),
        regarding: Value,
        message: &str,
    ) -> Event {
        let kind = match kind {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        };
        // A name that is the event's own, as client libraries make them: the object's name and the time.
        let now = Timestamp::now();
        let stem: String = name.chars().take(200).collect();
        let event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": format!("{stem}.{:x}", now.as_nanosecond()), "namespace": namespace},
            "eventTime": format!("{now:.6}"),
            "reportingController": "culvert.io/pod-watcher",
            "reportingInstance": start(&self.node, INSTANCE),
            "action": self.condition.rsplit('/').next(),
            "reason": word(reason),
            "type": kind,
            "note": start(message, NOTE),
            "regarding": regarding,
        });
        (format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"), event)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The start of a text, of at most so many bytes.
fn start(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// A reason is one word in camel case (API conventions), and ours are; one that is not would have the whole write refused.
fn word(reason: &str) -> String {
    let word: String = reason.chars().filter(char::is_ascii_alphanumeric).take(128).collect();
    if word.is_empty() { "Unknown".to_owned() } else { word }
}

async fn write_events(api: Api, mut queue: mpsc::Receiver<Event>, metrics: Metrics) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    while let Some((path, event)) = queue.recv().await {
        match api.write(Method::Post, &path, &event).await {
            Ok(_) => {
                backoff.worked();
                metrics.writes.with_label_values(&["event", "written"]).inc();
                tokio::time::sleep(SPACING).await;
            }
            // Not tried again: an event is news, and the queue behind it is newer.
            Err(error) => {
                metrics.writes.with_label_values(&["event", "failed"]).inc();
                complain(&backoff, "event", &error);
                tokio::time::sleep(backoff.failed()).await;
            }
        }
    }
}

async fn write_state(api: Api, mut newest: watch::Receiver<Option<Event>>, metrics: Metrics) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    // An error: the last reporter has gone.
    while newest.changed().await.is_ok() {
        loop {
            let Some((path, event)) = newest.borrow_and_update().clone() else { break };
            match api.write(Method::Post, &path, &event).await {
                Err(error) if error.code() != Some(409) => {
                    metrics.writes.with_label_values(&["event", "failed"]).inc();
                    complain(&backoff, "state of the node", &error);
                    // Refused for what it says: it would be again.
                    if matches!(error.code(), Some(400 | 422)) {
                        break;
                    }
                    // What is newer need not wait.
                    if let Ok(Err(_)) = tokio::time::timeout(backoff.failed(), newest.changed()).await {
                        return;
                    }
                }
                // 409: it is there already, and the answer to that was lost.
                _ => {
                    metrics.writes.with_label_values(&["event", "written"]).inc();
                    backoff.worked();
                    break;
                }
            }
        }
    }
}

async fn write_conditions(
    api: Api,
    condition: &'static str,
    waiting: Arc<Mutex<Waiting>>,
    wake: Arc<Notify>,
    metrics: Metrics,
) {
    let lock = || waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let next = lock().conditions.pop_first();
        let Some((uid, wanted)) = next else {
            wake.notified().await;
            continue;
        };
        let same = lock().written.get(&uid) == Some(&wanted.holds);
        let path = format!("{}/status", paths::object(Kind::Pod, &wanted.pod.namespace, &wanted.pod.name));
        match api.write(Method::Patch, &path, &patch(condition, &uid, &wanted, same)).await {
            Ok(_) => {
                backoff.worked();
                lock().written.insert(uid, wanted.holds);
                metrics.writes.with_label_values(&["condition", "written"]).inc();
                tokio::time::sleep(SPACING).await;
            }
            // No such pod, or another of its name: there is nobody to tell.
            Err(error) if matches!(error.code(), Some(404 | 409)) => {
                metrics.writes.with_label_values(&["condition", "dropped"]).inc();
            }
            Err(error) => {
                metrics.writes.with_label_values(&["condition", "failed"]).inc();
                complain(&backoff, "condition of a pod", &error);
                let wait = backoff.failed();
                // Written later, unless something newer came meanwhile. One that the server will never take must not hold up the rest,
                // so it goes to the end by being dropped when it was refused for what it says.
                if !matches!(error.code(), Some(400 | 422)) {
                    lock().conditions.entry(uid).or_insert(wanted);
                }
                tokio::time::sleep(wait).await;
            }
        }
    }
}

fn complain(backoff: &Backoff, what: &str, error: &Error) {
    if backoff.failures().is_multiple_of(50) {
        tracing::warn!(%error, failures = backoff.failures(), "{what} cannot be written to the API server");
    } else {
        tracing::debug!(%error, "{what} cannot be written to the API server");
    }
}

/// Merged by the condition's type; the uid makes the server refuse it for another pod of that name.
fn patch(condition: &str, uid: &PodUid, wanted: &Condition, same: bool) -> Value {
    let mut one = json!({
        "type": condition,
        "status": if wanted.holds { "True" } else { "False" },
        "reason": wanted.reason,
        "message": wanted.message,
    });
    if !same {
        one["lastTransitionTime"] = format!("{:.0}", Timestamp::now()).into();
    }
    json!({"metadata": {"uid": uid.as_str()}, "status": {"conditions": [one]}})
}

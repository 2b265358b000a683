//! The client's task: a delta ADS stream while there is a control plane, the last good configuration's file while there is none.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_api::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status};
use mesh_daemon::{causes, dir, ready};
use mesh_model::TrustDomains;
use rand::Rng;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::last_good::{Found, LastGood};
use super::metrics::{Fate, Metrics, label};
use super::store::{Store, TYPES, known};
use super::{ControlPlane, Floor, Guard, Origin, Published, TokenError, XdsConfig, status_text};

/// Pauses between streams (ztunnel's values).
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// See [`BACKOFF_FIRST`].
const BACKOFF_LONGEST: Duration = Duration::from_secs(15);
/// Time for a stream to be opened, connect and TLS included.
const OPEN_DEADLINE: Duration = Duration::from_secs(15);
/// Largest answer (ztunnel's value): the whole mesh may come in one.
const LARGEST_ANSWER: usize = 200 << 20;
/// Requests that wait to be sent: two to begin with, then one for each answer.
const REQUESTS: usize = 16;
/// The file is written this long after the first of a burst of changes. A worker killed before that starts with the one before.
pub(super) const SAVE_DEBOUNCE: Duration = Duration::from_secs(1);
/// After a write failed.
const SAVE_RETRY: Duration = Duration::from_secs(10);
/// After this many starts in a row that ended within ten seconds, the last good configuration is suspected.
const CRASHES: u32 = 3;
/// The file is written this often within the age that lets callers in, also without news (guessed: a worker that starts without a control
/// plane loses an eighth of its time at most).
const CONFIRMED: u32 = 8;
/// But not more often than this.
const CONFIRM_PAUSE: Duration = Duration::from_secs(60);
/// A file from the future by no more than this is one that was written before the clock was set right.
const CLOCK_STEP: Duration = Duration::from_secs(300);
/// How long the keeper may take to say which counter the last good configuration must have. It answers at once unless pod-watcher is
/// not there; then there are no pods to serve either.
const GUARD: Duration = Duration::from_secs(10);
/// How often a directory that cannot be watched is tried again.
const WATCH_RETRY: Duration = Duration::from_secs(5);
/// Causes named in one refusal.
const NAMED: usize = 20;
/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;

/// See the module.
pub(super) struct Client {
    node: Node,
    control_plane: Option<ControlPlane>,
    file: LastGood,
    trust_domains: TrustDomains,
    store: Store,
    synced: BTreeSet<&'static str>,
    origin: Origin,
    generation: u64,
    published: watch::Sender<Arc<Published>>,
    latch: Option<ready::Latch>,
    save_at: Option<Instant>,
    /// The write that is under way: with which counter it ends.
    saving: Option<JoinHandle<std::io::Result<u64>>>,
    metrics: Metrics,
    guard: Option<Guarding>,
    /// Dropped when the file has been loaded or will not be.
    settled: Option<oneshot::Sender<()>>,
    /// Of the file that was loaded or written last.
    counter: u64,
    /// See [`XdsConfig::inbound_age`].
    inbound_age: Duration,
    age: Age,
    /// The control plane has answered for every type, and its stream lives.
    confirmed: bool,
    /// There is a control plane: the file is an old word of it, and not the word itself.
    led: bool,
}

/// What time does to the records that are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// Nothing: they are the control plane's, or there is none.
    None,
    /// They are of the last good configuration and let callers in until then.
    Until(Instant),
    /// They let nobody in any more.
    Past,
}

/// The part of [`Guard`] that lasts.
struct Guarding {
    floor: watch::Receiver<Floor>,
    written: watch::Sender<u64>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("not open within {} s", OPEN_DEADLINE.as_secs())]
    Deadline,
    #[error("{0}")]
    Status(String),
    #[error("closed by the control plane")]
    Closed,
}

impl Client {
    /// Loads the last good configuration and publishes it.
    pub(super) fn new(config: XdsConfig) -> (Self, watch::Receiver<Arc<Published>>) {
        let XdsConfig {
            node,
            cluster,
            trust_domains,
            pod,
            instance_ip,
            control_plane,
            state_dir,
            crashes,
            latch,
            metrics,
            inbound_age,
            guard,
        } = config;
        // Without a control plane whoever runs the node puts the file there, and nobody counts.
        let (guard, settled) = match guard {
            Some(Guard { floor, written, settled }) if control_plane.is_some() => {
                (Some(Guarding { floor, written }), Some(settled))
            }
            _ => (None, None),
        };
        let led = control_plane.is_some();
        let (published, receiver) = watch::channel(Arc::new(Published::nothing()));
        let mut this = Self {
            file: LastGood::new(&state_dir, &node, &cluster),
            node: describe(&node, &cluster, pod.as_ref(), instance_ip),
            control_plane,
            store: Store::new(&trust_domains),
            trust_domains,
            synced: BTreeSet::new(),
            origin: Origin::Nothing,
            generation: 0,
            published,
            latch,
            save_at: None,
            saving: None,
            metrics,
            guard,
            settled,
            counter: 0,
            inbound_age,
            age: Age::None,
            confirmed: false,
            led,
        };
        if crashes >= CRASHES {
            this.suspect(crashes);
        }
        if this.guard.is_none() {
            this.load();
        }
        (this, receiver)
    }

    pub(super) async fn run(mut self) {
        self.guarded().await;
        match self.control_plane.take() {
            Some(control_plane) => self.follow(&control_plane).await,
            None => self.follow_file().await,
        }
    }

    /// Loads the last good configuration under the guard, if there is one.
    async fn guarded(&mut self) {
        let Some(guard) = &mut self.guard else { return };
        let said = timeout(GUARD, guard.floor.wait_for(|floor| *floor != Floor::Unknown)).await;
        if !matches!(said, Ok(Ok(_))) {
            tracing::warn!(patience = ?GUARD, "nobody says how old the last good configuration may be; not used until then");
        }
        drop(said);
        self.load();
        drop(self.settled.take());
    }

    fn floor(&self) -> Floor {
        self.guard.as_ref().map_or(Floor::NotKept, |guard| *guard.floor.borrow())
    }

    /// Streams for ever.
    async fn follow(&mut self, control_plane: &ControlPlane) {
        let mut pause = BACKOFF_FIRST;
        loop {
            let mut answered = false;
            let ended = self.stream(control_plane, &mut answered).await;
            self.metrics.connected(false);
            self.metrics.disconnects.inc();
            self.save();
            self.confirmed = false;
            if answered {
                pause = BACKOFF_FIRST;
            }
            let cause = match ended {
                Ok(()) => causes(&Ended::Closed),
                Err(error) => causes(&error),
            };
            // The first failures after a good stream are a restart or a moved connection; a person is told when it lasts.
            if pause < Duration::from_secs(1) {
                tracing::info!(control_plane = control_plane.address(), cause, "configuration stream ended");
            } else {
                tracing::warn!(
                    control_plane = control_plane.address(),
                    cause,
                    pause = ?pause,
                    "no configuration stream; what is held stays in force"
                );
            }
            let over = tokio::time::sleep(jittered(pause));
            tokio::pin!(over);
            loop {
                // Safe to drop half-way: a write goes on by itself and is waited for again, the others are clocks and a latest value.
                tokio::select! {
                    () = &mut over => break,
                    result = written(&mut self.saving) => self.saved(result),
                    () = of_age(self.age) => self.past_age(),
                    () = raised(&mut self.guard), if self.origin == Origin::Nothing => self.load(),
                }
            }
            pause = (pause * 2).min(BACKOFF_LONGEST);
        }
    }

    /// One stream from its opening to its end.
    async fn stream(&mut self, control_plane: &ControlPlane, answered: &mut bool) -> Result<(), Ended> {
        let (requests, queue) = mpsc::channel::<DeltaDiscoveryRequest>(REQUESTS);
        for type_url in TYPES {
            // An empty subscription on the first request of a type is all of it.
            let first = DeltaDiscoveryRequest {
                node: Some(self.node.clone()),
                type_url: type_url.to_owned(),
                initial_resource_versions: self.store.versions(type_url),
                ..Default::default()
            };
            // The queue is empty and has room for both.
            let _ = requests.try_send(first);
        }
        let queue = futures_util::stream::unfold(queue, |mut queue| async { Some((queue.recv().await?, queue)) });
        let mut request = tonic::Request::new(queue);
        control_plane.authorize(request.metadata_mut())?;
        let mut client =
            AggregatedDiscoveryServiceClient::new(control_plane.channel()).max_decoding_message_size(LARGEST_ANSWER);
        let opened = timeout(OPEN_DEADLINE, client.delta_aggregated_resources(request)).await;
        let mut answers =
            opened.map_err(|_| Ended::Deadline)?.map_err(|status| Ended::Status(status_text(&status)))?.into_inner();
        self.metrics.connected(true);
        tracing::info!(control_plane = control_plane.address(), "configuration stream open");
        loop {
            let save_at = self.save_at.filter(|_| self.saving.is_none());
            // Safe to drop half-way: a half-read answer stays in the stream, a write goes on by itself and is waited for again, the
            // others are clocks. A dead peer ends the stream by the channel's PING.
            let answer = tokio::select! {
                answer = answers.message() => answer.map_err(|status| Ended::Status(status_text(&status)))?,
                () = tokio::time::sleep_until(save_at.unwrap_or_else(Instant::now)), if save_at.is_some() => {
                    self.save();
                    continue;
                }
                result = written(&mut self.saving) => {
                    self.saved(result);
                    continue;
                }
                () = of_age(self.age) => {
                    self.past_age();
                    continue;
                }
            };
            let Some(answer) = answer else { return Ok(()) };
            *answered = true;
            let reply = self.apply(answer);
            // Sixteen answers that the transport does not take: the peer is not reading. Wait for it, bounded by PING.
            if requests.send(reply).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Applies one answer, publishes, and makes the acknowledgement.
    fn apply(&mut self, answer: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let received = std::time::Instant::now();
        let DeltaDiscoveryResponse { resources, type_url, nonce, removed_resources, .. } = answer;
        let mut reply =
            DeltaDiscoveryRequest { type_url: type_url.clone(), response_nonce: nonce, ..Default::default() };
        let refuse = |message| Some(Status { code: INVALID_ARGUMENT, message, details: Vec::new() });
        let Some(known) = known(&type_url) else {
            reply.error_detail =
                refuse(format!("type {:?} was not asked for", type_url.chars().take(120).collect::<String>()));
            return reply;
        };
        let (sent, removed) = (resources.len(), removed_resources.len());
        let applied = self.store.apply(known, resources, removed_resources);
        self.metrics.answers.with_label_values(&[label(known)]).inc();
        self.metrics.rejected.with_label_values(&[label(known)]).inc_by(applied.rejected.len() as u64);
        if !applied.rejected.is_empty() {
            tracing::warn!(r#type = label(known), causes = ?applied.rejected, "records refused");
            reply.error_detail = refuse(named(&applied.rejected));
        }
        tracing::debug!(r#type = label(known), sent, removed, changed = applied.changed, "configuration answer");
        // What was refused stands closed in the mesh, so the type counts as known: one bad record must not keep a node unready.
        let first = self.synced.insert(known);
        let complete = self.synced.len() == TYPES.len();
        if complete && first {
            self.origin = Origin::Live;
            self.age = Age::None;
        }
        if complete && !self.confirmed {
            self.confirmed = true;
            self.confirm_later();
        }
        if self.origin != Origin::Nothing && (applied.changed || first) {
            self.publish(Some(received));
        }
        if applied.dirty || (complete && first) {
            self.save_by(Instant::now() + SAVE_DEBOUNCE);
        }
        reply
    }

    fn publish(&mut self, received: Option<std::time::Instant>) {
        self.generation += 1;
        for type_url in TYPES {
            let count = i64::try_from(self.store.count(type_url)).unwrap_or(i64::MAX);
            self.metrics.held.with_label_values(&[label(type_url)]).set(count);
        }
        let mut mesh = self.store.mesh().clone();
        mesh.set_outdated(self.age == Age::Past);
        let mesh = Arc::new(mesh);
        self.published.send_replace(Arc::new(Published {
            mesh,
            generation: self.generation,
            origin: self.origin,
            received,
        }));
        drop(self.latch.take());
    }

    /// Begins to write the last good configuration if something changed and every type is known; not while it is being written.
    fn save(&mut self) {
        if self.save_at.is_none() || self.saving.is_some() {
            return;
        }
        self.save_at = None;
        if self.origin != Origin::Live {
            return;
        }
        let floor = self.floor();
        if floor == Floor::Unknown {
            // A file with too small a counter would be worth less than the one that is there.
            self.save_by(Instant::now() + SAVE_RETRY);
            return;
        }
        let counter = self.counter.max(floor.least()).saturating_add(1);
        let (file, resources) = (self.file.clone(), self.store.resources());
        // The disk may be slow or hang, and a write cannot be cut short: answers are taken meanwhile.
        self.saving = Some(tokio::task::spawn_blocking(move || file.save(resources, counter).map(|()| counter)));
    }

    /// What came of it.
    fn saved(&mut self, result: std::io::Result<u64>) {
        match result {
            Ok(counter) => {
                self.counted(counter);
                // The worker of another generation has written meanwhile, and ours lies over it with a smaller counter.
                if self.confirmed {
                    self.confirm_later();
                }
                if self.floor().least() > counter {
                    self.save_by(Instant::now() + SAVE_DEBOUNCE);
                }
                self.metrics.event(Fate::Saved);
                self.metrics.last_good_time.set(seconds(SystemTime::now()));
            }
            Err(error) => {
                self.save_by(Instant::now() + SAVE_RETRY);
                self.metrics.event(Fate::SaveFailed);
                tracing::warn!(dir = %self.file.dir().display(), %error, "the last good configuration is not saved");
            }
        }
    }

    /// Has the file written at this time at the latest.
    fn save_by(&mut self, when: Instant) {
        self.save_at = Some(self.save_at.map_or(when, |before| before.min(when)));
    }

    /// While the control plane's stream lives the file is written now and then also without news, so that it does not seem older than it
    /// is. It is written at the stream's end as well.
    fn confirm_later(&mut self) {
        let pause = (self.inbound_age / CONFIRMED).max(CONFIRM_PAUSE);
        self.save_by(Instant::now() + pause);
    }

    /// Time has passed over what was loaded.
    fn past_age(&mut self) {
        self.age = Age::Past;
        tracing::error!(limit = ?self.inbound_age, "last good configuration is too old to let callers in; connections to pods are refused");
        self.publish(None);
    }

    /// A file with this counter lies on the disk.
    fn counted(&mut self, counter: u64) {
        self.counter = counter;
        if let Some(guard) = &self.guard {
            guard.written.send_replace(counter);
        }
    }

    /// Reads the file and publishes it, if it is good and not older than one that this node has had. Whatever it was, nothing that is
    /// held gets worse.
    fn load(&mut self) {
        let floor = self.floor();
        if floor == Floor::Unknown {
            return;
        }
        let dir = self.file.dir().display().to_string();
        let saved = match self.file.load() {
            Ok(Found::Good(saved)) => saved,
            Ok(Found::Nothing) => return,
            Ok(Found::Elsewhere(error)) => {
                self.metrics.event(Fate::Elsewhere);
                tracing::warn!(dir, %error, "last good configuration not used");
                return;
            }
            Ok(Found::Broken(error)) => {
                self.metrics.event(Fate::Broken);
                tracing::error!(dir, error = causes(&error), "last good configuration is broken and was set aside");
                return;
            }
            Err(error) => {
                self.metrics.event(Fate::Broken);
                tracing::error!(dir, %error, "last good configuration cannot be read");
                return;
            }
        };
        if !floor.admits(saved.counter) {
            self.metrics.event(Fate::Outdated);
            let (counter, least) = (saved.counter, floor.least());
            tracing::error!(
                dir,
                counter,
                least,
                "last good configuration is older than one that this node has had; set aside"
            );
            if let Err(error) = self.file.set_aside() {
                tracing::error!(dir, %error, "last good configuration cannot be set aside");
            }
            return;
        }
        self.counted(saved.counter);
        let (store, rejected) = Store::load(&self.trust_domains, saved.resources);
        if !rejected.is_empty() {
            tracing::warn!(causes = ?rejected, "records of the last good configuration refused");
        }
        self.store = store;
        self.origin = Origin::LastGood { written_at: saved.written_at };
        self.age = match (self.led, left(saved.written_at, self.inbound_age)) {
            (false, _) => Age::None,
            (true, Some(left)) => Age::Until(Instant::now() + left),
            (true, None) => Age::Past,
        };
        self.metrics.event(Fate::Loaded);
        self.metrics.last_good_time.set(seconds(saved.written_at));
        tracing::info!(
            dir,
            addresses = self.store.count(mesh_api::xds::ADDRESS_TYPE),
            policies = self.store.count(mesh_api::xds::AUTHORIZATION_TYPE),
            "last good configuration loaded"
        );
        if self.age == Age::Past {
            tracing::warn!(dir, limit = ?self.inbound_age, "it is too old to let callers in; the control plane has to confirm it");
        }
        self.publish(None);
    }

    /// The worker keeps ending soon after its start: maybe because of what it loads.
    fn suspect(&mut self, crashes: u32) {
        match self.file.set_aside() {
            Ok(true) => {
                self.metrics.event(Fate::SetAside);
                tracing::error!(crashes, "last good configuration set aside: the worker keeps ending after its start");
            }
            Ok(false) => {}
            Err(error) => tracing::error!(crashes, %error, "last good configuration cannot be set aside"),
        }
    }

    /// Without a control plane: reads the file again whenever it is replaced.
    async fn follow_file(&mut self) {
        loop {
            let mut watch = match dir::Watch::new(self.file.dir()) {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::warn!(dir = %self.file.dir().display(), %error, "state directory cannot be watched");
                    tokio::time::sleep(WATCH_RETRY).await;
                    continue;
                }
            };
            // It may have been replaced before the watch was there.
            self.load();
            while watch.changed().await.is_ok() {
                self.load();
            }
        }
    }
}

/// How much of its age a file has left; `None` when it is past it, or of a future that tells nothing of its age.
fn left(written_at: SystemTime, limit: Duration) -> Option<Duration> {
    match written_at.elapsed() {
        Ok(age) => limit.checked_sub(age).filter(|left| !left.is_zero()),
        Err(ahead) => (ahead.duration() <= CLOCK_STEP).then_some(limit),
    }
}

/// Waits for records to come of age.
async fn of_age(age: Age) {
    match age {
        Age::Until(when) => tokio::time::sleep_until(when).await,
        Age::None | Age::Past => std::future::pending().await,
    }
}

/// Waits for the keeper to say something else of what may be believed.
async fn raised(guard: &mut Option<Guarding>) {
    if let Some(guard) = guard
        && guard.floor.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Waits for a write that is under way, if one is, and takes it away.
async fn written(saving: &mut Option<JoinHandle<std::io::Result<u64>>>) -> std::io::Result<u64> {
    let Some(under_way) = saving else { return std::future::pending().await };
    let result = under_way.await;
    *saving = None;
    result.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

/// The node as istiod and our control plane know it: the type is told by the id's prefix.
fn describe(
    node: &str,
    cluster: &str,
    pod: Option<&mesh_model::PodName>,
    instance_ip: Option<std::net::IpAddr>,
) -> Node {
    let ip = instance_ip.map_or_else(|| "1.1.1.1".to_owned(), |ip| ip.to_string());
    let name = pod.map_or(node, |pod| &pod.name);
    let namespace = pod.map_or("culvert-system", |pod| &pod.namespace);
    let text = |value: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(value.to_owned())) };
    let fields =
        [("NAME", name), ("NAMESPACE", namespace), ("INSTANCE_IPS", &ip), ("NODE_NAME", node), ("CLUSTER_ID", cluster)];
    Node {
        id: format!("ztunnel~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: cluster.to_owned(),
        metadata: Some(prost_types::Struct {
            fields: fields.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect(),
        }),
    }
}

/// 80 to 120 %: proxies that lost the same control plane do not come back in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.8..1.2))
}

fn named(rejected: &[String]) -> String {
    let mut text = rejected.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
    if rejected.len() > NAMED {
        text.push_str(&format!("; and {} more", rejected.len() - NAMED));
    }
    text
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or_default()
}

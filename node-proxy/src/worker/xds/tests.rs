//! Promises of the configuration client, against a scripted control plane over real TLS and real files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_api::xds::saved::{Saved, SavedResource};
use mesh_api::xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE, policy_resource, workload_resource};
use mesh_daemon::{ready, tasks};
use mesh_model::policy::{Action, Policy, PolicyKey, Scope};
use mesh_model::{Health, NetworkPolicy, PodName, TrustDomain, TrustDomains, Tunnel, Workload, WorkloadUid};
use mesh_tls::authority::Authority;
use tokio::sync::watch;

use super::client::SAVE_DEBOUNCE;
use super::testing::*;
use super::{ControlPlane, Floor, Guard, Metrics, Origin, Published, XdsConfig, start};

fn workload(name: &str, policies: &[&str]) -> Workload {
    Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/test/{name}")),
        pod: PodName { namespace: "test".into(), name: name.into() },
        pod_uid: None,
        service_account: name.into(),
        trust_domain: TrustDomain::parse("cluster.local").expect("valid"),
        addresses: vec!["198.18.1.2".parse().expect("address")],
        node: "node-1".into(),
        tunnel: Tunnel::Hbone,
        policies: policies.iter().map(|key| key.parse().expect("key")).collect(),
        health: Health::Healthy,
        services: BTreeMap::new(),
        network_policy: NetworkPolicy::Unselected,
        host_network: false,
        needs_waypoint: false,
        telemetry: Default::default(),
    }
}

fn policy(name: &str) -> Policy {
    Policy {
        key: PolicyKey { namespace: "test".into(), name: name.into() },
        scope: Scope::Selector,
        action: Action::Deny,
        rules: Vec::new(),
        dry_run: false,
        invalid: false,
    }
}

fn wire(saved: SavedResource) -> Resource {
    let SavedResource { type_url, name, version, body } = saved;
    Resource { version, name, resource: Some(prost_types::Any { type_url, value: body }), ..Default::default() }
}

fn answer(type_url: &str, nonce: &str, resources: Vec<SavedResource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources: resources.into_iter().map(wire).collect(),
        ..Default::default()
    }
}

struct Worker {
    published: watch::Receiver<Arc<Published>>,
    metrics: Metrics,
    readiness: ready::Readiness,
    group: tasks::Group,
}

const AGE: Duration = Duration::from_secs(3600);

fn worker(dir: &Path, control_plane: Option<ControlPlane>, crashes: u32) -> Worker {
    worker_under(dir, control_plane, crashes, None)
}

/// A keeper that says which counter may be believed, and hears what was written.
struct Keeper {
    floor: watch::Sender<Floor>,
    written: watch::Receiver<u64>,
    settled: tokio::sync::oneshot::Receiver<()>,
}

fn guard(floor: Floor) -> (Keeper, Guard) {
    let (floor, (written, hears)) = (watch::Sender::new(floor), watch::channel(0));
    let (settles, settled) = tokio::sync::oneshot::channel();
    let guard = Guard { floor: floor.subscribe(), written, settled: settles };
    (Keeper { floor, written: hears, settled }, guard)
}

fn worker_under(dir: &Path, control_plane: Option<ControlPlane>, crashes: u32, guard: Option<Guard>) -> Worker {
    let (group, readiness, metrics) = (tasks::Group::new("test"), ready::Readiness::new(), Metrics::default());
    let config = XdsConfig {
        node: "node-1".into(),
        cluster: "Kubernetes".into(),
        trust_domains: TrustDomains::new(TrustDomain::parse("cluster.local").expect("valid"), Vec::new()),
        pod: None,
        instance_ip: None,
        control_plane,
        state_dir: dir.to_owned(),
        crashes,
        latch: Some(readiness.latch("configuration")),
        metrics: metrics.clone(),
        inbound_age: AGE,
        guard,
    };
    Worker { published: start(config, &group.handle()), metrics, readiness, group }
}

impl Worker {
    /// Waits for a snapshot that is so.
    async fn until(&mut self, what: &str, fact: impl Fn(&Published) -> bool) -> Arc<Published> {
        let waited = tokio::time::timeout(WAIT, self.published.wait_for(|published| fact(published))).await;
        waited.expect(what).expect("the client lives").clone()
    }

    fn event(&self, event: &str) -> u64 {
        self.metrics.last_good.with_label_values(&[event]).get()
    }

    async fn until_event(&self, event: &str, count: u64) {
        let waited = tokio::time::timeout(WAIT, async {
            while self.event(event) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.expect(event);
    }
}

fn is_ready(published: &Published) -> bool {
    published.origin != Origin::Nothing
}

fn has(published: &Published, name: &str) -> bool {
    published.mesh.workload(&WorkloadUid(format!("Kubernetes//Pod/test/{name}"))).is_some()
}

/// Takes the first requests of both types and answers them.
async fn sync(session: &mut Session, policies: Vec<SavedResource>, addresses: Vec<SavedResource>) {
    for type_url in [AUTHORIZATION_TYPE, ADDRESS_TYPE] {
        assert_eq!(session.request().await.type_url, type_url);
    }
    session.answer(answer(AUTHORIZATION_TYPE, "p1", policies)).await;
    session.answer(answer(ADDRESS_TYPE, "a1", addresses)).await;
    for nonce in ["p1", "a1"] {
        let ack = session.request().await;
        assert_eq!((ack.response_nonce.as_str(), ack.error_detail), (nonce, None));
    }
}

#[tokio::test]
async fn nothing_is_published_before_every_type_was_answered() {
    let (dir, authority) = (tempfile::tempdir().expect("dir"), Authority::create().expect("authority"));
    let mut fake = Fake::new(&authority, "127.0.0.1:0").await;
    let mut worker = worker(dir.path(), Some(reach(&authority, fake.addr, dir.path())), 0);
    assert!(!is_ready(&worker.published.borrow()));
    let mut session = fake.session().await;
    assert_eq!((session.token.as_str(), session.cluster.as_str()), (&*format!("Bearer {TOKEN}"), "Kubernetes"));
    for type_url in [AUTHORIZATION_TYPE, ADDRESS_TYPE] {
        let first = session.request().await;
        assert_eq!(first.type_url, type_url);
        assert!(first.resource_names_subscribe.is_empty() && first.initial_resource_versions.is_empty());
        assert!(first.node.expect("node").id.starts_with("ztunnel~"));
    }
    // Workloads without their policies would let everything in.
    session.answer(answer(ADDRESS_TYPE, "a1", vec![workload_resource(&workload("a", &[]))])).await;
    assert_eq!(session.request().await.response_nonce, "a1");
    assert!(!is_ready(&worker.published.borrow()));
    assert!(!worker.readiness.is_ready());
    session.answer(answer(AUTHORIZATION_TYPE, "p1", vec![])).await;
    let published = worker.until("published", is_ready).await;
    assert_eq!(published.origin, Origin::Live);
    assert!(has(&published, "a"));
    assert!(worker.readiness.is_ready());
}

#[tokio::test]
async fn changes_and_removals_are_published_and_acknowledged() {
    let (dir, authority) = (tempfile::tempdir().expect("dir"), Authority::create().expect("authority"));
    let mut fake = Fake::new(&authority, "[::1]:0").await;
    let mut worker = worker(dir.path(), Some(reach(&authority, fake.addr, dir.path())), 0);
    let mut session = fake.session().await;
    sync(&mut session, vec![policy_resource(&policy("p"))], vec![workload_resource(&workload("a", &["test/p"]))]).await;
    let first = worker.until("synced", is_ready).await;
    assert!(first.mesh.policy(&policy("p").key).is_some());
    let mut delta = answer(ADDRESS_TYPE, "a2", vec![workload_resource(&workload("b", &[]))]);
    delta.removed_resources = vec![workload("a", &[]).uid.to_string()];
    session.answer(delta).await;
    assert_eq!(session.request().await.response_nonce, "a2");
    let second = worker.until("delta", |published| has(published, "b")).await;
    assert!(!has(&second, "a") && has(&first, "a"), "an older snapshot does not change");
    assert!(second.generation > first.generation);
    // Nothing new is not published.
    session.answer(answer(ADDRESS_TYPE, "a3", vec![workload_resource(&workload("b", &[]))])).await;
    assert_eq!(session.request().await.response_nonce, "a3");
    assert_eq!(worker.published.borrow().generation, second.generation);
}

#[tokio::test]
async fn a_record_that_cannot_be_used_is_named_and_closes_rather_than_opens() {
    let (dir, authority) = (tempfile::tempdir().expect("dir"), Authority::create().expect("authority"));
    let mut fake = Fake::new(&authority, "127.0.0.1:0").await;
    let mut worker = worker(dir.path(), Some(reach(&authority, fake.addr, dir.path())), 0);
    let mut session = fake.session().await;
    let addresses = vec![workload_resource(&workload("a", &["test/p"])), workload_resource(&workload("b", &[]))];
    sync(&mut session, vec![policy_resource(&policy("p"))], addresses).await;
    worker.until("synced", is_ready).await;

    let broken =
        |resource: SavedResource| SavedResource { version: "broken".into(), body: vec![0xff, 1, 2], ..resource };
    let good = workload_resource(&workload("c", &[]));
    session.answer(answer(AUTHORIZATION_TYPE, "p2", vec![broken(policy_resource(&policy("p")))])).await;
    let nack = session.request().await;
    assert_eq!(nack.response_nonce, "p2");
    assert!(nack.error_detail.expect("refused").message.contains("test/p"));
    let published =
        worker.until("policy refuses", |now| now.mesh.policy(&policy("p").key).is_some_and(|p| p.invalid)).await;
    assert!(has(&published, "a"));

    session.answer(answer(ADDRESS_TYPE, "a2", vec![broken(workload_resource(&workload("b", &[]))), good])).await;
    let nack = session.request().await;
    let message = nack.error_detail.expect("refused").message;
    assert!(message.contains("Pod/test/b") && !message.contains("Pod/test/c"), "{message}");
    let published = worker.until("the good one counts", |published| has(published, "c")).await;
    assert!(!has(&published, "b") && has(&published, "a"));

    // A type nobody asked for is refused and changes nothing.
    session.answer(answer("type.googleapis.com/x.Y", "y1", vec![])).await;
    assert!(session.request().await.error_detail.expect("refused").message.contains("x.Y"));

    // On a new stream refused records are told without a version: they are sent again, or it is said that they are gone.
    drop(session);
    let mut session = fake.session().await;
    let (policies, addresses) = (session.request().await, session.request().await);
    let told = |request: &DeltaDiscoveryRequest, name: &str| {
        request.initial_resource_versions.get(name).map(|version| !version.is_empty())
    };
    assert_eq!(told(&policies, "test/p"), Some(false));
    let pods = ["a", "b", "c"].map(|name| told(&addresses, &format!("Kubernetes//Pod/test/{name}")));
    assert_eq!(pods, [Some(true), Some(false), Some(true)]);
    session.answer(answer(AUTHORIZATION_TYPE, "p1", vec![policy_resource(&policy("p"))])).await;
    worker.until("mended", |now| now.mesh.policy(&policy("p").key).is_some_and(|p| !p.invalid)).await;
}

/// A disk that does nothing for a while: the only thread that may wait for it is taken.
#[test]
fn answers_are_taken_while_the_last_good_configuration_is_being_written() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.expect("runtime").block_on(async {
        let (dir, authority) = (tempfile::tempdir().expect("dir"), Authority::create().expect("authority"));
        let mut fake = Fake::new(&authority, "127.0.0.1:0").await;
        let mut worker = worker(dir.path(), Some(reach(&authority, fake.addr, dir.path())), 0);
        let mut session = fake.session().await;
        sync(&mut session, vec![], vec![]).await;
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let disk = tokio::task::spawn_blocking(move || held.recv().is_err());
        let began = tokio::time::Instant::now();
        for n in 0.. {
            let name = format!("w{n}");
            session.answer(answer(ADDRESS_TYPE, &name, vec![workload_resource(&workload(&name, &[]))])).await;
            assert_eq!(session.request().await.response_nonce, name);
            worker.until("a change is in force", |published| has(published, &name)).await;
            if began.elapsed() > 2 * SAVE_DEBOUNCE {
                break;
            }
        }
        assert_eq!(worker.event("saved"), 0, "the disk stands still");
        drop(let_go);
        assert!(disk.await.expect("no panic"));
        worker.until_event("saved", 1).await;
    });
}

#[tokio::test]
async fn a_lost_control_plane_changes_nothing_and_is_found_again() {
    let (dir, authority) = (tempfile::tempdir().expect("dir"), Authority::create().expect("authority"));
    let mut fake = Fake::new(&authority, "127.0.0.1:0").await;
    let addr = fake.addr;
    let mut worker = worker(dir.path(), Some(reach(&authority, addr, dir.path())), 0);
    let mut session = fake.session().await;
    sync(&mut session, vec![], vec![workload_resource(&workload("a", &[]))]).await;
    worker.until("synced", is_ready).await;
    assert!(worker.metrics.is_connected());
    drop(session);
    fake.kill().await;
    tokio::time::timeout(WAIT, async {
        while worker.metrics.disconnects.get() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it keeps trying");
    assert!(has(&worker.published.borrow(), "a"));
    // The token is read for each stream: the one that was rotated meanwhile is sent.
    std::fs::write(dir.path().join("token"), "another-token").expect("write");
    let mut fake = Fake::new(&authority, &addr.to_string()).await;
    let mut session = fake.session().await;
    assert_eq!(session.token, "Bearer another-token");
    let (_, addresses) = (session.request().await, session.request().await);
    assert_eq!(addresses.initial_resource_versions.len(), 1);
    let mut delta = answer(ADDRESS_TYPE, "a1", vec![]);
    delta.removed_resources = vec![workload("a", &[]).uid.to_string()];
    session.answer(delta).await;
    worker.until("what left meanwhile is gone", |published| !has(published, "a")).await;
}

#[tokio::test]
async fn with_the_control_plane_down_at_start_the_last_good_configuration_is_used() {
    let (dir, authority) = (tempfile::tempdir().expect("dir"), Authority::create().expect("authority"));
    let mut fake = Fake::new(&authority, "127.0.0.1:0").await;
    let reach = reach(&authority, fake.addr, dir.path());
    {
        let mut worker = worker(dir.path(), Some(reach.clone()), 0);
        let mut session = fake.session().await;
        let broken = SavedResource { body: vec![0xff, 1], ..policy_resource(&policy("broken")) };
        let _ = (session.request().await, session.request().await);
        session.answer(answer(AUTHORIZATION_TYPE, "p1", vec![policy_resource(&policy("p")), broken])).await;
        session.answer(answer(ADDRESS_TYPE, "a1", vec![workload_resource(&workload("a", &["test/p"]))])).await;
        worker.until("synced", is_ready).await;
        worker.until_event("saved", 1).await;
        let before = std::fs::read(dir.path().join("last-good")).expect("written");
        // An answer without news writes nothing.
        session.answer(answer(ADDRESS_TYPE, "a2", vec![workload_resource(&workload("a", &["test/p"]))])).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!((worker.event("saved"), std::fs::read(dir.path().join("last-good")).expect("there")), (1, before));
        worker.group.finish(Duration::ZERO).await;
    }
    fake.kill().await;
    let began = SystemTime::now();
    let worker = worker(dir.path(), Some(reach), 0);
    // At once: before any await.
    let published = worker.published.borrow().clone();
    assert!(matches!(published.origin, Origin::LastGood { written_at } if written_at < began));
    assert!(worker.readiness.is_ready());
    assert!(has(&published, "a") && published.mesh.policy(&policy("p").key).is_some_and(|policy| !policy.invalid));
    let broken = published.mesh.policy(&policy("broken").key).expect("it still stands");
    assert!(broken.invalid, "a policy that could not be read refuses after a restart too");
}

fn save(dir: &Path, node: &str, resources: Vec<SavedResource>) {
    let saved =
        Saved { node: node.into(), cluster: "Kubernetes".into(), written_at: SystemTime::now(), resources, counter: 0 };
    std::fs::write(dir.join(".new"), saved.encode()).expect("write");
    std::fs::rename(dir.join(".new"), dir.join("last-good")).expect("rename");
}

fn save_counted(dir: &Path, name: &str, counter: u64) {
    let (node, cluster, written_at) = ("node-1".into(), "Kubernetes".into(), SystemTime::now());
    let resources = vec![workload_resource(&workload(name, &[]))];
    let saved = Saved { node, cluster, written_at, resources, counter };
    std::fs::write(dir.join("last-good"), saved.encode()).expect("write");
}

/// A control plane that is away: nobody listens there.
fn away(dir: &Path) -> ControlPlane {
    let authority = Authority::create().expect("authority");
    reach(&authority, "127.0.0.1:1".parse().expect("an address"), dir)
}

#[tokio::test]
async fn a_file_older_than_one_that_the_node_has_had_is_not_believed() {
    let dir = tempfile::tempdir().expect("dir");
    save_counted(dir.path(), "a", 6);
    let (keeper, guard) = guard(Floor::Is(7));
    let worker = worker_under(dir.path(), Some(away(dir.path())), 0, Some(guard));
    let _ = keeper.settled.await;
    assert!(!is_ready(&worker.published.borrow()));
    assert_eq!((worker.event("outdated"), worker.event("loaded")), (1, 0));
    assert!(dir.path().join("last-good.bad").exists() && !dir.path().join("last-good").exists());
    assert_eq!(*keeper.written.borrow(), 0, "nothing was told of it");
}

#[tokio::test]
async fn a_file_is_believed_when_the_keeper_has_said_so_and_not_before() {
    for floor in [Floor::Is(7), Floor::Is(3), Floor::NotKept] {
        let dir = tempfile::tempdir().expect("dir");
        save_counted(dir.path(), "a", 7);
        let (mut keeper, guard) = guard(Floor::Unknown);
        let mut worker = worker_under(dir.path(), Some(away(dir.path())), 0, Some(guard));
        tokio::task::yield_now().await;
        assert!(!is_ready(&worker.published.borrow()), "{floor:?}");
        keeper.floor.send_replace(floor);
        let published = worker.until("loaded", |published| has(published, "a")).await;
        assert!(matches!(published.origin, Origin::LastGood { .. }));
        keeper.written.wait_for(|counter| *counter == 7).await.expect("the keeper hears of it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_says_nothing_costs_a_deadline_and_may_say_it_later() {
    let dir = tempfile::tempdir().expect("dir");
    save_counted(dir.path(), "a", 7);
    let (keeper, guard) = guard(Floor::Unknown);
    let mut worker = worker_under(dir.path(), Some(away(dir.path())), 0, Some(guard));
    let _ = keeper.settled.await;
    assert!(!is_ready(&worker.published.borrow()));
    keeper.floor.send_replace(Floor::Is(7));
    worker.until("loaded all the same", |published| has(published, "a")).await;
}

fn save_written_at(dir: &Path, written_at: SystemTime) {
    let resources = vec![workload_resource(&workload("a", &[]))];
    let saved = Saved { node: "node-1".into(), cluster: "Kubernetes".into(), written_at, resources, counter: 0 };
    std::fs::write(dir.join("last-good"), saved.encode()).expect("write");
}

#[tokio::test]
async fn a_configuration_past_its_age_lets_nobody_in_until_the_control_plane_confirms_it() {
    let (dir, authority) = (tempfile::tempdir().expect("dir"), Authority::create().expect("authority"));
    let mut fake = Fake::new(&authority, "127.0.0.1:0").await;
    let now = SystemTime::now();
    // Also one that a clock of the future has written: nobody knows how old it is.
    for written_at in [now - AGE - Duration::from_secs(1), now + AGE] {
        save_written_at(dir.path(), written_at);
        let mut worker = worker(dir.path(), Some(reach(&authority, fake.addr, dir.path())), 0);
        let published = worker.published.borrow().clone();
        assert!(has(&published, "a") && published.mesh.is_outdated(), "known, and for the way out alone");
        let mut session = fake.session().await;
        sync(&mut session, vec![], vec![]).await;
        worker.until("confirmed", |published| !published.mesh.is_outdated()).await;
        worker.group.finish(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn a_configuration_comes_of_age_while_it_is_in_use() {
    let dir = tempfile::tempdir().expect("dir");
    save_written_at(dir.path(), SystemTime::now() - AGE + Duration::from_secs(1));
    let mut worker = worker(dir.path(), Some(away(dir.path())), 0);
    assert!(!worker.published.borrow().mesh.is_outdated());
    let published = worker.until("its age passes", |published| published.mesh.is_outdated()).await;
    assert!(has(&published, "a"));
}

#[tokio::test]
async fn without_a_control_plane_a_file_has_no_age() {
    let dir = tempfile::tempdir().expect("dir");
    save_written_at(dir.path(), SystemTime::UNIX_EPOCH);
    let worker = worker(dir.path(), None, 0);
    assert!(!worker.published.borrow().mesh.is_outdated());
}

/// What the control plane has confirmed is as good as written anew: a mesh without changes does not grow old on the disk.
#[tokio::test]
async fn the_end_of_a_stream_writes_down_when_the_configuration_was_last_confirmed() {
    let (dir, authority) = (tempfile::tempdir().expect("dir"), Authority::create().expect("authority"));
    let mut fake = Fake::new(&authority, "127.0.0.1:0").await;
    let worker = worker(dir.path(), Some(reach(&authority, fake.addr, dir.path())), 0);
    let mut session = fake.session().await;
    sync(&mut session, vec![], vec![]).await;
    worker.until_event("saved", 1).await;
    let written = || {
        let bytes = std::fs::read(dir.path().join("last-good")).expect("there");
        mesh_api::xds::saved::decode(&bytes).expect("whole").written_at
    };
    let first = written();
    drop(session);
    worker.until_event("saved", 2).await;
    assert!(written() > first);
}

#[tokio::test]
async fn each_file_counts_on_from_the_highest_that_anybody_has_seen() {
    let (dir, authority) = (tempfile::tempdir().expect("dir"), Authority::create().expect("authority"));
    let mut fake = Fake::new(&authority, "127.0.0.1:0").await;
    let (mut keeper, guard) = guard(Floor::Is(7));
    let worker = worker_under(dir.path(), Some(reach(&authority, fake.addr, dir.path())), 0, Some(guard));
    let mut session = fake.session().await;
    sync(&mut session, vec![], vec![workload_resource(&workload("a", &[]))]).await;
    worker.until_event("saved", 1).await;
    let counter = || {
        let bytes = std::fs::read(dir.path().join("last-good")).expect("there");
        mesh_api::xds::saved::decode(&bytes).expect("whole").counter
    };
    assert_eq!(counter(), 8);
    keeper.written.wait_for(|written| *written == 8).await.expect("the keeper hears of it");
    // The worker of another generation has written.
    keeper.floor.send_replace(Floor::Is(20));
    session.answer(answer(ADDRESS_TYPE, "a2", vec![workload_resource(&workload("b", &[]))])).await;
    assert_eq!(session.request().await.response_nonce, "a2");
    worker.until_event("saved", 2).await;
    assert_eq!(counter(), 21);
}

#[tokio::test]
async fn a_broken_file_is_set_aside_and_anothers_is_not_used() {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("last-good"), b"culvert last good?").expect("write");
    let first = worker(dir.path(), None, 0);
    assert!(!is_ready(&first.published.borrow()));
    assert_eq!(first.event("broken"), 1);
    assert!(dir.path().join("last-good.bad").exists() && !dir.path().join("last-good").exists());
    save(dir.path(), "node-2", vec![workload_resource(&workload("a", &[]))]);
    let second = worker(dir.path(), None, 0);
    assert!(!is_ready(&second.published.borrow()));
    assert_eq!(second.event("elsewhere"), 1);
    assert!(dir.path().join("last-good").exists());
}

#[tokio::test]
async fn after_three_crashes_the_file_is_set_aside() {
    let dir = tempfile::tempdir().expect("dir");
    save(dir.path(), "node-1", vec![workload_resource(&workload("a", &[]))]);
    for (crashes, ready) in [(2, true), (3, false)] {
        let worker = worker(dir.path(), None, crashes);
        assert_eq!(is_ready(&worker.published.borrow()), ready, "{crashes} crashes");
    }
    assert!(dir.path().join("last-good.bad").exists());
}

#[tokio::test]
async fn without_a_control_plane_the_file_is_followed() {
    let dir = tempfile::tempdir().expect("dir");
    let mut worker = worker(dir.path(), None, 0);
    assert!(!is_ready(&worker.published.borrow()));
    save(dir.path(), "node-1", vec![workload_resource(&workload("a", &[]))]);
    let first = worker.until("loaded", |published| has(published, "a")).await;
    assert!(matches!(first.origin, Origin::LastGood { .. }));
    save(dir.path(), "node-1", vec![workload_resource(&workload("b", &[]))]);
    let second = worker.until("loaded again", |published| has(published, "b")).await;
    assert!(!has(&second, "a"));
    // A broken one changes nothing.
    std::fs::write(dir.path().join("last-good"), b"broken").expect("write");
    worker.until_event("broken", 1).await;
    assert!(has(&worker.published.borrow(), "b"));
    save(dir.path(), "node-1", vec![workload_resource(&workload("c", &[]))]);
    worker.until("and goes on", |published| has(published, "c")).await;
}

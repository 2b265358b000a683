//! Promises of the certificate manager: a signer that can be told what to do, and a clock that stands still unless nothing else is
//! left to do.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use mesh_daemon::tasks;
use mesh_model::{Identity, Reason};
use mesh_tls::authority::Authority;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::fetch::{SignError, Signer};
use super::manager::start_with;
use super::table::Clock;
use super::{CertConfig, Certificates, Keep, schedule};
use crate::worker::tunnel::testing::{domains, identity};

const HOUR: Duration = Duration::from_secs(3600);

/// Signs what it is asked for, when it is allowed to.
struct FakeSigner {
    authority: Authority,
    clock: Clock,
    /// One permit for each answer.
    gate: Semaphore,
    /// While set, answers are refusals.
    down: Mutex<bool>,
    asked: Mutex<Vec<Identity>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    changed: Notify,
}

struct Handle(Arc<FakeSigner>);

impl Signer for Handle {
    fn sign(
        &self,
        identity: &Identity,
        csr: String,
        validity: Duration,
    ) -> BoxFuture<'static, Result<Vec<String>, SignError>> {
        let (signer, identity) = (self.0.clone(), identity.clone());
        Box::pin(async move {
            signer.asked.lock().expect("test").push(identity.clone());
            let now = signer.at_once.fetch_add(1, Ordering::Relaxed) + 1;
            signer.most_at_once.fetch_max(now, Ordering::Relaxed);
            signer.changed.notify_waiters();
            let permit = signer.gate.acquire().await.expect("never closed");
            permit.forget();
            signer.at_once.fetch_sub(1, Ordering::Relaxed);
            if *signer.down.lock().expect("test") {
                return Err(SignError::Refused("no control plane".into()));
            }
            Ok(signer.authority.sign(&csr, &identity, validity, (signer.clock)()).expect("signed"))
        })
    }
}

struct World {
    certificates: Certificates,
    signer: Arc<FakeSigner>,
    kept: Arc<Mutex<Vec<OwnedFd>>>,
    /// How far the wall clock is ahead of tokio's, in seconds.
    ahead: Arc<AtomicU64>,
    _group: tasks::Group,
}

/// A wall clock that moves with tokio's, and further when it is set ahead.
fn clock(ahead: &Arc<AtomicU64>) -> Clock {
    let (wall, began, ahead) = (SystemTime::now(), Instant::now(), ahead.clone());
    Arc::new(move || wall + began.elapsed() + Duration::from_secs(ahead.load(Ordering::Relaxed)))
}

fn world(permits: usize) -> World {
    world_with(permits, Authority::create().expect("authority"))
}

fn world_with(permits: usize, authority: Authority) -> World {
    let ahead = Arc::default();
    let clock = clock(&ahead);
    let signer = Arc::new(FakeSigner {
        authority,
        clock: clock.clone(),
        gate: Semaphore::new(permits),
        down: Mutex::new(false),
        asked: Mutex::default(),
        at_once: AtomicUsize::new(0),
        most_at_once: AtomicUsize::new(0),
        changed: Notify::new(),
    });
    let kept: Arc<Mutex<Vec<OwnedFd>>> = Arc::default();
    let keep: Keep = Arc::new({
        let kept = kept.clone();
        move |memfd| {
            kept.lock().expect("test").push(memfd);
            Box::pin(std::future::ready(Ok(())))
        }
    });
    let group = tasks::Group::new("test");
    let config = CertConfig { trust_domains: domains(), control_plane: None, validity: HOUR };
    let certificates = start_with(config, Some(Arc::new(Handle(signer.clone()))), Some(keep), clock, &group.handle());
    World { certificates, signer, kept, ahead, _group: group }
}

impl World {
    fn asked(&self) -> Vec<Identity> {
        self.signer.asked.lock().expect("test").clone()
    }

    fn down(&self, down: bool) {
        *self.signer.down.lock().expect("test") = down;
    }

    /// Waits until the signer was asked so often.
    async fn until_asked(&self, count: usize) {
        loop {
            let changed = self.signer.changed.notified();
            if self.asked().len() >= count {
                return;
            }
            changed.await;
        }
    }
}

fn set(names: &[&str]) -> BTreeSet<Identity> {
    names.iter().map(|name| identity(name)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_fetched_once_and_shared() {
    let world = world(usize::MAX >> 4);
    let (id, wait) = (identity("a"), Duration::from_secs(5));
    let (one, two) = tokio::join!(world.certificates.get(&id, wait), world.certificates.get(&id, wait));
    let (one, two) = (one.expect("had"), two.expect("had"));
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!(one.identity, id);
    assert_eq!(world.asked(), [id]);
    assert!(Arc::ptr_eq(&one.client(&[identity("x")]), &one.client(&[identity("x")])));
}

#[tokio::test(start_paused = true)]
async fn prefetch_is_bounded_and_a_waiting_connection_goes_past_it() {
    let world = world(0);
    let names: Vec<String> = (0..40).map(|n| format!("p{n}")).collect();
    world.certificates.want(&names.iter().map(|name| identity(name)).collect());
    world.until_asked(schedule::BACKGROUND).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.asked().len(), schedule::BACKGROUND, "no more prefetch than that");
    let certificates = world.certificates.clone();
    let waiting = tokio::spawn(async move { certificates.get(&identity("urgent"), Duration::from_secs(5)).await });
    world.until_asked(schedule::BACKGROUND + 1).await;
    assert_eq!(world.asked().last(), Some(&identity("urgent")));
    world.signer.gate.add_permits(1000);
    waiting.await.expect("task").expect("had");
    world.until_asked(41).await;
    assert_eq!(world.signer.most_at_once.load(Ordering::Relaxed), schedule::BACKGROUND + 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_around_half_of_its_life() {
    let world = world(usize::MAX >> 4);
    world.certificates.want(&set(&["a"]));
    world.until_asked(1).await;
    let began = Instant::now();
    world.until_asked(2).await;
    let took = began.elapsed();
    // The life counts from a minute before now.
    assert!(took >= HOUR.mul_f64(0.40) && took <= HOUR.mul_f64(0.56), "{took:?}");
    let before = world.certificates.state()[0].serial.clone();
    world.until_asked(3).await;
    assert_ne!(world.certificates.state()[0].serial, before);
}

#[tokio::test(start_paused = true)]
async fn while_the_signer_is_down_the_old_certificate_serves_until_it_runs_out() {
    let world = world(usize::MAX >> 4);
    world.certificates.want(&set(&["a"]));
    let wait = Duration::from_secs(5);
    world.certificates.get(&identity("a"), wait).await.expect("had");
    world.down(true);
    tokio::time::sleep(HOUR.mul_f64(0.9)).await;
    world.certificates.get(&identity("a"), wait).await.expect("still valid");
    tokio::time::sleep(HOUR.mul_f64(0.2)).await;
    let error = world.certificates.get(&identity("a"), wait).await.expect_err("run out");
    assert_eq!(error.reason(), Reason::CertificateExpired, "{error}");
    let error = world.certificates.get(&identity("b"), wait).await.expect_err("never had");
    assert_eq!(error.reason(), Reason::CertificateUnavailable, "{error}");
    assert!(error.to_string().contains("no control plane"), "{error}");
    // Back again: a connection that waits has one within the retry of a second, whatever the backoff was.
    let attempts = world.asked().len();
    assert!(attempts < 60, "{attempts} attempts in an hour are not a backoff");
    world.down(false);
    let began = Instant::now();
    world.certificates.get(&identity("a"), wait).await.expect("renewed");
    assert!(began.elapsed() <= schedule::WAITING_RETRY, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_the_wall_clock_has_overtaken_is_replaced_for_the_next_connection() {
    let world = world(usize::MAX >> 4);
    let wait = Duration::from_secs(5);
    world.certificates.want(&set(&["a"]));
    world.certificates.get(&identity("a"), wait).await.expect("had");
    // A machine that was suspended: its wall clock went on, the one that timers are of did not.
    tokio::time::sleep(HOUR / 10).await;
    world.ahead.store(24 * 3600, Ordering::Relaxed);
    let began = Instant::now();
    world.certificates.get(&identity("a"), wait).await.expect("renewed");
    assert!(began.elapsed() <= schedule::WAITING_RETRY, "{:?}", began.elapsed());
    assert_eq!(world.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_signer_that_does_not_answer_costs_a_connection_its_deadline_and_no_more() {
    let world = world(0);
    let began = Instant::now();
    let error = world.certificates.get(&identity("a"), Duration::from_secs(3)).await.expect_err("none");
    assert_eq!((error.reason(), began.elapsed()), (Reason::CertificateUnavailable, Duration::from_secs(3)));
    // The attempt itself ends too, and is not left running for ever.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(world.certificates.counters(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_forgotten_a_little_after_its_last_pod() {
    let world = world(usize::MAX >> 4);
    world.certificates.want(&set(&["a", "b"]));
    world.until_asked(2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.certificates.want(&set(&["b"]));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.certificates.state().len(), 2, "a pod that is replaced keeps it");
    tokio::time::sleep(Duration::from_secs(30)).await;
    let left: Vec<String> = world.certificates.state().into_iter().map(|state| state.identity).collect();
    assert_eq!(left, [identity("b").to_string()]);
    assert_eq!(world.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_successor_has_the_certificates_without_the_signer() {
    let first = world(usize::MAX >> 4);
    first.certificates.want(&set(&["a", "b"]));
    let wait = Duration::from_secs(5);
    let had = first.certificates.get(&identity("a"), wait).await.expect("had");
    first.certificates.get(&identity("b"), wait).await.expect("had");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let memfd = first.kept.lock().expect("test").pop().expect("kept");
    let again = memfd.try_clone().expect("descriptor");
    // What is kept cannot be changed by anyone who holds it.
    let seals = rustix::fs::fcntl_get_seals(&memfd).expect("seals");
    assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SEAL));

    let second = world(0);
    assert_eq!(second.certificates.restore(memfd).expect("restored"), 2);
    let restored = second.certificates.get(&identity("a"), wait).await.expect("at once");
    assert_eq!(restored.cert.serial(), had.cert.serial());
    assert!(second.asked().is_empty());
    // The pods arrive one by one: the first does not cost the others theirs.
    second.certificates.want(&set(&["a"]));
    tokio::time::sleep(Duration::from_secs(5)).await;
    second.certificates.get(&identity("b"), wait).await.expect("still there");

    // A certificate that ran out meanwhile is not taken over.
    tokio::time::sleep(HOUR * 2).await;
    let late = world_with(0, Authority::create().expect("authority"));
    let expired = {
        let config = CertConfig { trust_domains: domains(), control_plane: None, validity: HOUR };
        let wall = SystemTime::now() + HOUR * 2;
        start_with(config, None, None, Arc::new(move || wall), &late._group.handle())
    };
    assert_eq!(expired.restore(again).expect("readable"), 0);
    let error = expired.get(&identity("a"), wait).await.expect_err("none");
    assert_eq!(error.reason(), Reason::CertificateUnavailable);
}

#[tokio::test]
async fn something_else_than_kept_certificates_is_refused() {
    let world = world(0);
    let plain = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("memfd");
    assert!(world.certificates.restore(plain).is_err(), "not sealed");
    for content in [
        &b""[..],
        b"culvert certificates 2\n",
        b"culvert certificates 1\n\0\0",
        b"culvert certificates 1\n\0\0\0\x09xx",
    ] {
        let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("memfd");
        rustix::io::write(&memfd, content).expect("write");
        let all = rustix::fs::SealFlags::SEAL
            | rustix::fs::SealFlags::SHRINK
            | rustix::fs::SealFlags::GROW
            | rustix::fs::SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&memfd, all).expect("seal");
        assert!(world.certificates.restore(memfd).is_err(), "{content:?}");
    }
    assert!(world.certificates.state().is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_printable_holds_a_key() {
    let world = world(usize::MAX >> 4);
    let credentials = world.certificates.get(&identity("a"), Duration::from_secs(5)).await.expect("had");
    let secret = credentials.cert.to_secret_bytes();
    let printed = format!("{credentials:?} {:?}", world.certificates.state());
    // RFC 5915: version 1, then an OCTET STRING of 32 bytes, the private scalar. No 8 bytes of it in a row may show, in the two
    // ways in which bytes are printed.
    let at = secret.windows(5).position(|bytes| bytes == [2, 1, 1, 4, 32]).expect("a P-256 key") + 5;
    for window in secret[at..at + 32].windows(8) {
        let (list, hex) = (format!("{window:?}"), window.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        assert!(!printed.contains(list.trim_matches(['[', ']'])) && !printed.contains(&hex));
    }
}

#[tokio::test]
async fn the_control_planes_service_signs_with_the_token_of_the_moment() {
    use crate::worker::xds::testing;
    let (dir, group) = (tempfile::tempdir().expect("dir"), tasks::Group::new("test"));
    let authority = Arc::new(Authority::create().expect("authority"));
    let (addr, ca) = testing::ca(&authority, &group).await;
    let control_plane = Some(testing::reach(&authority, addr, dir.path()));
    let config = CertConfig { trust_domains: domains(), control_plane, validity: HOUR };
    let certificates = super::start(config, None, &group.handle());
    let wait = Duration::from_secs(10);
    certificates.get(&identity("a"), wait).await.expect("had");
    std::fs::write(dir.path().join("token"), "rotated").expect("write");
    let all: BTreeSet<Identity> = (0..100).map(|n| identity(&format!("p{n}"))).collect();
    certificates.want(&all);
    for identity in &all {
        assert_eq!(certificates.get(identity, wait).await.expect("had").identity, *identity);
    }
    let asked = ca.asked.lock().expect("test").clone();
    assert_eq!(asked[0], (identity("a").to_string(), format!("Bearer {}", testing::TOKEN)));
    assert_eq!(asked.len(), 101, "one request for each");
    assert!(asked[1..].iter().all(|(_, token)| token == "Bearer rotated"));
}

#[tokio::test]
async fn a_control_plane_that_cannot_be_reached_or_trusted_is_named_in_the_error() {
    use crate::worker::xds::testing;
    let (dir, group) = (tempfile::tempdir().expect("dir"), tasks::Group::new("test"));
    let authority = Arc::new(Authority::create().expect("authority"));
    let (addr, _ca) = testing::ca(&authority, &group).await;
    let other = Authority::create().expect("authority");
    let get = async |control_plane| {
        let config = CertConfig { trust_domains: domains(), control_plane: Some(control_plane), validity: HOUR };
        let certificates = super::start(config, None, &group.handle());
        certificates.get(&identity("a"), Duration::from_secs(3)).await.expect_err("none").to_string()
    };
    let untrusted = get(testing::reach(&other, addr, dir.path())).await;
    assert!(untrusted.contains("certificate"), "{untrusted}");
    let nobody = get(testing::reach(&authority, "127.0.0.1:9".parse().expect("address"), dir.path())).await;
    assert!(nobody.contains("refused"), "{nobody}");
    let tokenless = testing::reach(&authority, addr, dir.path());
    std::fs::remove_file(dir.path().join("token")).expect("remove");
    let tokenless = get(tokenless).await;
    assert!(tokenless.contains("token file"), "{tokenless}");
}

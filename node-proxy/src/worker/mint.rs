//! Sockets in the pods' network namespaces: asked of the keeper in batches, kept in a small stock.
//!
//! The worker cannot make them itself. A stock exists only for pods that use it: a miss doubles what is fetched with the next
//! batch, and a tick without misses halves it, so an idle pod holds none. All stocks together are bounded, since descriptors are.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mesh_api::link::worker::{Family, MAX_MINT, Purpose};
use mesh_daemon::tasks;
use mesh_model::Reason;
use tokio::sync::oneshot;

use super::metrics::Metrics;
use super::orphans::Orphans;

/// How long a connection waits for a socket: the keeper answers in well under a millisecond, and its own deadline is one second.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most sockets kept for one pod, family and purpose.
const STOCK_PER_KEY: u8 = 32;
/// Most sockets kept in all, a twentieth of the 20,000 descriptors that some machines allow.
const STOCK_IN_ALL: i64 = 1_000;
/// How often stocks shrink.
const TICK: Duration = Duration::from_secs(5);

/// Who makes sockets: the link to the keeper, or a stand-in in tests.
pub trait Maker: Send + Sync {
    /// Makes up to `count` sockets in the pod's namespace; at least one, or the reason why there is none.
    fn mint(
        &self,
        slot: u32,
        family: Family,
        purpose: Purpose,
        count: u8,
    ) -> BoxFuture<'static, Result<Vec<OwnedFd>, Reason>>;
}

/// No socket could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no socket in the network namespace of pod slot {slot}: {cause}")]
pub struct NoSocket {
    slot: u32,
    cause: Reason,
}

impl NoSocket {
    /// The reason for metric, log and wire.
    pub fn reason(&self) -> Reason {
        match self.cause {
            Reason::Overloaded => Reason::Overloaded,
            _ => Reason::NoSocket,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    slot: u32,
    v6: bool,
    towards_app: bool,
}

impl Key {
    fn new(slot: u32, family: Family, purpose: Purpose) -> Self {
        Self { slot, v6: family == Family::V6, towards_app: purpose == Purpose::TowardsApp }
    }

    fn family(self) -> Family {
        if self.v6 { Family::V6 } else { Family::V4 }
    }

    fn purpose(self) -> Purpose {
        if self.towards_app { Purpose::TowardsApp } else { Purpose::TowardsPeer }
    }
}

#[derive(Default)]
struct Stock {
    sockets: Vec<OwnedFd>,
    waiting: VecDeque<oneshot::Sender<Result<OwnedFd, Reason>>>,
    // How many to keep at hand.
    level: u8,
    // Whether there was a miss since the last tick.
    missed: bool,
    // One request per key at a time; whoever comes meanwhile joins the next batch.
    asking: bool,
    // What is being asked for may be of before the pod was changed.
    outdated: bool,
}

/// The stocks of all pods. Cheap to clone.
#[derive(Clone)]
pub struct Mint {
    inner: Arc<Inner>,
}

struct Inner {
    maker: Arc<dyn Maker>,
    tasks: tasks::Handle,
    metrics: Arc<Metrics>,
    stocks: Mutex<HashMap<Key, Stock>>,
    orphans: Orphans,
}

impl Mint {
    /// Empty stocks. `tasks` runs the requests.
    pub fn new(maker: Arc<dyn Maker>, tasks: tasks::Handle, metrics: Arc<Metrics>) -> Self {
        Self { inner: Arc::new(Inner { maker, tasks, metrics, stocks: Mutex::default(), orphans: Orphans::default() }) }
    }

    /// A socket in the pod's namespace, from the stock or freshly made.
    pub async fn take(&self, slot: u32, family: Family, purpose: Purpose) -> Result<OwnedFd, NoSocket> {
        let key = Key::new(slot, family, purpose);
        let waiting = {
            let mut stocks = self.inner.lock();
            let stock = stocks.entry(key).or_default();
            if let Some(socket) = stock.sockets.pop() {
                self.inner.metrics.plain.mint_stock.dec();
                // Refill in the background once half is used, so that a steady stream never waits.
                if stock.sockets.len() < usize::from(stock.level / 2) {
                    self.ask(key, stock);
                }
                return Ok(socket);
            }
            stock.missed = true;
            stock.level = stock.level.saturating_mul(2).clamp(1, STOCK_PER_KEY);
            let (answer, waiting) = oneshot::channel();
            stock.waiting.push_back(answer);
            self.ask(key, stock);
            waiting
        };
        let cause = match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(Ok(Ok(socket))) => return Ok(socket),
            Ok(Ok(Err(reason))) => reason,
            // The requesting task ended without an answer: the worker is going away.
            Ok(Err(_)) => Reason::Draining,
            Err(_) => Reason::LinkDown,
        };
        Err(NoSocket { slot, cause })
    }

    /// Whether a socket of the pod's own has been closed, by its two ends.
    pub async fn is_orphan(&self, slot: u32, local: SocketAddr, remote: SocketAddr) -> bool {
        self.inner.orphans.is_one(&*self.inner.maker, slot, local, remote).await
    }

    /// Forgets a pod: its stock is closed, whoever waits is refused.
    pub fn forget(&self, slot: u32) {
        self.inner.orphans.forget(slot);
        let mut stocks = self.inner.lock();
        stocks.retain(|key, stock| {
            if key.slot != slot {
                return true;
            }
            self.inner.metrics.plain.mint_stock.sub(stock.sockets.len() as i64);
            false
        });
    }

    /// The pod is to be reached by other sockets than before: its stock is closed, and what is on its way as well when it comes. Whoever
    /// waits gets one that is asked for again.
    pub fn renew(&self, slot: u32) {
        for (_, stock) in self.inner.lock().iter_mut().filter(|(key, _)| key.slot == slot) {
            self.inner.metrics.plain.mint_stock.sub(stock.sockets.len() as i64);
            stock.sockets.clear();
            stock.outdated = stock.asking;
        }
    }

    /// Lets stocks shrink, for ever; dropped with the worker.
    pub async fn shrink(self) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            self.shrink_once();
        }
    }

    fn shrink_once(&self) {
        self.inner.lock().retain(|_, stock| {
            if !std::mem::take(&mut stock.missed) {
                stock.level /= 2;
                let before = stock.sockets.len();
                stock.sockets.truncate(usize::from(stock.level));
                self.inner.metrics.plain.mint_stock.sub((before - stock.sockets.len()) as i64);
            }
            stock.level > 0 || stock.asking || !stock.waiting.is_empty()
        });
    }

    fn ask(&self, key: Key, stock: &mut Stock) {
        if stock.asking {
            return;
        }
        stock.asking = true;
        let inner = self.inner.clone();
        if !self.inner.tasks.spawn("mint", async move { inner.request(key).await }) {
            stock.asking = false;
            stock.waiting.clear();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Stock>> {
        self.stocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks until nobody waits any more.
    async fn request(&self, key: Key) {
        loop {
            let count = {
                let mut stocks = self.lock();
                let Some(stock) = stocks.get_mut(&key) else { return };
                stock.waiting.retain(|waiting| !waiting.is_closed());
                let room = self.metrics.plain.mint_stock.get() < STOCK_IN_ALL;
                let spare = if room { usize::from(stock.level).saturating_sub(stock.sockets.len()) } else { 0 };
                let count = (stock.waiting.len() + spare).min(usize::from(MAX_MINT)) as u8;
                stock.outdated = false;
                if count == 0 {
                    stock.asking = false;
                    return;
                }
                count
            };
            let minted = self.maker.mint(key.slot, key.family(), key.purpose(), count).await;
            let mut stocks = self.lock();
            // The pod was forgotten meanwhile: what was made is closed by being dropped.
            let Some(stock) = stocks.get_mut(&key) else { return };
            match minted {
                Ok(_) if stock.outdated => {}
                Ok(sockets) if !sockets.is_empty() => {
                    self.metrics.plain.minted.inc_by(sockets.len() as u64);
                    if sockets.len() < usize::from(count) {
                        self.metrics.plain.mint_failed.inc();
                    }
                    let mut sockets = sockets.into_iter();
                    while let Some(waiting) = stock.waiting.pop_front() {
                        let Some(socket) = sockets.next() else {
                            stock.waiting.push_front(waiting);
                            break;
                        };
                        if let Err(Ok(socket)) = waiting.send(Ok(socket)) {
                            stock.sockets.push(socket);
                            self.metrics.plain.mint_stock.inc();
                        }
                    }
                    let spare = stock.sockets.len();
                    stock.sockets.extend(sockets);
                    self.metrics.plain.mint_stock.add((stock.sockets.len() - spare) as i64);
                }
                refused => {
                    self.metrics.plain.mint_failed.inc();
                    let reason = refused.err().unwrap_or(Reason::NoSocket);
                    stock.level = 0;
                    stock.asking = false;
                    for waiting in stock.waiting.drain(..) {
                        let _ = waiting.send(Err(reason));
                    }
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Makes pipes' ends, or nothing.
    struct Fake {
        requests: Mutex<Vec<u8>>,
        refuse: AtomicUsize,
    }

    impl Maker for Arc<Fake> {
        fn mint(&self, _: u32, _: Family, _: Purpose, count: u8) -> BoxFuture<'static, Result<Vec<OwnedFd>, Reason>> {
            self.requests.lock().expect("not poisoned").push(count);
            let refuse = self.refuse.load(Ordering::Relaxed) > 0;
            Box::pin(async move {
                tokio::task::yield_now().await;
                if refuse {
                    return Err(Reason::LinkDown);
                }
                Ok((0..count).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").expect("socket").into()).collect())
            })
        }
    }

    fn mint() -> (Mint, Arc<Fake>, tasks::Group) {
        let fake = Arc::new(Fake { requests: Mutex::default(), refuse: AtomicUsize::new(0) });
        let tasks = tasks::Group::new("test");
        let mint = Mint::new(Arc::new(fake.clone()), tasks.handle(), Arc::new(Metrics::for_test()));
        (mint, fake, tasks)
    }

    async fn take(mint: &Mint) -> Result<OwnedFd, NoSocket> {
        mint.take(1, Family::V4, Purpose::TowardsPeer).await
    }

    #[tokio::test]
    async fn demand_makes_batches_grow_and_idleness_empties_the_stock() {
        let (mint, fake, _tasks) = mint();
        let mut held = Vec::new();
        for _ in 0..200 {
            held.push(take(&mint).await.expect("socket"));
        }
        let requests = fake.requests.lock().expect("not poisoned").clone();
        assert!(requests.len() < 40, "{requests:?}");
        assert!(mint.inner.metrics.plain.mint_stock.get() <= i64::from(STOCK_PER_KEY));
        // The last refill may still be on its way.
        while mint.inner.lock().values().any(|stock| stock.asking) {
            tokio::task::yield_now().await;
        }
        for _ in 0..8 {
            mint.shrink_once();
        }
        assert_eq!(mint.inner.metrics.plain.mint_stock.get(), 0);
        assert!(mint.inner.lock().is_empty());
    }

    #[tokio::test]
    async fn those_who_come_together_share_one_request() {
        let (mint, fake, _tasks) = mint();
        let all = futures_util::future::join_all((0..50).map(|_| take(&mint))).await;
        assert!(all.iter().all(Result::is_ok));
        assert!(fake.requests.lock().expect("not poisoned").len() <= 2);
    }

    #[tokio::test]
    async fn a_refusal_reaches_everyone_who_waits_and_the_next_one_asks_again() {
        let (mint, fake, _tasks) = mint();
        fake.refuse.store(1, Ordering::Relaxed);
        let all = futures_util::future::join_all((0..5).map(|_| take(&mint))).await;
        assert!(all.iter().all(|taken| taken.as_ref().is_err_and(|error| error.reason() == Reason::NoSocket)));
        fake.refuse.store(0, Ordering::Relaxed);
        assert!(take(&mint).await.is_ok());
    }

    #[tokio::test]
    async fn a_renewed_pod_has_no_socket_of_before_in_stock_nor_on_its_way() {
        let (mint, fake, _tasks) = mint();
        for _ in 0..10 {
            take(&mint).await.expect("socket");
        }
        // The last refill may still be on its way.
        while mint.inner.lock().values().any(|stock| stock.asking) {
            tokio::task::yield_now().await;
        }
        assert!(mint.inner.metrics.plain.mint_stock.get() > 0);
        mint.renew(2);
        assert!(mint.inner.metrics.plain.mint_stock.get() > 0, "another pod's are its own");
        mint.renew(1);
        assert_eq!(mint.inner.metrics.plain.mint_stock.get(), 0);
        let before = fake.requests.lock().expect("not poisoned").len();
        let mut waiting = std::pin::pin!(take(&mint));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        // The request for it is made, and not answered yet.
        while fake.requests.lock().expect("not poisoned").len() == before {
            tokio::task::yield_now().await;
        }
        mint.renew(1);
        waiting.await.expect("socket");
        assert_eq!(fake.requests.lock().expect("not poisoned").len(), before + 2, "asked for once more");
    }

    #[tokio::test]
    async fn a_forgotten_pod_holds_nothing() {
        let (mint, _fake, _tasks) = mint();
        for _ in 0..10 {
            take(&mint).await.expect("socket");
        }
        mint.forget(1);
        assert_eq!(mint.inner.metrics.plain.mint_stock.get(), 0);
        assert!(mint.inner.lock().is_empty());
    }
}

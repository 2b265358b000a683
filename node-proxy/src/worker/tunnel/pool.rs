//! The tunnels of one thread, found by key.
//!
//! No lock is held across a dial or a handshake. Whoever needs a tunnel that is not there makes it; others with the same key
//! wait for that one, up to as many as it can carry, and the next makes another at the same time. When the maker goes away
//! half-way, one of those who wait takes over with its own dial.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mesh_daemon::tasks;
use mesh_model::Reason;
use serde::Serialize;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};

use super::client::{NotOpened, Tunnel, establish};
use super::settings::*;
use super::shared::{Open, Shared};
use super::stream::Stream;
use super::{ConnectRequest, DialError, OpenError, TunnelKey};
use crate::worker::certs::Credentials;
use crate::worker::metrics::{Metrics, Side, Work};

/// The tunnels of one thread. Clones share them.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Arc<Inner>,
}

/// One tunnel, for the admin socket.
#[derive(Clone, Debug, Serialize)]
pub struct TunnelState {
    /// The source pod.
    pub slot: u32,
    /// Whose certificate is shown.
    pub source: String,
    /// The peer.
    pub destination: SocketAddr,
    /// Open streams.
    pub streams: usize,
    /// Streams ever opened.
    pub opened: u64,
}

#[derive(Debug)]
struct Inner {
    tasks: tasks::Handle,
    metrics: Arc<Metrics>,
    connect_timeout: Duration,
    keys: Mutex<HashMap<TunnelKey, Entry>>,
    next_dial: AtomicU64,
    handshakes: AtomicU64,
}

#[derive(Debug, Default)]
struct Entry {
    tunnels: Vec<Arc<Tunnel>>,
    dials: Vec<Dial>,
}

/// One tunnel in the making.
#[derive(Debug)]
struct Dial {
    id: u64,
    /// How many connections count on it, its maker included.
    promised: usize,
    done: watch::Receiver<Made>,
}

#[derive(Clone, Debug)]
enum Made {
    Pending,
    Ready,
    Failed(OpenError),
}

/// What to do for one connection.
enum Turn {
    Use(Arc<Tunnel>, Open),
    Wait(watch::Receiver<Made>),
    Make(Maker),
}

/// Whoever makes a tunnel; dropping it half-way lets others take over.
struct Maker {
    inner: Arc<Inner>,
    key: TunnelKey,
    id: u64,
    done: watch::Sender<Made>,
}

impl Pool {
    /// An empty pool whose connection tasks live in the group behind `tasks`, on the thread that calls [`Pool::open`].
    pub fn new(tasks: tasks::Handle, metrics: Arc<Metrics>, connect_timeout: Duration) -> Self {
        let (keys, next_dial, handshakes) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
        Self { inner: Arc::new(Inner { tasks, metrics, connect_timeout, keys, next_dial, handshakes }) }
    }

    /// A stream to `request.authority` through a tunnel of this key. `dial` makes the TCP connection and is polled only when a
    /// new tunnel is needed; it has the time for a connect, TLS and HTTP/2 another 10 s, the answer to the CONNECT the time for a
    /// connect at the far side and 5 s.
    pub async fn open<D>(
        &self,
        key: TunnelKey,
        request: ConnectRequest,
        credentials: Arc<Credentials>,
        dial: D,
    ) -> Result<Stream, OpenError>
    where
        D: Future<Output = Result<TcpStream, DialError>> + Send,
    {
        let to = key.destination;
        let mut dial = Some(dial);
        let mut attempts = 0;
        let mut last = None;
        while attempts < ATTEMPTS {
            let (tunnel, open) = match self.turn(&key) {
                Turn::Use(tunnel, open) => (tunnel, open),
                Turn::Wait(mut done) => {
                    // The maker has deadlines of its own, and one that goes away drops the sender.
                    match done.wait_for(|made| !matches!(made, Made::Pending)).await.as_deref() {
                        Ok(Made::Failed(error)) => return Err(error.clone()),
                        Ok(_) | Err(_) => continue,
                    }
                }
                Turn::Make(maker) => {
                    let Some(dial) = dial.take() else { break };
                    // The rare branch is boxed: most connections find a tunnel, and their future should stay small.
                    match Box::pin(maker.make(dial, &credentials)).await {
                        Ok(Some(made)) => made,
                        // Taken by others in the meantime, or the peer allows no streams.
                        Ok(None) => {
                            attempts += 1;
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            attempts += 1;
            match tunnel.connect(&request, open, self.inner.connect_timeout + ANSWER_BEYOND).await {
                Ok(stream) => return Ok(stream),
                Err(NotOpened::Failed(error)) => {
                    return Err(error);
                }
                Err(NotOpened::Unprocessed(error)) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| OpenError::Closed { to, message: "no tunnel had room".to_owned() }))
    }

    /// The pod of this slot is gone: its tunnels end now, connections on them with `TunnelClosed`.
    pub fn drop_slot(&self, slot: u32) {
        self.inner.cut(|key| key.slot == slot);
    }

    /// The peer at this address is gone or is another one now: tunnels to it end now.
    #[cfg_attr(not(test), expect(dead_code, reason = "for workloads that left, once threads are told of them"))]
    pub fn drop_peer(&self, ip: IpAddr) {
        self.inner.cut(|key| key.destination.ip() == ip);
    }

    /// How many tunnels were set up successfully so far.
    #[cfg(test)]
    pub fn handshakes(&self) -> u64 {
        self.inner.handshakes.load(Ordering::Relaxed)
    }

    /// The live tunnels, for the admin socket.
    pub fn state(&self) -> Vec<TunnelState> {
        let keys = self.inner.lock();
        let mut out: Vec<TunnelState> = keys
            .iter()
            .flat_map(|(key, entry)| {
                entry.tunnels.iter().filter(|tunnel| !tunnel.shared.is_gone()).map(|tunnel| TunnelState {
                    slot: key.slot,
                    source: key.source.to_string(),
                    destination: key.destination,
                    streams: tunnel.shared.streams(),
                    opened: tunnel.shared.opened(),
                })
            })
            .collect();
        out.sort_by(|a, b| (a.slot, a.destination, &a.source).cmp(&(b.slot, b.destination, &b.source)));
        out
    }

    /// Whether a connection of this key would need a new tunnel.
    #[cfg(test)]
    pub(super) fn turn_is_new(&self, key: &TunnelKey) -> bool {
        matches!(self.turn(key), Turn::Make(_))
    }

    /// Finds what this connection should do, and counts it in.
    fn turn(&self, key: &TunnelKey) -> Turn {
        let mut keys = self.inner.lock();
        if !keys.contains_key(key) {
            keys.insert(key.clone(), Entry::default());
        }
        let entry = keys.get_mut(key).expect("inserted above under the same lock");
        entry.tunnels.retain(|tunnel| !tunnel.shared.is_gone());
        // The first with room, so that as few tunnels as possible are kept alive.
        if let Some((tunnel, open)) = entry.tunnels.iter().find_map(|tunnel| Some((tunnel.clone(), tunnel.reserve()?)))
        {
            return Turn::Use(tunnel, open);
        }
        if let Some(dial) = entry.dials.iter_mut().find(|dial| dial.promised < STREAMS_USED) {
            dial.promised += 1;
            return Turn::Wait(dial.done.clone());
        }
        let id = self.inner.next_dial.fetch_add(1, Ordering::Relaxed);
        let (done, watching) = watch::channel(Made::Pending);
        entry.dials.push(Dial { id, promised: 1, done: watching });
        Turn::Make(Maker { inner: self.inner.clone(), key: key.clone(), id, done })
    }
}

impl Maker {
    /// Makes the tunnel, puts it into the pool and reserves the maker's own place on it.
    async fn make<D>(self, dial: D, credentials: &Credentials) -> Result<Option<(Arc<Tunnel>, Open)>, OpenError>
    where
        D: Future<Output = Result<TcpStream, DialError>> + Send,
    {
        let to = self.key.destination;
        let made = match self.dialled(dial).await {
            Ok(tcp) => establish(tcp, to, &self.key.accepted, credentials).await,
            Err(error) => Err(OpenError::Dial { to, error }),
        };
        let (tunnel, driver) = match made {
            Ok(made) => made,
            Err(error) => {
                if let OpenError::Handshake { reason, .. } = &error {
                    self.inner.metrics.events().handshake_failed(Side::Client, *reason);
                }
                self.done.send_replace(Made::Failed(error.clone()));
                return Err(error);
            }
        };
        let counted = self.inner.metrics.events().tunnel(Side::Client);
        let tunnel = Arc::new(tunnel);
        let open = tunnel.reserve();
        let closed = |why: &str| OpenError::Closed { to, message: why.to_owned() };
        {
            let mut keys = self.inner.lock();
            let entry = keys.get_mut(&self.key).filter(|entry| entry.dials.iter().any(|dial| dial.id == self.id));
            let Some(entry) = entry else { return Err(closed("the pod or the peer went away during set-up")) };
            entry.dials.retain(|dial| dial.id != self.id);
            entry.tunnels.push(tunnel.clone());
        }
        self.inner.handshakes.fetch_add(1, Ordering::Relaxed);
        let owned = own(driver, Arc::downgrade(&self.inner), self.key.clone(), tunnel.shared.clone());
        let owned = async move {
            owned.await;
            drop(counted);
        };
        let started = match self.inner.metrics.pod_at(self.key.slot) {
            Some(meter) => self.inner.tasks.spawn("tunnel", Work::new(meter, Box::pin(owned))),
            None => self.inner.tasks.spawn("tunnel", owned),
        };
        if !started {
            return Err(closed("the proxy is going away"));
        }
        self.done.send_replace(Made::Ready);
        Ok(open.map(|open| (tunnel, open)))
    }

    async fn dialled<D>(&self, dial: D) -> Result<TcpStream, DialError>
    where
        D: Future<Output = Result<TcpStream, DialError>> + Send,
    {
        let deadline = self.inner.connect_timeout;
        let tcp = timeout(deadline, dial).await.map_err(|_| {
            DialError::new(
                Reason::ConnectTimeout,
                format!("no answer within {} s; does a NetworkPolicy forbid port 15008?", deadline.as_secs()),
            )
        })??;
        prepare(&tcp);
        Ok(tcp)
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let mut keys = self.inner.lock();
        if let Some(entry) = keys.get_mut(&self.key) {
            entry.dials.retain(|dial| dial.id != self.id);
            if entry.is_empty() {
                keys.remove(&self.key);
            }
        }
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.tunnels.is_empty() && self.dials.is_empty()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<TunnelKey, Entry>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the tunnels whose key is meant, those in the making included.
    fn cut(&self, meant: impl Fn(&TunnelKey) -> bool) {
        self.lock().retain(|key, entry| {
            let goes = meant(key);
            if goes {
                for tunnel in &entry.tunnels {
                    tunnel.shared.retire();
                    tunnel.shared.kill.notify_one();
                }
            }
            !goes
        });
    }

    /// Takes one tunnel out; its connection ends with its last stream.
    fn release(&self, key: &TunnelKey, shared: &Arc<Shared>, still: impl Fn(&Shared) -> bool) {
        let mut keys = self.lock();
        if let Some(entry) = keys.get_mut(key) {
            entry.tunnels.retain(|tunnel| !(Arc::ptr_eq(&tunnel.shared, shared) && still(shared)));
            if entry.is_empty() {
                keys.remove(key);
            }
        }
    }
}

/// The task of one tunnel: drives it, lets it go when it has been idle, takes it out of the pool when it ended.
async fn own(driver: impl Future<Output = ()> + Send, pool: Weak<Inner>, key: TunnelKey, shared: Arc<Shared>) {
    let mut driver = pin!(driver);
    let mut check = tokio::time::interval(IDLE_CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let idle = |shared: &Shared| shared.idle_since().is_some_and(|since| since.elapsed() >= IDLE_RELEASE);
    loop {
        // Both may be dropped half-way: the driver is only borrowed, a tick is only a look.
        tokio::select! {
            () = &mut driver => break,
            _ = check.tick() => {
                // One that takes no more streams is kept here by nobody; it ends with its last.
                let leaves = |shared: &Shared| shared.is_gone() || idle(shared);
                if leaves(&shared) && let Some(pool) = pool.upgrade() {
                    // Looked at again under the pool's lock, where places are given out.
                    pool.release(&key, &shared, leaves);
                }
            }
        }
    }
    if let Some(pool) = pool.upgrade() {
        pool.release(&key, &shared, |_| true);
    }
}

/// What every TCP connection under a tunnel gets.
pub(super) fn prepare(tcp: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE).with_retries(9);
    let socket = SockRef::from(tcp);
    if let Err(error) = tcp.set_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive)) {
        // The tunnel works without, only slower or longer dead: PING finds a dead peer anyway.
        tracing::debug!(%error, "tunnel socket options");
    }
}

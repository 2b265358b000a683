//! From a listener to an accepted connection with its place in the budgets.
//!
//! A permit of the whole worker is had *before* accept: what cannot be served waits in the kernel's queue, where a successor finds
//! it too. A pod whose own budget is used up is refused at once, so that a greedy pod hurts itself and is named. Accept errors
//! for want of descriptors or memory are backed off from, never spun on.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesh_model::{ClientAddr, OrigDst, Reason, ports};
use mesh_net::{socket, socket_options};
use rustix::net::SocketFlags;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::caller::Caller;
use super::connection::{Connection, ConnectionId, Direction, Phase};
use super::pods::Pod;
use super::record::{Record, Refusal};
use super::threads::{Busy, Peers, Thread};

/// How long an accept loop rests when the process is out of descriptors or memory.
const REST: Duration = Duration::from_millis(100);
/// After so many looks, a rest apart, at a queue that was never empty, nobody is accepting: a second.
const ABANDONED: u32 = 10;

/// Which of the pod's three listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 15001.
    Outbound,
    /// 15006.
    Inbound,
    /// 15008.
    Tunnel,
}

impl Port {
    /// In the order in which the keeper sends them.
    pub const ALL: [Port; 3] = [Port::Outbound, Port::Inbound, Port::Tunnel];

    fn direction(self) -> Direction {
        match self {
            Port::Outbound => Direction::Outbound,
            Port::Inbound => Direction::Inbound,
            Port::Tunnel => Direction::Tunnel,
        }
    }
}

/// A connection that was accepted and belongs to no thread yet.
#[derive(Debug)]
pub struct Arrived {
    socket: OwnedFd,
    peer: SocketAddr,
    pod: Arc<Pod>,
    port: Port,
    place: Place,
    at: Instant,
}

/// Its place in the budgets; given up when dropped.
#[derive(Debug)]
pub struct Place {
    _worker: OwnedSemaphorePermit,
    _pod: OwnedSemaphorePermit,
    busy: Option<Busy>,
}

/// A connection on the thread that serves it. Made here alone.
#[derive(Debug)]
pub struct Accepted {
    caller: Caller,
    pod: Arc<Pod>,
    connection: Arc<Connection>,
    place: Place,
}

impl Arrived {
    /// As a test needs it.
    #[cfg(test)]
    pub fn of(socket: OwnedFd, peer: SocketAddr, pod: &Arc<Pod>, port: Port, place: Place) -> Self {
        Self { socket, peer, pod: pod.clone(), port, place, at: Instant::now() }
    }

    /// Where it came in.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Counts it against the thread that will serve it.
    pub fn busy(&mut self, busy: Busy) {
        self.place.busy = Some(busy);
    }

    /// Refuses it: the caller sees a reset, access log and metrics tell of it.
    pub fn refuse(self, here: &Thread, reason: Reason, cause: &str) {
        refuse(here, &self.pod, self.port, &self.socket, self.peer, Refusal::of(reason, cause));
    }

    /// Puts it on this thread. `None` when the kernel will not have it: the caller sees an end then, access log and metrics tell of it. (A
    /// reset would take two system calls of each connection that is served, and this happens where the kernel is out of memory.)
    pub fn take(self, here: &Thread) -> Option<Accepted> {
        let Arrived { socket, peer, pod, port, place, at } = self;
        let destination = destination(port, &socket);
        let connection =
            Connection::new(ConnectionId::random(), port.direction(), ClientAddr::new(peer), destination).since(at);
        let connection = Arc::new(connection);
        match TcpStream::from_std(std::net::TcpStream::from(socket)) {
            Ok(stream) => {
                connection.reached(Phase::Served);
                Some(Accepted { caller: Caller::new(stream), pod, connection, place })
            }
            Err(error) => {
                let cause = format!("an accepted socket cannot be served: {error}");
                Record::new(&here.proxy.sinks, &connection, &pod).refused(&Refusal::of(Reason::Kernel, cause));
                None
            }
        }
    }
}

impl Accepted {
    /// The pod whose listener it reached.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Its connection.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Caller, pod, connection, and the place that must be held while it is served.
    pub fn into_parts(self) -> (Caller, Arc<Pod>, Arc<Connection>, Place) {
        (self.caller, self.pod, self.connection, self.place)
    }

    /// A connection as a test needs it.
    #[cfg(test)]
    pub fn of(stream: TcpStream, pod: &Arc<Pod>, port: Port, destination: Option<OrigDst>, place: Place) -> Self {
        let client = ClientAddr::new(stream.peer_addr().expect("connected"));
        let connection = Arc::new(Connection::new(ConnectionId::random(), port.direction(), client, destination));
        Self { caller: Caller::new(stream), pod: pod.clone(), connection, place }
    }
}

#[cfg(test)]
impl Place {
    /// A place for a test.
    pub fn of(worker: OwnedSemaphorePermit, pod: OwnedSemaphorePermit) -> Self {
        Self { _worker: worker, _pod: pod, busy: None }
    }
}

/// The accept loops of one pod.
#[derive(Debug)]
pub struct Listening(mpsc::Receiver<()>);

impl Listening {
    /// Resolves when all loops have ended and their listeners are closed. Safe to drop half-way.
    pub async fn closed(&mut self) {
        // Nothing is ever sent: each loop holds a sender.
        let _ = self.0.recv().await;
    }
}

/// Registers the pod's listeners on this thread and starts accepting.
pub fn listen(
    here: &Arc<Thread>,
    peers: &Arc<Peers>,
    pod: &Arc<Pod>,
    listeners: [OwnedFd; 3],
) -> io::Result<Listening> {
    let (open, closed) = mpsc::channel(1);
    let mut registered = Vec::with_capacity(listeners.len());
    for (port, listener) in Port::ALL.into_iter().zip(listeners) {
        rustix::io::ioctl_fionbio(&listener, true)?;
        socket_options::urgent_inline(&listener)?;
        if port == Port::Inbound {
            socket_options::keepalive(&listener, here.proxy.settings.keepalive)?;
        }
        // Deprecated for types whose descriptor may change under the registration; an `OwnedFd` keeps its own for life, and the
        // replacement is `unsafe`, which only mesh-net may use.
        #[expect(deprecated, reason = "sound for OwnedFd")]
        let listener = AsyncFd::new(listener)?;
        registered.push((port, listener));
    }
    for (port, listener) in registered {
        let (here_too, peers, pod, open) = (here.clone(), peers.clone(), pod.clone(), open.clone());
        let accepting = async move {
            let (proxy, of_pod) = (here_too.proxy.clone(), pod.clone());
            proxy.lost.watched(&of_pod, port, accept_all(here_too, peers, pod, port, listener)).await;
            drop(open);
        };
        if !here.tasks.spawn("accept", accepting) {
            return Err(io::Error::other("the thread is ending"));
        }
    }
    Ok(Listening(closed))
}

/// Accepts until the pod leaves. When that is because this worker was asked to stop, it goes on with what nobody else accepts: with a
/// successor there is nothing, without one connections would wait until the drain has ended and a new worker is there.
async fn accept_all(here: Arc<Thread>, peers: Arc<Peers>, pod: Arc<Pod>, port: Port, listener: AsyncFd<OwnedFd>) {
    accept_until(pod.leaving().asked(), &here, &peers, &pod, port, &listener).await;
    if here.proxy.stopping.load(Ordering::Relaxed) {
        tokio::select! {
            biased;
            () = pod.gone() => return,
            () = abandoned(&listener) => {}
        }
        tracing::info!(pod = %pod.name(), ?port, "nobody else accepts: served until the worker ends");
        accept_until(pod.gone(), &here, &peers, &pod, port, &listener).await;
    }
}

/// Resolves when connections have waited in the listener for [`ABANDONED`] looks in a row.
async fn abandoned(listener: &AsyncFd<OwnedFd>) {
    let mut found = 0;
    while found < ABANDONED {
        tokio::time::sleep(REST).await;
        let waits = socket_options::waiting(listener.get_ref()).is_ok_and(|count| count > 0);
        found = if waits { found + 1 } else { 0 };
    }
}

async fn accept_until(
    leave: impl Future<Output = ()>,
    here: &Arc<Thread>,
    peers: &Arc<Peers>,
    pod: &Arc<Pod>,
    port: Port,
    listener: &AsyncFd<OwnedFd>,
) {
    let mut leave = std::pin::pin!(leave);
    loop {
        // Every branch may be dropped half-way: readiness and a permit not had are still there for the next. The permit is asked
        // for only when somebody waits, else the idle listeners of 200 pods would hold 600 of them.
        let mut ready = tokio::select! {
            biased;
            () = &mut leave => return,
            ready = listener.readable() => match ready {
                Ok(ready) => ready,
                Err(error) => return tracing::error!(pod = %pod.name(), ?port, %error, "listener is lost"),
            },
        };
        let permit = tokio::select! {
            biased;
            () = &mut leave => return,
            permit = here.proxy.budget.clone().acquire_owned() => match permit {
                Ok(permit) => permit,
                Err(_closed) => return,
            },
        };
        let Ok(accepted) = ready.try_io(|listener| accept(listener.get_ref())) else { continue };
        drop(ready);
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_passing(&error) => continue,
            Err(error) => {
                here.proxy.sinks.metrics.plain.accept_errors.inc();
                tracing::warn!(pod = %pod.name(), ?port, %error, "accept");
                drop(permit);
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        match pod.room() {
            Some(room) => {
                let place = Place { _worker: permit, _pod: room, busy: None };
                peers.hand(here, Arrived { socket, peer, pod: pod.clone(), port, place, at: Instant::now() });
            }
            None => {
                let cause = format!("pod {} has used up its budget of connections", pod.name());
                refuse(here, pod, port, &socket, peer, Refusal::of(Reason::Overloaded, cause));
            }
        }
    }
}

fn refuse(here: &Thread, pod: &Pod, port: Port, socket: &OwnedFd, peer: SocketAddr, refusal: Refusal) {
    // The socket is closed by whoever holds it: with this, by a reset. It can only fail when the peer is gone already.
    let _ = socket::reset_on_close(socket);
    let client = ClientAddr::new(peer);
    let destination = destination(port, socket);
    let connection = Arc::new(Connection::new(ConnectionId::random(), port.direction(), client, destination));
    Record::new(&here.proxy.sinks, &connection, pod).refused(&refusal);
}

/// Where an accepted connection wanted to go. On the way out it was steered, and has that as its own address; only rules of the release
/// before translate it to our port. Where a tunnel leads is said by its requests.
fn destination(port: Port, socket: &OwnedFd) -> Option<OrigDst> {
    match port {
        Port::Outbound => socket::steered_dst(socket)
            .filter(|to| to.port() != ports::OUTBOUND)
            .or_else(|| socket::original_dst(socket))
            .or_else(|| socket::steered_dst(socket)),
        Port::Inbound => socket::original_dst(socket),
        Port::Tunnel => None,
    }
}

fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    let peer = peer.ok_or_else(|| io::Error::other("accept gave no peer address"))?;
    let peer = SocketAddr::try_from(peer).map_err(|_| io::Error::other("the peer's address is not an IP address"))?;
    Ok((socket, peer))
}

/// accept(2): errors of the connection that was about to be accepted, not of the listener.
fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::PROTO,
        Errno::PERM,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NONET,
        Errno::NOPROTOOPT,
        Errno::OPNOTSUPP,
    ];
    error.raw_os_error().is_some_and(|code| passing.iter().any(|errno| errno.raw_os_error() == code))
}

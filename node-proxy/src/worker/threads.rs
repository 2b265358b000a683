//! One runtime per core, each on a thread of its own; everything of one connection stays on one of them.
//!
//! Measured: a connection whose hops share a thread has half the latency of one that is passed between threads. A pod's listeners
//! have a home thread, which hands each accepted socket to the thread with the fewest connections.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mesh_daemon::tasks;
use mesh_model::policy::Denied;
use mesh_model::{Mesh, Reason};
use mesh_net::diag::Diag;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::accept::{self, Arrived, Listening, Port};
use super::args::Settings;
use super::certs::Certificates;
use super::connect::Dialer;
use super::live::Waiting;
use super::lost::Lost;
use super::metrics::{self, Work};
use super::mint::Mint;
use super::pods::{Pod, Pods};
use super::probe::NodeSockets;
use super::record::{Record, Refusal, Sinks};
use super::route::Loads;
use super::tunnel::{Pool, TunnelState};
use super::xds::{Origin, Published};
use super::{buffers, inbound, outbound};

/// Jobs that may wait for a thread: sockets that were accepted and not yet taken. Beyond it they stay on their home thread.
const JOBS: usize = 1024;
/// How often a thread gives memory back.
const TRIM: Duration = Duration::from_secs(10);
/// How long a worker that has just started waits for the control plane before it says that it does not know; milliseconds if it
/// is there.
const CATCH_UP: Duration = Duration::from_secs(1);

/// Why a connection is refused that reaches a thread which is no more.
const ENDED: &str = "the thread that would have served it has ended";

/// What all threads share.
pub struct Proxy {
    /// Checked settings.
    pub settings: Settings,
    /// This node's pods.
    pub pods: Pods,
    /// The mesh.
    pub published: watch::Receiver<Arc<Published>>,
    /// Certificates of this node's identities.
    pub certificates: Certificates,
    /// Sockets in pods.
    pub mint: Mint,
    /// Access log and metrics.
    pub sinks: Sinks,
    /// Connections per endpoint.
    pub loads: Arc<Loads>,
    /// Connections of the whole worker, bounded by descriptors.
    pub budget: Arc<Semaphore>,
    /// Pods whose connections are looked at again shortly.
    pub waiting: Waiting,
    /// Asked to stop: what nobody else accepts is still served.
    pub stopping: AtomicBool,
    /// Whether an accept loop has ended that should not have.
    pub lost: Lost,
}

impl Proxy {
    /// The mesh as it is now.
    pub fn mesh(&self) -> Arc<Mesh> {
        self.published.borrow().mesh.clone()
    }

    /// Whether to judge again: nothing was known of the destination, and this worker has just started. Then the control plane has a
    /// moment to say what the last good configuration did not know yet; connections waited in the listeners' queues meanwhile.
    pub async fn knows_more(&self, denied: &Denied) -> bool {
        let live = |published: &Arc<Published>| published.origin == Origin::Live;
        if denied.reason() != Reason::PolicyUnknown || live(&self.published.borrow()) {
            return false;
        }
        let mut published = self.published.clone();
        tokio::time::timeout(CATCH_UP, published.wait_for(live)).await.is_ok_and(|live| live.is_ok())
    }
}

/// What a connection finds on its thread.
pub struct Thread {
    /// Shared with the other threads.
    pub proxy: Arc<Proxy>,
    /// What it connects with.
    pub dialer: Dialer,
    /// The kernel's answer about the node's sockets.
    pub sockets: NodeSockets,
    /// Owner of this thread's connections.
    pub tasks: tasks::Handle,
}

impl Thread {
    /// Serves an accepted connection on this thread.
    pub fn serve(self: &Arc<Self>, arrived: Arrived) {
        let here = self.clone();
        let port = arrived.port();
        let Some(accepted) = arrived.take(self) else { return };
        let (pod, connection) = (accepted.pod().clone(), accepted.connection().clone());
        let meter = pod.meter().clone();
        let started = match port {
            Port::Outbound => self.tasks.spawn("outbound", Work::new(meter, Box::pin(outbound::serve(accepted, here)))),
            Port::Inbound => self.tasks.spawn("inbound", Work::new(meter, Box::pin(inbound::serve(accepted, here)))),
            Port::Tunnel => {
                self.tasks.spawn("tunnel", Work::new(meter, Box::pin(inbound::serve_tunnel(accepted, here))))
            }
        };
        // The thread has ended: the caller was reset with the task that was not started.
        if !started {
            Record::new(&self.proxy.sinks, &connection, &pod).refused(&Refusal::of(Reason::Draining, ENDED));
        }
    }
}

/// Something for one thread to do.
pub enum Job {
    /// Accept on these listeners; answered when they are registered.
    Listen(Arc<Pod>, [OwnedFd; 3], oneshot::Sender<std::io::Result<Listening>>),
    /// Serve this connection.
    Serve(Arrived),
    /// The pod is gone: its tunnels are not used any more.
    Forget(u32),
    /// A sock_diag socket of its own.
    Diag(Diag),
    /// Come to an end.
    End,
    /// Which tunnels are there?
    Tunnels(oneshot::Sender<Vec<TunnelState>>),
}

/// Counts a connection against its thread until dropped.
#[derive(Debug)]
pub struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn on(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(load.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Worker {
    jobs: mpsc::Sender<Job>,
    load: Arc<AtomicUsize>,
}

/// The threads as others see them.
#[derive(Clone)]
pub struct Threads {
    workers: Arc<Vec<Worker>>,
}

/// Joined at the end of the process, after [`Threads::end`].
pub struct Joining(Vec<std::thread::JoinHandle<()>>);

impl Threads {
    /// Starts `proxy.settings.threads` of them.
    pub fn start(proxy: &Arc<Proxy>) -> std::io::Result<(Self, Joining)> {
        let (mut workers, mut queues) = (Vec::new(), Vec::new());
        for _ in 0..proxy.settings.threads {
            let (jobs, queue) = mpsc::channel(JOBS);
            workers.push(Worker { jobs, load: Arc::default() });
            queues.push(queue);
        }
        let threads = Self { workers: Arc::new(workers) };
        let mut joining = Vec::new();
        for (index, queue) in queues.into_iter().enumerate() {
            let (proxy, peers) = (proxy.clone(), threads.downgrade(index));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                metrics::enter(index);
                runtime.block_on(run(proxy, peers, queue));
            })?;
            joining.push(thread);
        }
        Ok((threads, Joining(joining)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Has the pod's home thread accept on its listeners; resolves when it does.
    pub async fn listen(&self, pod: &Arc<Pod>, listeners: [OwnedFd; 3]) -> std::io::Result<Listening> {
        let gone = || std::io::Error::other("the thread has ended");
        let home = &self.workers[pod.slot() as usize % self.workers.len()];
        let (done, registered) = oneshot::channel();
        home.jobs.send(Job::Listen(pod.clone(), listeners, done)).await.map_err(|_| gone())?;
        registered.await.map_err(|_| gone())?
    }

    /// Tells every thread that the pod is gone.
    pub async fn forget(&self, slot: u32) {
        for worker in self.workers.iter() {
            // A thread that has ended has forgotten everything.
            let _ = worker.jobs.send(Job::Forget(slot)).await;
        }
    }

    /// Gives a thread its sock_diag socket.
    pub async fn diag(&self, index: usize, diag: Diag) {
        let _ = self.workers[index % self.workers.len()].jobs.send(Job::Diag(diag)).await;
    }

    /// Asks all threads to end: what they still serve is cut.
    pub async fn end(&self) {
        for worker in self.workers.iter() {
            let _ = worker.jobs.send(Job::End).await;
        }
    }

    /// The tunnels of all threads, for admin.
    pub async fn tunnels(&self) -> Vec<TunnelState> {
        let mut all = Vec::new();
        for worker in self.workers.iter() {
            let (answer, answered) = oneshot::channel();
            if worker.jobs.send(Job::Tunnels(answer)).await.is_ok() {
                all.extend(answered.await.unwrap_or_default());
            }
        }
        all
    }

    /// Connections per thread, for admin and metrics.
    pub fn loads(&self) -> Vec<usize> {
        self.workers.iter().map(|worker| worker.load.load(Ordering::Relaxed)).collect()
    }

    fn downgrade(&self, index: usize) -> Peers {
        let workers = self.workers.iter().map(|worker| (worker.jobs.downgrade(), worker.load.clone())).collect();
        Peers { workers, own: index }
    }
}

impl Joining {
    /// Waits for the threads' end, which [`Threads::end`] has asked for.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a thread of the worker panicked");
            }
        }
    }
}

/// The threads as one of them sees them: weakly, so that none keeps another alive.
pub struct Peers {
    workers: Vec<(mpsc::WeakSender<Job>, Arc<AtomicUsize>)>,
    own: usize,
}

impl Peers {
    /// Gives the connection to the thread with the fewest, this one when it is among them.
    pub fn hand(&self, here: &Arc<Thread>, mut arrived: Arrived) {
        let load = |index: usize| self.workers[index].1.load(Ordering::Relaxed);
        let least = (0..self.workers.len()).min_by_key(|index| (load(*index), *index != self.own)).unwrap_or(self.own);
        arrived.busy(Busy::on(&self.workers[least].1));
        if least == self.own {
            return here.serve(arrived);
        }
        let arrived = match self.workers[least].0.upgrade() {
            None => arrived,
            Some(jobs) => match jobs.try_send(Job::Serve(arrived)) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(Job::Serve(arrived)))
                | Err(mpsc::error::TrySendError::Closed(Job::Serve(arrived))) => arrived,
                Err(_) => return,
            },
        };
        here.serve(arrived);
    }
}

async fn run(proxy: Arc<Proxy>, peers: Peers, mut jobs: mpsc::Receiver<Job>) {
    let connections = tasks::Group::new("connections");
    let connect_timeout = proxy.settings.connect_timeout;
    let pool = Pool::new(connections.handle(), proxy.sinks.metrics.clone(), connect_timeout);
    let here = Arc::new(Thread {
        dialer: Dialer {
            mint: proxy.mint.clone(),
            pool: pool.clone(),
            certificates: proxy.certificates.clone(),
            keepalive: proxy.settings.keepalive,
            connect_timeout,
        },
        proxy,
        sockets: NodeSockets::default(),
        tasks: connections.handle(),
    });
    let peers = Arc::new(peers);
    let mut trim = tokio::time::interval(TRIM);
    loop {
        // Both branches may be dropped half-way: neither loses anything.
        let job = tokio::select! {
            job = jobs.recv() => job,
            _ = trim.tick() => {
                buffers::trim();
                continue;
            }
        };
        match job {
            None | Some(Job::End) => break,
            Some(Job::Serve(arrived)) => here.serve(arrived),
            Some(Job::Listen(pod, listeners, done)) => {
                let _ = done.send(accept::listen(&here, &peers, &pod, listeners));
            }
            Some(Job::Forget(slot)) => pool.drop_slot(slot),
            Some(Job::Diag(diag)) => here.sockets.give(diag),
            Some(Job::Tunnels(answer)) => {
                let _ = answer.send(pool.state());
            }
        }
    }
    // What others handed over and nobody will serve: closed without a word it would look like an end of data.
    jobs.close();
    while let Ok(job) = jobs.try_recv() {
        if let Job::Serve(arrived) = job {
            arrived.refuse(&here, Reason::Draining, ENDED);
        }
    }
    drop(here);
    // Whoever could end by itself was given the time before the threads were told to end.
    connections.finish(Duration::from_millis(500)).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::super::accept::Place;
    use super::super::connection::Direction;
    use super::super::testing::{Node, World};
    use super::*;

    async fn arrived(node: &Node, pod: &Arc<Pod>) -> (TcpStream, Arrived) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (client, near) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (near, peer) = near.expect("accept");
        let socket = near.into_std().expect("deregister").into();
        let worker = node.here.proxy.budget.clone().try_acquire_owned().expect("room");
        let place = Place::of(worker, pod.room().expect("room"));
        (client.expect("connect"), Arrived::of(socket, peer, pod, Port::Outbound, place))
    }

    async fn is_refused(node: &Node, client: &mut TcpStream, so_far: u64) {
        let end = client.read(&mut [0]).await.expect_err("a reset, not an end of data");
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(node.line().await.reason, Some(Reason::Draining));
        let events = node.here.proxy.sinks.metrics.events();
        assert_eq!(events.refusals(Direction::Outbound, Reason::Draining), so_far);
    }

    #[tokio::test]
    async fn a_connection_queued_for_a_thread_that_ends_is_refused_and_told_of() {
        let world = World::new();
        let node = world.node("node-1");
        let pod = node.pod(1, "web", "127.77.40.1");
        let (mut client, queued) = arrived(&node, &pod).await;
        let (jobs, queue) = mpsc::channel(JOBS);
        assert!(jobs.send(Job::End).await.is_ok() && jobs.send(Job::Serve(queued)).await.is_ok());
        run(node.here.proxy.clone(), Peers { workers: Vec::new(), own: 0 }, queue).await;
        is_refused(&node, &mut client, 1).await;
    }

    #[tokio::test]
    async fn a_connection_for_a_thread_that_has_ended_is_refused_and_told_of() {
        let world = World::new();
        let mut node = world.node("node-1");
        let pod = node.pod(1, "web", "127.77.41.1");
        let (mut client, late) = arrived(&node, &pod).await;
        std::mem::replace(&mut node.tasks, tasks::Group::new("after")).cut().await;
        node.here.serve(late);
        is_refused(&node, &mut client, 1).await;
    }
}

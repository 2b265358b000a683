//! The worker's end of the link to the keeper: pods with their listeners come in, acknowledgements and mint requests go out.
//!
//! One reader task takes packets in order; answers to mint requests go straight to whoever asked, everything else into one queue of
//! [`Event`]s. When the link ends the queue ends: the worker then exits and its supervisor starts another, which is given
//! everything again. Nothing here keeps state about pods.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_api::link::worker::{COUNTER, FromWorker, INSPECT, LISTENERS, MAX_MINT, ToWorker};
pub use mesh_api::link::worker::{Family, Purpose};
use mesh_api::link::{self, Hello, LinkError, NodeFacts, PodFacts};
use mesh_model::Reason;
use mesh_net::diag::Diag;
use mesh_net::seqpacket::{AsyncConn, Packet};
use tokio::sync::{mpsc, oneshot, watch};

use super::xds::Floor;

/// Events that may wait for the worker. A full snapshot of a node (250 pods by Kubernetes' own limit) fits several times; beyond it
/// the reader waits, and with it the keeper.
const EVENTS: usize = 1024;
/// How long a mint request may take. The keeper answers in well under a millisecond.
const MINT_DEADLINE: Duration = Duration::from_secs(1);
/// How long the keeper may take for its greeting.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a record may wait for room in the socket.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// What the keeper says.
#[derive(Debug)]
pub enum Event {
    /// Facts of the node. The sockets are this worker's alone, one per thread; they come on the first such message if the keeper
    /// has them, else on a later one: each list adds to what came before.
    Node(NodeFacts, Vec<Diag>),
    /// Certificates that an earlier worker left: a memfd, to be checked like any input.
    Certificates(OwnedFd),
    /// Serve this pod.
    Pod {
        /// To be acknowledged.
        id: u64,
        /// The keeper's number for the pod.
        slot: u32,
        /// The pod.
        facts: PodFacts,
        /// Listeners, in the order of [`LISTENERS`].
        listeners: [OwnedFd; 3],
    },
    /// Facts of a served pod changed.
    Update {
        /// To be acknowledged.
        id: u64,
        /// The pod's slot.
        slot: u32,
        /// The pod.
        facts: PodFacts,
    },
    /// Stop serving; to be acknowledged when the listeners are closed.
    Gone {
        /// To be acknowledged.
        id: u64,
        /// The pod's slot.
        slot: u32,
        /// Whether open connections may live on up to the drain deadline.
        drain: bool,
    },
    /// All pods have been named.
    SnapshotEnd {
        /// To be acknowledged.
        id: u64,
    },
}

/// The link cannot be had, or broke.
#[derive(Debug, thiserror::Error)]
pub enum LinkDown {
    /// The socket failed.
    #[error("keeper link")]
    Io(#[from] io::Error),
    /// The far end is not the keeper.
    #[error("the process behind the keeper's socket runs as uid {uid}, not as root")]
    NotKeeper {
        /// Its uid.
        uid: u32,
    },
    /// It speaks, but not our language.
    #[error(transparent)]
    Language(#[from] LinkError),
    /// It closed before or while greeting, or said something out of order.
    #[error("keeper link: {0}")]
    Broken(&'static str),
}

/// The sending half; cheap to clone, usable from every thread. The link lives as long as one clone does.
#[derive(Clone, Debug)]
pub struct Link {
    inner: Arc<Inner>,
    _reader: Arc<Reader>,
}

#[derive(Debug)]
struct Inner {
    conn: AsyncConn,
    /// Whether the keeper keeps the counter of last good configurations.
    counts: bool,
    /// Whether it makes sockets to ask about a pod's sockets with.
    inspects: bool,
    floor: watch::Sender<Floor>,
    next: AtomicU32,
    waiting: Mutex<HashMap<u32, oneshot::Sender<Minted>>>,
}

#[derive(Debug)]
struct Minted {
    sockets: Vec<OwnedFd>,
    short: Option<Reason>,
}

/// Ends the reader with the last [`Link`].
#[derive(Debug)]
struct Reader(tokio::task::JoinHandle<()>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Dials the keeper until it is there (its container may start after ours), greets it, and starts reading. `threads` is how many
/// sock_diag sockets the worker would like; `floor` is set to what the keeper says of last good configurations, now and later.
pub async fn connect(
    path: &Path,
    threads: u8,
    floor: watch::Sender<Floor>,
) -> Result<(Link, mpsc::Receiver<Event>), LinkDown> {
    let conn = dial(path).await;
    let peer = conn.peer()?;
    if peer.uid != 0 {
        return Err(LinkDown::NotKeeper { uid: peer.uid });
    }
    let (oldest, newest) = (link::OLDEST_VERSION as u8, link::VERSION as u8);
    send(&conn, FromWorker::Hello { oldest, newest, threads }, &[]).await?;
    let greeting = tokio::time::timeout(HELLO_DEADLINE, conn.recv())
        .await
        .map_err(|_| LinkDown::Broken("no greeting in time (is another worker being served?)"))??
        .ok_or(LinkDown::Broken("closed before the greeting"))?;
    let ToWorker::Hello(hello) = link::decode::<ToWorker>("worker", &greeting.bytes)? else {
        return Err(LinkDown::Broken("first message is not a greeting"));
    };
    hello.agree()?;
    greeted(&hello);
    let (counts, inspects) = (hello.can(COUNTER), hello.can(INSPECT));
    if counts {
        send(&conn, FromWorker::Counter { counter: 0 }, &[]).await?;
    } else {
        // One of the release before, which would take the question for garbage.
        floor.send_replace(Floor::NotKept);
    }
    let inner = Arc::new(Inner { conn, counts, inspects, floor, next: AtomicU32::new(0), waiting: Mutex::default() });
    let (events, receiver) = mpsc::channel(EVENTS);
    let reading = inner.clone();
    let task = tokio::spawn(async move {
        match reading.read(&events).await {
            Ok(()) => tracing::info!("keeper closed the link"),
            Err(error) => tracing::error!(error = %describe(&error), "keeper link broke"),
        }
        // Whoever waits for sockets learns it now rather than at a deadline.
        reading.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    });
    Ok((Link { inner, _reader: Arc::new(Reader(task)) }, receiver))
}

async fn send(conn: &AsyncConn, record: FromWorker, fds: &[BorrowedFd<'_>]) -> Result<(), LinkDown> {
    tokio::time::timeout(SEND_DEADLINE, conn.send(&record.to_bytes(), fds))
        .await
        .map_err(|_| LinkDown::Broken("the keeper does not read"))?
        .map_err(LinkDown::Io)
}

fn greeted(hello: &Hello) {
    tracing::info!(keeper = hello.component, newest = hello.newest, "keeper link is up");
}

fn describe(error: &LinkDown) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

async fn dial(path: &Path) -> AsyncConn {
    let mut wait = FIRST_RETRY;
    loop {
        match AsyncConn::connect(path) {
            Ok(conn) => return conn,
            Err(error) if wait == LAST_RETRY => {
                tracing::warn!(socket = %path.display(), %error, "keeper is not there; trying on");
            }
            Err(_) => {}
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LAST_RETRY);
    }
}

impl Link {
    /// The message with this id took effect.
    pub async fn ack(&self, id: u64) -> Result<(), LinkDown> {
        self.inner.send(FromWorker::Ack { id }, &[]).await
    }

    /// The message with this id did not take effect.
    pub async fn nack(&self, id: u64, reason: Reason) -> Result<(), LinkDown> {
        self.inner.send(FromWorker::Nack { id, reason }, &[]).await
    }

    /// Sockets in the pod's namespace, 1 to [`MAX_MINT`]. At least one on success; fewer than asked when a limit was reached.
    pub async fn mint(&self, slot: u32, family: Family, purpose: Purpose, count: u8) -> Result<Vec<OwnedFd>, Reason> {
        if purpose == Purpose::Inspect && !self.inner.inspects {
            return Err(Reason::NoSocket);
        }
        let request = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let _waiting = self.inner.wait_for(request, answer);
        let count = count.clamp(1, MAX_MINT);
        let ask = async {
            let record = FromWorker::Mint { request, slot, family, purpose, count };
            self.inner.send(record, &[]).await.map_err(|_| Reason::LinkDown)?;
            answered.await.map_err(|_| Reason::LinkDown)
        };
        let minted = tokio::time::timeout(MINT_DEADLINE, ask).await.map_err(|_| Reason::NoSocket)??;
        if minted.sockets.is_empty() { Err(minted.short.unwrap_or(Reason::NoSocket)) } else { Ok(minted.sockets) }
    }

    /// A last good configuration with this counter lies on the disk.
    pub async fn written(&self, counter: u64) -> Result<(), LinkDown> {
        if !self.inner.counts {
            return Ok(());
        }
        self.inner.send(FromWorker::Counter { counter }, &[]).await
    }

    /// Leaves a memfd with the keeper for the next worker; replaces the one left before.
    pub async fn keep(&self, memfd: impl AsFd) -> Result<(), LinkDown> {
        self.inner.send(FromWorker::Keep, &[memfd.as_fd()]).await
    }
}

/// Forgets a mint request whose asker went away.
struct Waiting<'a> {
    inner: &'a Inner,
    request: u32,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.request);
    }
}

impl Inner {
    fn wait_for(&self, request: u32, answer: oneshot::Sender<Minted>) -> Waiting<'_> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(request, answer);
        Waiting { inner: self, request }
    }

    async fn send(&self, record: FromWorker, fds: &[BorrowedFd<'_>]) -> Result<(), LinkDown> {
        send(&self.conn, record, fds).await
    }

    async fn read(&self, events: &mpsc::Sender<Event>) -> Result<(), LinkDown> {
        while let Some(packet) = self.conn.recv().await? {
            if let Some(event) = self.take(packet)?
                && events.send(event).await.is_err()
            {
                // Nobody listens any more: the worker is on its way out.
                return Ok(());
            }
        }
        Ok(())
    }

    fn take(&self, packet: Packet) -> Result<Option<Event>, LinkDown> {
        let Packet { bytes, fds } = packet;
        let mut fds = fds.into_iter();
        Ok(Some(match link::decode::<ToWorker>("worker", &bytes)? {
            ToWorker::Hello(_) => return Err(LinkDown::Broken("second greeting")),
            ToWorker::Node(facts) => Event::Node(facts, fds.map(Diag::from_fd).collect()),
            ToWorker::Certificates => {
                Event::Certificates(fds.next().ok_or(LinkDown::Broken("certificates without a descriptor"))?)
            }
            ToWorker::Pod { id, slot, pod } => {
                let listeners: [OwnedFd; LISTENERS.len()] = fds
                    .collect::<Vec<_>>()
                    .try_into()
                    .map_err(|_| LinkDown::Broken("a pod without exactly its three listeners"))?;
                Event::Pod { id, slot, facts: pod, listeners }
            }
            ToWorker::Update { id, slot, pod } => Event::Update { id, slot, facts: pod },
            ToWorker::Gone { id, slot, drain } => Event::Gone { id, slot, drain },
            ToWorker::SnapshotEnd { id } => Event::SnapshotEnd { id },
            ToWorker::Counter { highest } => {
                self.floor.send_replace(Floor::Is(highest));
                return Ok(None);
            }
            ToWorker::Minted { request, short } => {
                let short = short.map(|name| name.parse().unwrap_or(Reason::NoSocket));
                let asker = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&request);
                if let Some(asker) = asker {
                    // An asker that gave up drops the sockets with the answer.
                    let _ = asker.send(Minted { sockets: fds.collect(), short });
                }
                return Ok(None);
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_net::seqpacket::AsyncListener;

    /// A keeper that greets and then does as it is told.
    async fn pair() -> (AsyncConn, Link, mpsc::Receiver<Event>, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("keeper.sock");
        let listener = AsyncListener::bind(&path, 0o600).expect("bind");
        let keeper = async {
            let conn = listener.accept().await.expect("accept");
            let hello = conn.recv().await.expect("recv").expect("open");
            assert_eq!(
                FromWorker::from_bytes(&hello.bytes),
                Ok(FromWorker::Hello { oldest: 1, newest: 1, threads: 2 })
            );
            conn.send(&link::encode(&ToWorker::Hello(Hello::of("keeper"))), &[]).await.expect("send");
            conn
        };
        let (keeper, worker) = tokio::join!(keeper, connect(&path, 2, watch::Sender::new(Floor::Unknown)));
        let (link, events) = worker.expect("link");
        (keeper, link, events, dir)
    }

    #[tokio::test]
    async fn an_asker_gets_its_own_sockets_and_events_stay_in_order() {
        let (keeper, link, mut events, _dir) = pair().await;
        let null = std::fs::File::open("/dev/null").expect("null");
        let answer = async {
            let mut asked = Vec::new();
            for _ in 0..2 {
                let packet = keeper.recv().await.expect("recv").expect("open");
                let Ok(FromWorker::Mint { request, slot, .. }) = FromWorker::from_bytes(&packet.bytes) else {
                    panic!("{packet:?}")
                };
                asked.push((request, slot));
            }
            keeper.send(&link::encode(&ToWorker::SnapshotEnd { id: 7 }), &[]).await.expect("send");
            for (request, slot) in asked.into_iter().rev() {
                let fds = vec![null.as_fd(); slot as usize];
                let short = (slot == 0).then(|| "Overloaded".to_owned());
                keeper.send(&link::encode(&ToWorker::Minted { request, short }), &fds).await.expect("send");
            }
        };
        let (some, none, ()) = tokio::join!(
            link.mint(3, Family::V4, Purpose::TowardsPeer, 3),
            link.mint(0, Family::V6, Purpose::TowardsApp, 1),
            answer
        );
        assert_eq!(some.map(|sockets| sockets.len()), Ok(3));
        assert_eq!(none.map(|_| ()), Err(Reason::Overloaded));
        assert!(matches!(events.recv().await, Some(Event::SnapshotEnd { id: 7 })));
    }

    /// A keeper of the release before cuts the link at a record that it does not know.
    #[tokio::test]
    async fn a_keeper_that_keeps_no_counter_is_neither_asked_nor_told() {
        let (keeper, link, _events, _dir) = pair().await;
        assert_eq!(*link.inner.floor.borrow(), Floor::NotKept);
        link.written(7).await.expect("nothing to do");
        link.ack(1).await.expect("sent");
        let packet = keeper.recv().await.expect("recv").expect("open");
        assert_eq!(FromWorker::from_bytes(&packet.bytes), Ok(FromWorker::Ack { id: 1 }));
    }

    #[tokio::test]
    async fn a_keeper_that_keeps_the_counter_is_asked_first_of_all_and_told_of_each_file() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("keeper.sock");
        let listener = AsyncListener::bind(&path, 0o600).expect("bind");
        let floor = watch::Sender::new(Floor::Unknown);
        let mut said = floor.subscribe();
        let keeper = async {
            let conn = listener.accept().await.expect("accept");
            conn.recv().await.expect("recv").expect("open");
            let hello = Hello::of("keeper").with(COUNTER);
            conn.send(&link::encode(&ToWorker::Hello(hello)), &[]).await.expect("send");
            conn
        };
        let (keeper, worker) = tokio::join!(keeper, connect(&path, 2, floor));
        let (link, _events) = worker.expect("link");
        let next = async || FromWorker::from_bytes(&keeper.recv().await.expect("recv").expect("open").bytes);
        assert_eq!(next().await, Ok(FromWorker::Counter { counter: 0 }));
        for highest in [7, 9] {
            keeper.send(&link::encode(&ToWorker::Counter { highest }), &[]).await.expect("send");
            said.wait_for(|floor| *floor == Floor::Is(highest)).await.expect("the link lives");
        }
        link.written(10).await.expect("sent");
        assert_eq!(next().await, Ok(FromWorker::Counter { counter: 10 }));
    }

    #[tokio::test]
    async fn a_broken_link_ends_the_events_and_those_who_wait() {
        let (keeper, link, mut events, _dir) = pair().await;
        let (minted, ()) = tokio::join!(link.mint(1, Family::V4, Purpose::TowardsApp, 1), async {
            keeper.recv().await.expect("recv").expect("open");
            drop(keeper);
        });
        assert_eq!(minted.map(|_| ()), Err(Reason::LinkDown));
        assert!(events.recv().await.is_none());
        assert!(link.ack(1).await.is_err());
    }

    #[tokio::test]
    async fn a_pod_without_its_three_listeners_breaks_the_link() {
        let (keeper, _link, mut events, _dir) = pair().await;
        let facts = r#"{"pod":{"id":1,"slot":1,"pod":{"uid":"u","namespace":"n","name":"p","service_account":"s","addresses":[],"mark":1,"probe_ports":[]}}}"#;
        let null = std::fs::File::open("/dev/null").expect("null");
        keeper.send(facts.as_bytes(), &[null.as_fd(), null.as_fd()]).await.expect("send");
        assert!(events.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_keeper_that_does_not_answer_costs_a_deadline_and_leaves_nothing_behind() {
        let (_keeper, link, _events, _dir) = pair().await;
        assert_eq!(link.mint(1, Family::V4, Purpose::TowardsApp, 1).await.map(|_| ()), Err(Reason::NoSocket));
        assert!(link.inner.waiting.lock().expect("lock").is_empty());
    }
}

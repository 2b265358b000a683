//! The keeper link's server: accepts keepers, greets them, passes messages both ways. What is said is decided by the node.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::link::proxy::{FromKeeper, HANDOVER, KeeperStats, OWNED, Refused, STATS, ToKeeper};
use mesh_api::link::worker::COUNTER;
use mesh_api::link::{self, Hello};
use mesh_daemon::{drain, tasks};
use mesh_net::diag::Diag;
use mesh_net::seqpacket::{AsyncConn, AsyncListener};
use tokio::sync::mpsc;

use crate::counter::Counter;
use crate::enrol::KeeperId;
use crate::metrics::Metrics;
use crate::metrics::labels::Link;
use crate::node::{Input, Inputs};

/// Messages that wait for a keeper: a snapshot of 250 pods and its deltas. A keeper that leaves more unread is cut off and starts
/// again with a snapshot.
const QUEUE: usize = 1024;
/// A greeting, and any one packet, takes no longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most sock_diag sockets on one message.
const DIAGS: u8 = 16;

/// A message and the descriptor it carries.
#[derive(Debug)]
pub struct Outgoing {
    /// The message.
    pub message: ToKeeper,
    /// With it.
    pub fds: Vec<OwnedFd>,
}

/// The node's end of one keeper. Dropping it ends the connection.
#[derive(Clone, Debug)]
pub struct KeeperHandle {
    /// Its process, as we see it.
    pub pid: i32,
    /// Whether it takes part in a hand-over.
    pub hands_over: bool,
    /// Whether its worker takes connections that no rule translates.
    pub owns_packets: bool,
    queue: mpsc::Sender<Outgoing>,
}

impl KeeperHandle {
    /// Queues a message; `false` when the keeper does not keep up or is gone.
    pub fn send(&self, message: ToKeeper, fds: Vec<OwnedFd>) -> bool {
        self.queue.try_send(Outgoing { message, fds }).is_ok()
    }
}

/// Accepts until the drain is asked for.
pub async fn serve(
    listener: AsyncListener,
    inputs: Inputs,
    metrics: Metrics,
    counter: Counter,
    group: tasks::Handle,
    stop: drain::Watch,
) {
    let mut next: KeeperId = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.asked() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(conn) => {
                next += 1;
                let (inputs, metrics, stop, keeper) = (inputs.clone(), metrics.clone(), stop.clone(), next);
                let counter = counter.clone();
                group.spawn("keeper", async move {
                    let ended = converse(conn, keeper, &inputs, &metrics, &counter, stop).await;
                    metrics.of_keepers.gone(keeper);
                    if let Err(error) = ended {
                        metrics.link_error(Link::Keeper);
                        tracing::warn!(keeper, error, "keeper link");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept on the keeper socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(
    conn: AsyncConn,
    keeper: KeeperId,
    inputs: &Inputs,
    metrics: &Metrics,
    counter: &Counter,
    stop: drain::Watch,
) -> Result<(), String> {
    let peer = conn.peer().map_err(|error| format!("credentials: {error}"))?;
    // Keepers are root in their pod; nobody else is handed a netns.
    if peer.uid != 0 {
        return Err(format!("uid {} is not root", peer.uid));
    }
    let hello = tokio::time::timeout(PATIENCE, async {
        let hello = Hello::of("pod-watcher").with(STATS).with(HANDOVER).with(COUNTER).with(OWNED);
        send(&conn, &ToKeeper::Hello(hello), &[]).await?;
        receive(&conn).await?.ok_or_else(|| "closed before it greeted".to_owned())
    });
    let (hands_over, owns_packets, counts) = match hello.await.map_err(|_| "did not greet in time".to_owned())?? {
        FromKeeper::Hello(hello) => {
            hello.agree().map_err(|error| error.to_string())?;
            (hello.can(HANDOVER), hello.can(OWNED), hello.can(COUNTER))
        }
        other => return Err(format!("spoke before it greeted: {other:?}")),
    };
    let (queue, waiting) = mpsc::channel(QUEUE);
    // Only the node holds the queue: when it lets go, the link ends.
    let back = queue.downgrade();
    let handle = KeeperHandle { pid: peer.pid, hands_over, owns_packets, queue };
    inputs.send(Input::KeeperUp { keeper, handle }).await;
    let conn = Arc::new(conn);
    let ended = tokio::select! {
        biased;
        () = stop.asked() => Ok(()),
        ended = write(&conn, waiting) => ended,
        ended = tell(counter, &back), if counts => ended,
        ended = read(&conn, keeper, inputs, &back, counter, |stats| metrics.of_keepers.report(keeper, peer.pid, stats)) => ended,
    };
    inputs.send(Input::KeeperDown { keeper }).await;
    ended
}

async fn write(conn: &AsyncConn, mut waiting: mpsc::Receiver<Outgoing>) -> Result<(), String> {
    while let Some(Outgoing { message, fds }) = waiting.recv().await {
        let sent = tokio::time::timeout(PATIENCE, send(conn, &message, &fds)).await;
        sent.map_err(|_| "does not take packets".to_owned())??;
    }
    Err("cut off by pod-watcher".to_owned())
}

/// The highest counter of a last good configuration, at once and whenever it rises. Dropped at any point: the next keeper is told anew.
async fn tell(counter: &Counter, queue: &mpsc::WeakSender<Outgoing>) -> Result<(), String> {
    let mut highest = counter.follow();
    loop {
        let message = ToKeeper::Counter { highest: *highest.borrow_and_update() };
        if let Some(queue) = queue.upgrade() {
            queue.try_send(Outgoing { message, fds: Vec::new() }).map_err(|_| "does not keep up".to_owned())?;
        }
        if highest.changed().await.is_err() {
            return Ok(());
        }
    }
}

async fn read(
    conn: &AsyncConn,
    keeper: KeeperId,
    inputs: &Inputs,
    queue: &mpsc::WeakSender<Outgoing>,
    counter: &Counter,
    stats: impl Fn(KeeperStats),
) -> Result<(), String> {
    loop {
        match receive(conn).await? {
            None => return Ok(()),
            Some(FromKeeper::Ack { id, refused }) => inputs.send(Input::KeeperAnswer { keeper, id, refused }).await,
            Some(FromKeeper::Leaving) => inputs.send(Input::KeeperLeaving { keeper }).await,
            Some(FromKeeper::WantDiag { count }) => {
                let fds = diags(count.min(DIAGS));
                if let Some(queue) = queue.upgrade().filter(|_| !fds.is_empty()) {
                    queue
                        .try_send(Outgoing { message: ToKeeper::Diag, fds })
                        .map_err(|_| "does not keep up".to_owned())?;
                }
            }
            Some(FromKeeper::Counter { highest }) => counter.seen(highest),
            Some(FromKeeper::Stats(said)) => stats(said),
            Some(FromKeeper::Hello(_)) => return Err("greeted twice".to_owned()),
        }
    }
}

/// Opened here, in the node's netns: that is the point of them.
fn diags(count: u8) -> Vec<OwnedFd> {
    let opened: std::io::Result<Vec<OwnedFd>> = (0..count).map(|_| Diag::open().map(Diag::into_fd)).collect();
    opened.unwrap_or_else(|error| {
        tracing::warn!(%error, "sock_diag sockets for a keeper");
        Vec::new()
    })
}

async fn send(conn: &AsyncConn, message: &ToKeeper, fds: &[OwnedFd]) -> Result<(), String> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    conn.send(&link::encode(message), &borrowed).await.map_err(|error| format!("send: {error}"))
}

async fn receive(conn: &AsyncConn) -> Result<Option<FromKeeper>, String> {
    let Some(packet) = conn.recv().await.map_err(|error| format!("receive: {error}"))? else { return Ok(None) };
    link::decode("proxy", &packet.bytes).map(Some).map_err(|error| mesh_daemon::causes(&error))
}

/// A refusal in the words of the state machine.
pub fn failure(refused: Refused) -> crate::enrol::Failure {
    let reason = refused.reason.parse().unwrap_or(mesh_model::Reason::Internal);
    let next = match reason {
        mesh_model::Reason::Conflict => {
            "the app must not listen on 15001, 15006 or 15008; or label the pod culvert.io/mesh: disabled"
        }
        _ => "look at the node-proxy pod of this node",
    };
    crate::enrol::Failure { reason, message: refused.message, next }
}

//! The CNI plugin's server: one request and one answer per connection. Only root is answered.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::link::cni::{CniFailure, FromWatcher, ToWatcher};
use mesh_api::link::{self, Hello};
use mesh_daemon::{drain, tasks};
use mesh_model::Reason;
use mesh_net::Netns;
use mesh_net::seqpacket::{AsyncConn, AsyncListener};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::metrics::labels::Link;
use crate::node::{Input, Inputs};

/// Calls at a time; more wait in the listen backlog. kubelet starts pods in parallel, a full node has 250.
const CALLS: usize = 256;
/// The plugin says what it wants as soon as it is connected.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest work on one call: the record's five seconds and the enrolment's eight, and under the plugin's own fifteen.
const ANSWER: Duration = Duration::from_secs(14);

/// A request with what came with it.
#[derive(Debug)]
pub struct Call {
    /// When it was read.
    pub since: Instant,
    /// The request.
    pub request: ToWatcher,
    /// The pod's netns, of ADD and CHECK.
    pub netns: Option<Netns>,
    /// Where the answer goes; a dropped one is answered with an error.
    pub reply: oneshot::Sender<FromWatcher>,
}

/// Accepts until the drain is asked for.
pub async fn serve(
    listener: AsyncListener,
    inputs: Inputs,
    metrics: Metrics,
    group: tasks::Handle,
    stop: drain::Watch,
) {
    let calls = Arc::new(Semaphore::new(CALLS));
    loop {
        let Ok(permit) = calls.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = stop.asked() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(conn) => {
                let (inputs, metrics) = (inputs.clone(), metrics.clone());
                group.spawn("cni call", async move {
                    let _permit = permit;
                    if let Err(error) = converse(conn, &inputs).await {
                        metrics.link_error(Link::Cni);
                        tracing::warn!(error, "CNI call");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept on the CNI socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(conn: AsyncConn, inputs: &Inputs) -> Result<(), String> {
    let peer = conn.peer().map_err(|error| format!("credentials: {error}"))?;
    if peer.uid != 0 {
        return Err(format!("uid {} is not root", peer.uid));
    }
    let (request, mut fds) =
        tokio::time::timeout(PATIENCE, request(&conn)).await.map_err(|_| "no request in time".to_owned())??;
    let wants_netns = matches!(request, ToWatcher::Add(_) | ToWatcher::Check(_));
    let answer = match (wants_netns, fds.pop(), fds.is_empty()) {
        (true, Some(fd), true) => match Netns::from_fd(fd) {
            Ok(netns) => ask(inputs, request, Some(netns)).await,
            Err(error) => {
                refused(4, Reason::Malformed, format!("CNI_NETNS: {error}"), "the runtime passes the container's netns")
            }
        },
        (false, None, _) => ask(inputs, request, None).await,
        _ => refused(
            4,
            Reason::Malformed,
            "the request carries the wrong number of descriptors".to_owned(),
            "update culvert-cni",
        ),
    };
    let sent = tokio::time::timeout(PATIENCE, conn.send(&link::encode(&answer), &[])).await;
    sent.map_err(|_| "the answer was not taken".to_owned())?.map_err(|error| format!("answer: {error}"))
}

async fn request(conn: &AsyncConn) -> Result<(ToWatcher, Vec<OwnedFd>), String> {
    let (hello, _) = receive(conn).await?;
    match hello {
        ToWatcher::Hello(hello) => hello.agree().map_err(|error| error.to_string())?,
        other => return Err(format!("spoke before it greeted: {other:?}")),
    };
    let hello = FromWatcher::Hello(Hello::of("pod-watcher"));
    conn.send(&link::encode(&hello), &[]).await.map_err(|error| format!("greeting: {error}"))?;
    receive(conn).await
}

async fn receive(conn: &AsyncConn) -> Result<(ToWatcher, Vec<OwnedFd>), String> {
    let packet = conn.recv().await.map_err(|error| format!("receive: {error}"))?;
    let packet = packet.ok_or_else(|| "closed before it asked".to_owned())?;
    let message = link::decode("cni", &packet.bytes).map_err(|error| mesh_daemon::causes(&error))?;
    Ok((message, packet.fds))
}

async fn ask(inputs: &Inputs, request: ToWatcher, netns: Option<Netns>) -> FromWatcher {
    let (reply, answer) = oneshot::channel();
    inputs.send(Input::Cni(Call { since: Instant::now(), request, netns, reply })).await;
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => {
            refused(11, Reason::Internal, "pod-watcher is stopping".to_owned(), "the runtime tries again by itself")
        }
        Err(_) => {
            refused(11, Reason::NotReady, "pod-watcher found no answer in time".to_owned(), "look at pod-watcher's log")
        }
    }
}

/// A refusal in CNI terms.
pub fn refused(code: u32, reason: Reason, msg: String, details: &str) -> FromWatcher {
    FromWatcher::Failed(CniFailure { code, msg, details: details.to_owned(), reason: reason.as_str().to_owned() })
}

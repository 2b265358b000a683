//! Delta ADS: every node's proxy keeps one stream open and is brought, and kept, up to date on it.
//!
//! What is said when is [`session`]'s; this file is the IO around it. A stream reads the newest snapshot (a `watch`) when it has
//! nothing unacknowledged, so the slowest client costs the others nothing but its own buffer of one round.

mod body;
mod session;

use std::time::Duration;

use mesh_api::xds::discovery::DeltaDiscoveryRequest;
use mesh_api::xds::{self, Answer};
use mesh_daemon::{drain, tasks};
use mesh_model::Reason;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::server::TcpConnectInfo;
use tonic::{Status, Streaming};

use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::tokens::{Caller, Tokens};
use session::{Meaning, Session};

use std::sync::Arc;

/// A round is at most three answers: one may lie in the stream's buffer while the next are handed over.
const BUFFER: usize = 3;
/// A client that takes longer to take or to acknowledge an answer is cut off; it comes back with what it has.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a client that asked for addresses alone is given to ask for policies too, so that they come first. Clients ask for
/// both at once; this is for the packets in between.
const POLICIES_FIRST: Duration = Duration::from_millis(500);

/// The one method of the service that there is.
const METHOD: &str = "DeltaAggregatedResources";
/// An acknowledgement is small; a node's list of what it has grows with the mesh (100 bytes a resource).
const LARGEST_REQUEST: usize = 64 * 1024 * 1024;

/// The service.
#[derive(Clone)]
pub struct Ads {
    /// What is served.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Who may ask.
    pub tokens: Tokens,
    /// Owner of the streams' tasks.
    pub streams: tasks::Handle,
    /// Ends the streams.
    pub drain: drain::Watch,
    /// Counts.
    pub metrics: Metrics,
}

impl Ads {
    /// Answers a request of HTTP: a stream, or why there is none. The answers are written by [`body`] and not by what is generated, which
    /// would hold the whole mesh for each stream.
    pub async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        match self.open(request).await {
            Ok(response) => response,
            Err(status) => status.into_http(),
        }
    }

    async fn open(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        // "/" service "/" method.
        if request.uri().path().splitn(3, '/').nth(2) != Some(METHOD) {
            return Err(Status::unimplemented("only delta streams are served"));
        }
        if request.headers().get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
            let mut status = Status::unimplemented("requests are not to be compressed");
            status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
            return Err(status);
        }
        let peer = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let (head, requests) = request.into_parts();
        let metadata = MetadataMap::from_headers(head.headers);
        let caller = match self.tokens.shown(&metadata) {
            Ok(token) => self.tokens.authenticate(token).await,
            Err(stranger) => Err(stranger),
        };
        let caller = caller.map_err(|stranger| {
            let reason = stranger.reason();
            self.metrics.stream_ended(reason);
            tracing::warn!(?peer, %reason, cause = %stranger, "configuration stream refused");
            stranger.status()
        })?;
        if self.drain.is_asked() {
            return Err(Status::unavailable("shutting down"));
        }
        let (answers, buffer) = mpsc::channel(BUFFER);
        let stream = Serving {
            session: Session::default(),
            caller,
            snapshots: self.snapshots,
            tokens: self.tokens,
            drain: self.drain,
            metrics: self.metrics,
            answers,
            handed: Instant::now(),
        };
        self.streams.spawn("configuration stream", stream.run(xds::requests(requests, LARGEST_REQUEST)));
        Ok(body::response(buffer))
    }
}

/// One open stream.
struct Serving {
    session: Session,
    caller: Caller,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    tokens: Tokens,
    drain: drain::Watch,
    metrics: Metrics,
    answers: mpsc::Sender<Result<Answer, Status>>,
    /// When the round that waits was begun to be handed over.
    handed: Instant,
}

/// Why a stream ends.
enum End {
    /// The client went, or the connection broke: its own affair.
    Client(String),
    /// We end it, and say so.
    Ours(Reason, Status),
}

impl Serving {
    async fn run(mut self, requests: Streaming<DeltaDiscoveryRequest>) {
        let node = self.caller.node.clone();
        self.metrics.streams.inc();
        self.metrics.streams_opened.inc();
        tracing::info!(node, "node connected");
        match self.serve(requests).await {
            End::Client(cause) => tracing::info!(node, cause, "node disconnected"),
            End::Ours(reason, status) => {
                tracing::warn!(node, %reason, cause = status.message(), "configuration stream ended");
                self.metrics.stream_ended(reason);
                // If there is no room the client is not reading, and learns it from the connection.
                let _ = self.answers.try_send(Err(status));
            }
        }
        self.metrics.streams.dec();
    }

    async fn serve(&mut self, mut requests: Streaming<DeltaDiscoveryRequest>) -> End {
        let opened = Instant::now();
        let mut sent = opened;
        loop {
            // Generation 0 is "not read yet": saying "there is nothing" would take policies away.
            let known = self.snapshots.borrow_and_update().generation > 0;
            let held = self.session.lacks_policies() && opened.elapsed() < POLICIES_FIRST;
            if known && !held && !self.session.waits() {
                if let Err(end) = self.send().await {
                    return end;
                }
                sent = Instant::now();
            }
            let waits = self.session.waits();
            // Every branch may be dropped: `message`, `changed` and `asked` are cancel-safe, the rest are timers.
            tokio::select! {
                biased;
                () = self.drain.asked() => return End::Ours(Reason::Draining, Status::unavailable("shutting down")),
                () = self.tokens.changed() => {
                    if !self.tokens.still(&self.caller).await {
                        return End::Ours(Reason::PeerUntrusted, Status::unauthenticated("not authorized"));
                    }
                }
                // Before requests: whoever sends one after the other would not be held to it.
                () = tokio::time::sleep_until(sent + PATIENCE), if waits => {
                    return End::Ours(Reason::IdleTimeout, Status::deadline_exceeded("no acknowledgement"));
                }
                request = requests.message() => match request {
                    Ok(Some(request)) => if let Err(end) = self.take(request) { return end },
                    Ok(None) => return End::Client("closed".to_owned()),
                    Err(status) => return End::Client(status.message().to_owned()),
                },
                changed = self.snapshots.changed(), if !waits => if changed.is_err() {
                    return End::Ours(Reason::Draining, Status::unavailable("shutting down"));
                },
                () = tokio::time::sleep_until(opened + POLICIES_FIRST), if held => {}
            }
        }
    }

    fn take(&mut self, request: DeltaDiscoveryRequest) -> Result<(), End> {
        let node = self.caller.node.as_str();
        match self.session.request(request) {
            Ok(Meaning::Subscribed) => tracing::debug!(node, "subscribed"),
            Ok(Meaning::Acked(of)) => {
                self.metrics.answered(of, self.handed.elapsed(), false);
                tracing::debug!(node, of = of.as_str(), "acknowledged");
            }
            Ok(Meaning::Refused { of, message }) => {
                self.metrics.answered(of, self.handed.elapsed(), true);
                tracing::warn!(node, of = of.as_str(), message, "node refused part of its configuration");
            }
            Ok(Meaning::Stale) => tracing::debug!(node, "answer to nothing that waits"),
            Err(bad) => return Err(End::Ours(Reason::BadRequest, Status::invalid_argument(bad.to_string()))),
        }
        Ok(())
    }

    /// Sends the next round, if there is anything to say.
    async fn send(&mut self) -> Result<(), End> {
        let snapshot = self.snapshots.borrow().clone();
        self.handed = Instant::now();
        for (of, answer) in self.session.round(&snapshot) {
            tracing::debug!(
                node = self.caller.node,
                of = of.as_str(),
                generation = snapshot.generation,
                resources = answer.resources.len(),
                removed = answer.head.removed_resources.len(),
                "sent"
            );
            match self.answers.send_timeout(Ok(answer), PATIENCE).await {
                Ok(()) => self.metrics.pushed(of),
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return Err(End::Client("closed".to_owned())),
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                    return Err(End::Ours(Reason::IdleTimeout, Status::deadline_exceeded("answers are not read")));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! The server's end of a tunnel: one TCP connection from accept to its end.
//!
//! Nothing here decides who may speak; a peer without a certificate of our trust domains does not get past TLS, everything else
//! is the [`Handler`]'s. Bounded: time for the handshake, streams at once, header bytes, requests taken back at once.

use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::Request;
use mesh_daemon::{drain, tasks};
use mesh_model::policy::PolicyKey;
use mesh_model::{Identity, Reason};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_rustls::TlsAcceptor;

use super::ahead::Ahead;
use super::chunk::Chunk;
use super::headers::{self, BadConnect};
use super::io::{Watched, tls_reason};
use super::settings::*;
use super::shared::{Open, Shared};
use super::stream::{Closed, Stream};
use super::{expiry, keepalive, pool};
use crate::worker::certs::Credentials;
use crate::worker::metrics::{Events, Side};

/// Decides about each request and serves it. The future is one task of the connection and lives until the stream has ended.
pub trait Handler: Send + Sync + 'static {
    /// Takes one request: [`Incoming::accept`] or [`Incoming::refuse`] it.
    fn connect(&self, request: Incoming) -> BoxFuture<'static, ()>;

    /// Where handshakes and open tunnels are counted.
    fn events(&self) -> Option<Arc<Events>> {
        None
    }
}

/// How a connection ended that was set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Who the peer was.
    pub peer: Identity,
    /// Requests that came on it.
    pub requests: u64,
    /// `None`: in good order; else what broke it.
    pub broke: Option<Reason>,
}

/// The connection was not set up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tunnel from {peer}: {message}")]
pub struct ServeError {
    /// The peer's address.
    pub peer: SocketAddr,
    /// `PeerUntrusted`, `CertificateExpired`, `HandshakeFailed` or `HandshakeTimeout`.
    pub reason: Reason,
    /// The cause.
    pub message: String,
}

impl ServeError {
    /// The one reason.
    pub fn reason(&self) -> Reason {
        self.reason
    }
}

/// Serves one accepted connection to its end. `credentials` are those of the pod whose listener accepted it. When the drain is
/// asked for, the peer gets a GOAWAY and the connection ends with its last stream; cutting it is the caller's, by dropping this.
pub async fn serve(
    tcp: TcpStream,
    peer: SocketAddr,
    credentials: Arc<Credentials>,
    handler: Arc<dyn Handler>,
    drain: drain::Watch,
) -> Result<Served, ServeError> {
    pool::prepare(&tcp);
    serve_io(tcp, peer, &credentials, handler, drain).await
}

/// [`serve`] over any byte stream.
pub(super) async fn serve_io<S>(
    io: S,
    peer: SocketAddr,
    credentials: &Credentials,
    handler: Arc<dyn Handler>,
    drain: drain::Watch,
) -> Result<Served, ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = Shared::new();
    // The handshake's state is large and short-lived.
    let hello = Box::pin(handshake(io, peer, credentials, shared.clone()));
    let done = timeout(HANDSHAKE_DEADLINE, hello).await.unwrap_or_else(|_| {
        let message = format!("handshake not done within {} s", HANDSHAKE_DEADLINE.as_secs());
        Err(ServeError { peer, reason: Reason::HandshakeTimeout, message })
    });
    let events = handler.events();
    let (identity, not_after, connection) = done.inspect_err(|error| {
        if let Some(events) = &events {
            events.handshake_failed(Side::Server, error.reason);
        }
    })?;
    let _open = events.map(|events| events.tunnel(Side::Server));
    let from = Arc::new(From { identity, peer, rapid: AtomicUsize::new(0) });
    let streams = tasks::Group::new("tunnel-streams");
    let broke = drive(connection, not_after, &shared, &from, &*handler, &streams, &drain).await;
    shared.retire();
    // The connection is dropped: every stream on it has ended with an error, and handlers see that.
    streams.finish(HANDLERS_DEADLINE).await;
    Ok(Served { peer: from.identity.clone(), requests: shared.opened(), broke })
}

/// What all requests of one connection share.
struct From {
    identity: Identity,
    peer: SocketAddr,
    /// Requests that the peer took back as soon as they came, less those that were answered.
    rapid: AtomicUsize,
}

async fn handshake<S>(
    io: S,
    peer: SocketAddr,
    credentials: &Credentials,
    shared: Arc<Shared>,
) -> Result<(Identity, SystemTime, Connection<Watched<tokio_rustls::server::TlsStream<Ahead<S>>>, Chunk>), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |reason, message: String| ServeError { peer, reason, message };
    let tls = match TlsAcceptor::from(credentials.server.clone()).accept(Ahead::new(io)).into_fallible().await {
        Ok(tls) => tls,
        Err((error, io)) => {
            linger(io).await;
            let reason = tls_reason(&error).unwrap_or(Reason::HandshakeFailed);
            return Err(failed(reason, format!("TLS: {error}")));
        }
    };
    let session = tls.get_ref().1;
    if session.alpn_protocol() != Some(mesh_tls::ALPN_H2) {
        return Err(failed(Reason::HandshakeFailed, "the peer does not speak h2".to_owned()));
    }
    let chain = session.peer_certificates().unwrap_or_default();
    let identity = mesh_tls::peer_identity(chain)
        .map_err(|error| failed(Reason::PeerUntrusted, format!("identity in the certificate: {error}")))?;
    let not_after =
        mesh_tls::peer_not_after(chain).map_err(|error| failed(Reason::PeerUntrusted, error.to_string()))?;
    let connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADERS_SERVER)
        .max_concurrent_streams(STREAMS_ADVERTISED)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAME_BUDGET)
        .max_concurrent_reset_streams(RESETS_KNOWN)
        .reset_stream_duration(RESETS_KNOWN_FOR)
        .max_pending_accept_reset_streams(RESETS_UNSEEN)
        .max_local_error_reset_streams(Some(RESET_FAULTS))
        .handshake(Watched::new(tls, shared.clone()))
        .await
        .map_err(|error| failed(shared.fault().unwrap_or(Reason::HandshakeFailed), format!("HTTP/2: {error}")))?;
    Ok((identity, not_after, connection))
}

/// Lets the alert arrive: closing a socket with unread bytes sends a RST, and that would overtake it.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut io: S) {
    let _ = timeout(Duration::from_secs(1), async {
        let mut sink = [0; 1024];
        if io.shutdown().await.is_ok() {
            // At most 64 KiB of what the peer had already sent.
            for _ in 0..64 {
                if !matches!(io.read(&mut sink).await, Ok(1..)) {
                    break;
                }
            }
        }
    })
    .await;
}

/// Runs the connection until it ends; what broke it, if something did.
async fn drive<S>(
    mut connection: Connection<S, Chunk>,
    not_after: SystemTime,
    shared: &Arc<Shared>,
    from: &Arc<From>,
    handler: &dyn Handler,
    streams: &tasks::Group,
    drain: &drain::Watch,
) -> Option<Reason>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut silent = pin!(keepalive::watch(connection.ping_pong()));
    let mut asked = pin!(drain.asked());
    let mut expired = pin!(expiry::passed(not_after));
    let (mut leaving, mut refusing) = (false, false);
    let mut window = CONNECTION_WINDOW;
    let mut check = tokio::time::interval(IDLE_CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Every branch may be dropped half-way: `accept` keeps its state in the connection, the others hold none.
        let (request, mut respond) = tokio::select! {
            biased;
            () = &mut asked, if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
                continue;
            }
            () = &mut expired, if !refusing => {
                tracing::debug!(peer = %from.peer, identity = %from.identity, "the certificate of the tunnel's peer has run out");
                (leaving, refusing) = (true, true);
                connection.graceful_shutdown();
                continue;
            }
            next = connection.accept() => match next {
                None => return None,
                Some(Ok(next)) => next,
                Some(Err(error)) => {
                    tracing::debug!(peer = %from.peer, identity = %from.identity, %error, "tunnel broke");
                    return Some(shared.fault().unwrap_or(Reason::TunnelClosed));
                }
            },
            _ = &mut silent => {
                tracing::debug!(peer = %from.peer, identity = %from.identity, "tunnel peer does not answer PING");
                return Some(Reason::TunnelClosed);
            }
            _ = check.tick() => {
                if !leaving && shared.idle_since().is_some_and(|since| since.elapsed() >= IDLE_SERVER) {
                    leaving = true;
                    connection.graceful_shutdown();
                }
                continue;
            }
        };
        if !refusing && from.rapid.load(Ordering::Relaxed) > RAPID_RESETS {
            tracing::warn!(peer = %from.peer, identity = %from.identity, "tunnel peer takes back too many requests");
            // Not cut: other callers of its pod have connections here.
            (leaving, refusing) = (true, true);
            connection.graceful_shutdown();
        }
        if refusing {
            // GOAWAY counts from the peer's acknowledgement on, which it may keep back. Nothing was done with the request: an honest
            // one brings it again in a new tunnel.
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            continue;
        }
        admit(request, respond, shared, from, handler, streams);
        let wanted = window_for(shared.streams());
        if wanted > window {
            window = wanted;
            connection.set_target_window_size(window);
        }
    }
}

/// Hands one request to the handler, in a task of its own.
fn admit(
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
    shared: &Arc<Shared>,
    from: &Arc<From>,
    handler: &dyn Handler,
    streams: &tasks::Group,
) {
    // h2 holds the peer to the streams it may have open. Ours live a little longer than the peer's view of them (a handler that
    // is still connecting when the request was taken back), so they are counted apart.
    let Some(open) = shared.reserve(2 * STREAMS_ADVERTISED as usize) else {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        return;
    };
    let (parts, body) = request.into_parts();
    let incoming = Incoming {
        peer_identity: from.identity.clone(),
        peer: from.peer,
        authority: headers::authority(&parts.method, &parts.uri),
        traceparent: headers::traceparent(&parts.headers),
        forwarded: headers::forwarded(&parts.headers),
        answer: Some(Answer { respond, body, open, from: from.clone(), at: Instant::now() }),
    };
    streams.spawn("stream", handler.connect(incoming));
}

/// One request that waits for its answer. Dropped without one it is refused with `Internal`.
pub struct Incoming {
    /// Who asks, from the certificate.
    pub peer_identity: Identity,
    /// From which address.
    pub peer: SocketAddr,
    /// What is asked for, if it is a CONNECT.
    pub authority: Result<SocketAddr, BadConnect>,
    /// The connection id of the caller, where it sent a well-formed one.
    pub traceparent: Option<String>,
    /// `forwarded`, for the log only: nothing may be decided by it.
    pub forwarded: Option<String>,
    answer: Option<Answer>,
}

struct Answer {
    respond: SendResponse<Chunk>,
    body: RecvStream,
    open: Open,
    from: Arc<From>,
    /// When it was looked at.
    at: Instant,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("peer_identity", &self.peer_identity)
            .field("peer", &self.peer)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl Incoming {
    /// Answers 200, with the baggage of the destination workload. Call it after the application was connected to.
    pub fn accept(mut self, baggage: Option<&str>) -> Result<Stream, Closed> {
        let Answer { mut respond, body, open, from, at } = self.answer.take().ok_or(Closed(Reason::Internal))?;
        match respond.send_response(headers::accepted(baggage), false) {
            Ok(send) => {
                from.answered();
                Ok(Stream::new(send, body, open))
            }
            Err(_) => {
                from.taken_back(at);
                Err(Closed(Reason::Reset))
            }
        }
    }

    /// Answers with the status of the reason, the reason itself, and the policy that said no.
    pub fn refuse(mut self, reason: Reason, policy: Option<&PolicyKey>) {
        self.refuse_now(reason, policy);
    }

    /// Resolves when the caller has taken the request back: the work for it can stop.
    pub async fn cancelled(&mut self) {
        match &mut self.answer {
            // Ok is a reset, an error the end of the connection: the same here.
            Some(answer) => drop(std::future::poll_fn(|cx| answer.respond.poll_reset(cx)).await),
            None => std::future::pending().await,
        }
    }

    fn refuse_now(&mut self, reason: Reason, policy: Option<&PolicyKey>) {
        if let Some(mut answer) = self.answer.take() {
            match answer.respond.send_response(headers::refused(reason, policy), true) {
                Ok(_) => answer.from.answered(),
                Err(_) => answer.from.taken_back(answer.at),
            }
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.refuse_now(Reason::Internal, None);
    }
}

impl From {
    fn answered(&self) {
        let _ = self.rapid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    }

    /// As whoever serves it has noticed, which is at once for those that wait for [`Incoming::cancelled`].
    fn taken_back(&self, at: Instant) {
        if at.elapsed() < RAPID {
            self.rapid.fetch_add(1, Ordering::Relaxed);
        }
    }
}

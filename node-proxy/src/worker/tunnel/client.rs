//! The client's end of one tunnel: set-up, the task that drives it, and one CONNECT on it.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use h2::client::{Connection, SendRequest};
use http::StatusCode;
use mesh_model::Reason;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::ahead::Ahead;
use super::chunk::Chunk;
use super::io::{Watched, tls_reason};
use super::settings::*;
use super::shared::{Open, Shared};
use super::stream::Stream;
use super::{ConnectRequest, OpenError, expiry, headers, keepalive};
use crate::worker::certs::Credentials;

/// One live tunnel. Dropping the last clone of its sender lets the connection end once its streams have.
#[derive(Debug)]
pub(super) struct Tunnel {
    send: SendRequest<Chunk>,
    pub(super) to: SocketAddr,
    pub(super) shared: Arc<Shared>,
}

/// Why one CONNECT did not become a stream.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// The tunnel went away and the peer did not look at the request: another tunnel may be used.
    Unprocessed(OpenError),
    /// Final.
    Failed(OpenError),
}

/// TLS and HTTP/2 over a fresh TCP connection. The second value drives the connection and must be polled for anything to happen.
pub(super) async fn establish<S>(
    tcp: S,
    to: SocketAddr,
    accepted: &[mesh_model::Identity],
    credentials: &Credentials,
) -> Result<(Tunnel, impl Future<Output = ()> + Send + 'static + use<S>), OpenError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |reason, message: String| OpenError::Handshake { to, reason, message };
    let shared = Shared::new();
    let work = async {
        let connector = TlsConnector::from(credentials.client(accepted));
        // SNI is not sent; the name only fills the parameter. The identity is compared by the configuration's verifier.
        let tls = connector
            .connect(ServerName::IpAddress(to.ip().into()), Ahead::new(tcp))
            .await
            .map_err(|error| failed(tls_reason(&error).unwrap_or(Reason::HandshakeFailed), format!("TLS: {error}")))?;
        if tls.get_ref().1.alpn_protocol() != Some(mesh_tls::ALPN_H2) {
            return Err(failed(Reason::HandshakeFailed, "the peer does not speak h2".to_owned()));
        }
        let not_after = mesh_tls::peer_not_after(tls.get_ref().1.peer_certificates().unwrap_or_default())
            .map_err(|error| failed(Reason::PeerUntrusted, error.to_string()))?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .max_header_list_size(HEADERS_CLIENT)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(SMALL_FRAME_BUDGET)
            .max_concurrent_reset_streams(RESETS_KNOWN)
            .reset_stream_duration(RESETS_KNOWN_FOR)
            .max_local_error_reset_streams(Some(RESET_FAULTS))
            .initial_max_send_streams(STREAMS_USED)
            .enable_push(false)
            .handshake(Watched::new(tls, shared.clone()))
            .await
            .map_err(|error| failed(shared.fault().unwrap_or(Reason::HandshakeFailed), format!("HTTP/2: {error}")))?;
        Ok((send, connection, not_after))
    };
    let (send, connection, not_after) = match timeout(HANDSHAKE_DEADLINE, work).await {
        Ok(result) => result?,
        Err(_) => {
            let message = format!("not done within {} s", HANDSHAKE_DEADLINE.as_secs());
            return Err(failed(Reason::HandshakeTimeout, message));
        }
    };
    let tunnel = Tunnel { send, to, shared: shared.clone() };
    Ok((tunnel, drive(connection, shared, to, not_after)))
}

/// Drives one connection to its end: frames, window growth, PING, the peer's certificate, and the order to stop.
async fn drive<S>(connection: Connection<Watched<S>, Chunk>, shared: Arc<Shared>, to: SocketAddr, not_after: SystemTime)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = connection;
    let mut silent = pin!(keepalive::watch(connection.ping_pong()));
    let mut expired = pin!(expiry::passed(not_after));
    let mut leaving = false;
    let mut window = CONNECTION_WINDOW;
    loop {
        // Every branch may be dropped half-way: the connection keeps its own state, the others hold none.
        tokio::select! {
            biased;
            () = shared.kill.notified() => {
                tracing::debug!(peer = %to, "tunnel cut");
                break;
            }
            ended = &mut connection => {
                match ended {
                    Ok(()) => tracing::debug!(peer = %to, "tunnel ended"),
                    Err(error) => tracing::debug!(peer = %to, %error, "tunnel broke"),
                }
                break;
            }
            _ = &mut silent => {
                tracing::debug!(peer = %to, "tunnel peer does not answer PING");
                break;
            }
            () = &mut expired, if !leaving => {
                tracing::debug!(peer = %to, "the certificate of the tunnel's peer has run out");
                leaving = true;
                shared.retire();
            }
            () = shared.changed.notified() => {
                let wanted = window_for(shared.streams());
                if wanted > window {
                    window = wanted;
                    connection.set_target_window_size(window);
                }
            }
        }
    }
    // Dropping the connection wakes every stream on it with an error.
    shared.retire();
}

impl Tunnel {
    /// A place for one more stream, unless the tunnel is full (ours or the peer's limit) or going away.
    pub(super) fn reserve(&self) -> Option<Open> {
        if self.is_finished() {
            self.shared.retire();
        }
        self.shared.reserve(STREAMS_USED.min(self.send.current_max_send_streams()))
    }

    /// Asks the peer for one connection.
    pub(super) async fn connect(
        &self,
        request: &ConnectRequest,
        open: Open,
        deadline: Duration,
    ) -> Result<Stream, NotOpened> {
        let to = self.to;
        let connect = headers::connect(request).map_err(NotOpened::Failed)?;
        let asked = async {
            // Waits only when the peer allows fewer streams than we have open.
            let mut send = self.send.clone().ready().await?;
            let (answer, body) = send.send_request(connect, false)?;
            Ok((answer.await?, body))
        };
        let (answer, body) = match timeout(deadline, asked).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => return Err(self.lost(&error)),
            Err(_) => return Err(NotOpened::Failed(OpenError::NoAnswer { to })),
        };
        if answer.status() != StatusCode::OK {
            let (reason, policy) = headers::refusal(answer.status(), answer.headers());
            return Err(NotOpened::Failed(OpenError::Refused { to, status: answer.status().as_u16(), reason, policy }));
        }
        Ok(Stream::new(body, answer.into_body(), open))
    }

    /// What an h2 error before the answer means.
    fn lost(&self, error: &h2::Error) -> NotOpened {
        let to = self.to;
        if let Some(reason) = self.shared.fault() {
            self.shared.retire();
            return NotOpened::Failed(OpenError::Handshake { to, reason, message: error.to_string() });
        }
        let closed = OpenError::Closed { to, message: error.to_string() };
        if error.is_reset() {
            // RFC 9113, 8.7: REFUSED_STREAM means nothing was done with the request.
            return if error.reason() == Some(h2::Reason::REFUSED_STREAM) {
                NotOpened::Unprocessed(closed)
            } else {
                NotOpened::Failed(closed)
            };
        }
        self.shared.retire();
        // RFC 9113, 6.8: streams above the last id of a GOAWAY were not and will not be processed.
        if error.is_go_away() { NotOpened::Unprocessed(closed) } else { NotOpened::Failed(closed) }
    }

    /// Whether h2 itself would refuse another stream (a GOAWAY that arrived while nobody was asking).
    fn is_finished(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.send.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }
}

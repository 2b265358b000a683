//! HBONE: one HTTP/2 CONNECT stream per connection inside mutual TLS, both sides.
//!
//! [`Pool`] opens streams to peers, [`serve`] accepts them; both hand out a [`Stream`]. Nothing outside this directory knows that
//! the `h2` crate is underneath, so that our own codec can take its place. No policy is decided here: the client side checks the
//! server's identity by the TLS configuration it is given, the server side tells the handler who the peer is.
//!
//! Certificates and live tunnels: a tunnel is not cut when a certificate is renewed, the handshake proved the peer and the keys are the
//! session's own; new tunnels use the new one. When the certificate that the peer showed runs out, the tunnel takes no new connection
//! at either end, and ends with its last one (ztunnel's go on).

mod ahead;
mod chunk;
mod client;
mod expiry;
mod headers;
mod io;
mod keepalive;
mod pool;
mod server;
mod settings;
mod shared;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use mesh_model::{Identity, Reason};

pub use headers::BadConnect;
pub use pool::{Pool, TunnelState};
pub use server::{Handler, Incoming, serve};
pub use stream::{Stream, WANTS_NO_MORE, reason_of};

/// What a tunnel may be shared by: streams with the same key travel together.
///
/// The slot is part of it because the tunnel's socket lives in the source pod's network namespace: the far application must see
/// that pod's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// The source pod.
    pub slot: u32,
    /// Whose certificate is shown.
    pub source: Identity,
    /// The peer's address, port 15008.
    pub destination: SocketAddr,
    /// The identities the peer may show; any one of them is enough.
    pub accepted: Vec<Identity>,
}

/// What is asked of the peer for one connection.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// Address and application port at the far pod.
    pub authority: SocketAddr,
    /// `00-<32 hex>-<16 hex>-00`; carries the connection id.
    pub traceparent: String,
    /// Address of the client application, for the far side's log.
    pub forwarded_for: SocketAddr,
    /// Host name of the service that was called, if one was.
    pub service_host: Option<String>,
    /// The source workload in the baggage form of ambient; left out when empty.
    pub baggage: String,
}

/// A new tunnel's TCP connection could not be made. Made by the caller, who owns the sockets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DialError {
    /// Why, for metric and log.
    pub reason: Reason,
    /// The cause with its object.
    pub message: String,
}

impl DialError {
    /// From its parts.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// No stream to the peer could be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The TCP connection failed.
    #[error("dial tunnel to {to}: {error}")]
    Dial {
        /// The peer.
        to: SocketAddr,
        /// Why.
        error: DialError,
    },
    /// TLS or HTTP/2 set-up failed, or the peer showed the wrong certificate, or refused ours.
    #[error("set up tunnel to {to}: {message}")]
    Handshake {
        /// The peer.
        to: SocketAddr,
        /// `PeerUntrusted`, `HandshakeFailed` or `HandshakeTimeout`.
        reason: Reason,
        /// The cause.
        message: String,
    },
    /// The peer answered the CONNECT with something else than 200.
    #[error("tunnel to {to} refused with status {status}: {reason}{}", policy.as_ref().map(|name| format!(" by policy {name}")).unwrap_or_default())]
    Refused {
        /// The peer.
        to: SocketAddr,
        /// HTTP status.
        status: u16,
        /// The peer's own reason, or what the status stands for.
        reason: Reason,
        /// The policy that said no, as the peer names it.
        policy: Option<String>,
    },
    /// No answer to the CONNECT in time.
    #[error("tunnel to {to}: no answer to the CONNECT in time")]
    NoAnswer {
        /// The peer.
        to: SocketAddr,
    },
    /// The tunnel went away before the answer came.
    #[error("tunnel to {to} closed before the answer: {message}")]
    Closed {
        /// The peer.
        to: SocketAddr,
        /// The cause.
        message: String,
    },
    /// The request cannot be put into headers.
    #[error("tunnel request for {authority}: {what} cannot be a header value")]
    Request {
        /// Its authority.
        authority: SocketAddr,
        /// Which part.
        what: &'static str,
    },
}

impl OpenError {
    /// The one reason, for metric, log and the access line.
    pub fn reason(&self) -> Reason {
        match self {
            OpenError::Dial { error, .. } => error.reason,
            OpenError::Handshake { reason, .. } | OpenError::Refused { reason, .. } => *reason,
            OpenError::NoAnswer { .. } => Reason::ConnectTimeout,
            OpenError::Closed { .. } => Reason::TunnelClosed,
            OpenError::Request { .. } => Reason::Internal,
        }
    }

    /// The far policy that said no, if it named itself.
    pub fn policy(&self) -> Option<String> {
        match self {
            OpenError::Refused { policy, .. } => policy.clone(),
            _ => None,
        }
    }
}

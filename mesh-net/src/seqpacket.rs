//! SOCK_SEQPACKET unix sockets: one message a packet, descriptors on the message they belong to.
//!
//! Truncation is an error, never a shorter message: half a message or a missing descriptor would be believed. An empty packet
//! reads as the end of the link, so none can be sent.

#[cfg(feature = "tokio")]
mod awaited;
mod blocking;

#[cfg(feature = "tokio")]
pub use self::awaited::{AsyncConn, AsyncListener};
pub use self::blocking::{Conn, Credentials, Listener, MAX_FDS, MAX_PACKET, Packet};

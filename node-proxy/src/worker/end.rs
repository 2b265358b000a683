//! One end of a connection whose bytes are moved: a TCP socket, or a stream of a tunnel.
//!
//! Both can be half-closed (`poll_shutdown`) and reset. A reset is never hidden: the far application sees what the near one did.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::tunnel::Stream;

/// A tunnel's stream, behind one trait: the way tunnels are made may change without the copy loop.
pub trait TunnelStream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Ends the stream abruptly (RST_STREAM).
    fn reset(self: Box<Self>);
}

impl TunnelStream for Stream {
    fn reset(self: Box<Self>) {
        Stream::reset(*self);
    }
}

/// One end.
pub enum End {
    /// A socket.
    Tcp(TcpStream),
    /// A stream of a tunnel.
    Tunnel(Box<dyn TunnelStream>),
}

impl End {
    /// Ends it abruptly: the peer sees a reset, not an end of data.
    pub fn reset(self) {
        match self {
            End::Tcp(stream) => reset(stream),
            End::Tunnel(stream) => stream.reset(),
        }
    }
}

/// Closes a socket so that the peer sees RST.
pub fn reset(stream: TcpStream) {
    if let Err(error) = mesh_net::socket::reset_on_close(&stream) {
        // Only fails when the socket is gone already, and then there is nobody to tell.
        tracing::debug!(%error, "reset on close");
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Tcp(_) => "Tcp",
            End::Tunnel(_) => "Tunnel",
        })
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            End::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            End::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            End::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            End::Tunnel(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            End::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            End::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            End::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            End::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

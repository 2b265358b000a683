//! One end of a connection whose bytes are moved: a TCP socket, or a stream of a tunnel.
//!
//! Both can be half-closed and reset, both say when they are broken while nobody reads them, and when what was written has been
//! delivered. A reset is never hidden: the far application sees what the near one did.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use mesh_net::socket_options::Keepalive;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;

use super::tcp::{Delivered, Tcp};
use super::tunnel::Stream;

/// A tunnel's stream, behind one trait: the way tunnels are made may change without the copy loop.
pub trait TunnelStream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Ends the stream abruptly (RST_STREAM).
    fn reset(self: Box<Self>);
    /// Ready when the peer has reset it, also while nobody reads. One waiting task at a time.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error>;
    /// Ready when a reset would take nothing away any more of what was written.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

impl TunnelStream for Stream {
    fn reset(self: Box<Self>) {
        Stream::reset(*self);
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        Stream::poll_broken(self, cx)
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Stream::poll_sent(self, cx)
    }
}

/// One end.
pub enum End {
    /// A socket.
    Tcp(Tcp),
    /// A stream of a tunnel.
    Tunnel(Box<dyn TunnelStream>),
}

impl End {
    /// The end that is this socket.
    pub fn tcp(stream: TcpStream) -> Self {
        End::Tcp(Tcp::new(stream))
    }

    /// The same, whose peer may vanish without a word.
    pub fn far(stream: TcpStream, keepalive: Keepalive) -> Self {
        End::Tcp(Tcp::far(stream, keepalive))
    }

    /// Ends it abruptly: the peer sees a reset, not an end of data.
    pub fn reset(self) {
        match self {
            End::Tcp(tcp) => tcp.reset(),
            End::Tunnel(stream) => stream.reset(),
        }
    }

    /// Reads into the free room of `buffer`; 0 is the end of data.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        match self {
            End::Tcp(tcp) => tcp.poll_read(cx, buffer),
            // `read_buf` keeps nothing between polls, so making it anew each time loses nothing.
            End::Tunnel(stream) => std::pin::pin!(stream.read_buf(buffer)).poll(cx),
        }
    }

    /// Writes some of it.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            End::Tcp(tcp) => tcp.poll_write(cx, bytes),
            End::Tunnel(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// Lets go of what a layer below holds back.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            End::Tcp(_) => Poll::Ready(Ok(())),
            End::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Passes on the end of data.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            End::Tcp(tcp) => Poll::Ready(tcp.shutdown(cx)),
            End::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    /// Ready when it was reset or has failed, also while it is not read; with what is unread still there. One waiting task at a time.
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            End::Tcp(tcp) => tcp.poll_broken(cx),
            End::Tunnel(stream) => stream.poll_broken(cx),
        }
    }

    /// Ready when its peer is gone without a word, as far as the kernel's keepalive does not find out. (A tunnel asks by PING.)
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            End::Tcp(tcp) => tcp.poll_lost(cx),
            End::Tunnel(_) => Poll::Pending,
        }
    }

    /// Whether nothing more should be read for it at the moment.
    pub fn holds_back(&self) -> bool {
        matches!(self, End::Tcp(tcp) if tcp.holds_back())
    }

    /// Whether a reset would still take away some of what was written.
    pub fn poll_delivered(&mut self, cx: &mut Context<'_>) -> Delivered {
        match self {
            End::Tcp(tcp) => tcp.delivered(),
            End::Tunnel(stream) => match stream.poll_sent(cx) {
                Poll::Ready(()) => Delivered::Yes,
                Poll::Pending => Delivered::Waking,
            },
        }
    }
}

/// Closes a socket so that the peer sees RST.
pub fn reset(stream: TcpStream) {
    if let Err(error) = mesh_net::socket::reset_on_close(&stream) {
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

//! One connection inside a tunnel, as bytes in and out.
//!
//! Half-close is END_STREAM in that direction. A stream that is dropped before both directions have ended is reset with
//! CONNECT_ERROR (RFC 9113, 8.5), so the far application sees a reset and never a short but clean end. A reset drops what HTTP/2
//! has not sent yet: whoever passes on a peer's reset waits for [`Stream::poll_sent`] first, since TCP would have delivered that.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use mesh_model::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunk::{Chunk, Queue};
use super::settings::{RETURN_CHUNK, WRITE_CHUNK};
use super::shared::Open;

/// Why a stream's read or write failed; inside the `io::Error`, see [`reason_of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tunnel stream ended: {0}")]
pub struct Closed(pub Reason);

impl Closed {
    /// `Reset` when the far end reset this connection, `TunnelClosed` when the tunnel under it went away.
    pub fn reason(self) -> Reason {
        self.0
    }
}

/// The reason inside an error of a [`Stream`].
pub fn reason_of(error: &io::Error) -> Option<Reason> {
    error.get_ref()?.downcast_ref::<Closed>().map(|closed| closed.0)
}

/// The kind of a write's error when the peer asks to stop sending (RST_STREAM with NO_ERROR) and may still be read to its end.
pub const WANTS_NO_MORE: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// One connection inside a tunnel.
pub struct Stream {
    send: SendStream<Chunk>,
    recv: RecvStream,
    /// What was given to `send` and has not left.
    queue: Arc<Queue>,
    /// Received and not yet taken by the reader.
    chunk: Bytes,
    /// Taken by the reader and not yet given back to the peer's window.
    taken: usize,
    sent_end: bool,
    received_end: bool,
    _open: Open,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.send.stream_id())
            .field("sent_end", &self.sent_end)
            .field("received_end", &self.received_end)
            .finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(send: SendStream<Chunk>, recv: RecvStream, open: Open) -> Self {
        let (queue, chunk) = (Arc::default(), Bytes::new());
        Self { send, recv, queue, chunk, taken: 0, sent_end: false, received_end: false, _open: open }
    }

    /// Ends both directions at once; the far application sees a reset. Bytes that were not sent yet are lost.
    pub fn reset(mut self) {
        self.abort();
    }

    /// Ready when everything that was written has left for the peer, or never will: what a reset would still take away.
    pub fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.queue.poll_empty(cx)
    }

    /// Ready when the peer has reset the stream or the tunnel is gone, also while nothing is read.
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match ready!(self.send.poll_reset(cx)) {
            // After END_STREAM it asks only to stop sending (RFC 9113, 8.1; so does ztunnel), which a write finds out. Before, it is
            // a reset like any other, which a read finds out: behind bytes that nobody takes, the two cannot be told apart.
            Ok(h2::Reason::NO_ERROR) => Poll::Pending,
            Ok(_) => Poll::Ready(io::Error::new(io::ErrorKind::ConnectionReset, Closed(Reason::Reset))),
            Err(error) => Poll::Ready(closed(&error)),
        }
    }

    /// With a code of the test's choice.
    #[cfg(test)]
    pub(super) fn reset_with(mut self, code: h2::Reason) {
        self.send.send_reset(code);
        (self.sent_end, self.received_end) = (true, true);
    }

    fn abort(&mut self) {
        self.send.send_reset(h2::Reason::CONNECT_ERROR);
        self.sent_end = true;
        self.received_end = true;
    }

    /// Makes `chunk` non-empty, or sets `received_end`.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.chunk.is_empty() && !self.received_end {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.chunk = data,
                // Whatever its code, NO_ERROR included: after END_STREAM h2 tells of the end and not of the reset.
                Some(Err(error)) => return Poll::Ready(Err(closed(&error))),
                None => self.received_end = true,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn give_back(&mut self, taken: usize, chunk_done: bool) {
        self.taken += taken;
        if self.taken > 0 && (chunk_done || self.taken >= RETURN_CHUNK) {
            // Fails only when more is given back than was received, or the stream is gone: nothing is left to do then.
            let _ = self.recv.flow_control().release_capacity(std::mem::take(&mut self.taken));
        }
    }

    /// Room for at least one byte, at most `wanted`.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(wanted);
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room.min(wanted)));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(closed(&error))),
                None => return Poll::Ready(Err(self.write_end(cx))),
            }
        }
    }

    /// Why nothing can be sent any more.
    fn write_end(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            // Its own bytes are whole, or a read will say otherwise: it only wants no more of ours.
            Poll::Ready(Ok(h2::Reason::NO_ERROR)) => io::Error::new(WANTS_NO_MORE, Closed(Reason::Reset)),
            Poll::Ready(Ok(_)) => io::Error::new(io::ErrorKind::ConnectionReset, Closed(Reason::Reset)),
            Poll::Ready(Err(error)) => closed(&error),
            Poll::Pending => io::Error::new(io::ErrorKind::BrokenPipe, Closed(Reason::TunnelClosed)),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.chunk.is_empty() {
            ready!(this.poll_fill(cx))?;
        }
        let count = this.chunk.len().min(buf.remaining());
        buf.put_slice(&this.chunk[..count]);
        this.chunk.advance(count);
        this.give_back(count, this.chunk.is_empty());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.sent_end {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the tunnel stream was already shut down",
            )));
        }
        let room = ready!(self.poll_room(cx, buf.len().min(WRITE_CHUNK)))?;
        let chunk = Chunk::of(&buf[..room], &self.queue);
        let result = self.send.send_data(chunk, false);
        Poll::Ready(result.map(|()| room).map_err(|error| closed(&error)))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's driver sends on its own; nothing is held back here.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sent_end {
            self.sent_end = true;
            self.send.reserve_capacity(0);
            self.send.send_data(Chunk::empty(), true).map_err(|error| closed(&error))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // After END_STREAM of ours nothing is to be told: either the peer has ended too, or h2 resets what is dropped (and the queue
        // with it, unless the code is NO_ERROR).
        if !self.sent_end {
            self.abort();
        }
    }
}

/// An h2 error as the reader or writer of one stream should see it.
pub(super) fn closed(error: &h2::Error) -> io::Error {
    if error.is_reset() && error.is_remote() {
        io::Error::new(io::ErrorKind::ConnectionReset, Closed(Reason::Reset))
    } else {
        io::Error::new(io::ErrorKind::BrokenPipe, Closed(Reason::TunnelClosed))
    }
}

//! Reads under TLS in large pieces. rustls asks for one record at a time (16 KiB); each such read of a busy tunnel costs a system
//! call and often an acknowledgement of its own, which crosses both nodes' stacks. Small reads go straight through, and a tunnel
//! that is idle holds no buffer.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::worker::buffers::{self, Level};

/// See the module.
pub(super) struct Ahead<S> {
    inner: S,
    level: Level,
    /// Read and not yet asked for; `None` when there is nothing.
    held: Option<Vec<u8>>,
    given: usize,
}

impl<S> Ahead<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, level: Level::default(), held: None, given: 0 }
    }

    /// Hands out of what is held; gives the buffer back with its last byte.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let Some(held) = &self.held else { return };
        let count = buf.remaining().min(held.len() - self.given);
        buf.put_slice(&held[self.given..self.given + count]);
        self.given += count;
        if self.given == held.len() {
            self.held.take().into_iter().for_each(buffers::give_back);
        }
    }
}

impl<S> fmt::Debug for Ahead<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").field("held", &self.held.as_ref().map(Vec::len)).finish_non_exhaustive()
    }
}

impl<S> Drop for Ahead<S> {
    fn drop(&mut self) {
        self.held.take().into_iter().for_each(buffers::give_back);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_none() {
            if this.level.bytes() <= buf.remaining() {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
                this.level.learn((buf.filled().len() - before).min(this.level.bytes()));
                return Poll::Ready(Ok(()));
            }
            let mut buffer = this.level.take();
            // `read_buf` keeps nothing between polls, so making it anew each time loses nothing.
            match std::pin::pin!(this.inner.read_buf(&mut buffer)).poll(cx) {
                Poll::Ready(Ok(1..)) => {
                    this.level.learn(buffer.len());
                    (this.held, this.given) = (Some(buffer), 0);
                }
                nothing => {
                    buffers::give_back(buffer);
                    return nothing.map_ok(|_| ());
                }
            }
        }
        this.give(buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives so many bytes of a counting sequence per read, and counts the reads.
    struct Source {
        next: u64,
        left: usize,
        reads: usize,
    }

    impl AsyncRead for Source {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let count = buf.remaining().min(self.left);
            for _ in 0..count {
                buf.put_slice(&[(self.next % 251) as u8]);
                self.next += 1;
            }
            self.left -= count;
            self.reads += 1;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order_with_few_reads_and_nothing_is_held_at_the_end() {
        const ALL: usize = 4 << 20;
        let mut ahead = Ahead::new(Source { next: 0, left: ALL, reads: 0 });
        let (mut seen, mut record) = (0_u64, [0; 16_406]);
        loop {
            let count = ahead.read(&mut record[..]).await.expect("no error");
            if count == 0 {
                break;
            }
            for byte in &record[..count] {
                assert_eq!(u64::from(*byte), seen % 251);
                seen += 1;
            }
        }
        assert_eq!(seen, ALL as u64);
        assert!(ahead.inner.reads < ALL / 200_000, "{} reads", ahead.inner.reads);
        assert!(ahead.held.is_none());
    }

    #[tokio::test]
    async fn a_small_read_is_not_copied_and_no_buffer_is_kept_for_it() {
        let mut ahead = Ahead::new(Source { next: 0, left: 1000, reads: 0 });
        let mut record = [0; 16_406];
        assert_eq!(ahead.read(&mut record[..]).await.expect("no error"), 1000);
        assert!(ahead.held.is_none());
        assert_eq!(ahead.read(&mut record[..]).await.expect("no error"), 0);
    }
}

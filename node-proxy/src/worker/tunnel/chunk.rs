//! What a stream gives to HTTP/2, and whether all of it has left.
//!
//! h2 drops what is queued on a stream when the stream is reset (`send_reset`, and for any code but NO_ERROR the reset of a dropped
//! stream too), and says nowhere how much that is. So each piece counts itself: it lives until its frame was written, or dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;

/// The pieces of one stream that HTTP/2 still holds.
#[derive(Debug, Default)]
pub(super) struct Queue {
    held: AtomicUsize,
    emptied: AtomicWaker,
}

impl Queue {
    /// Ready when all pieces were written or dropped. One waiting task at a time.
    pub(super) fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.held.load(Ordering::Acquire) == 0 {
            return Poll::Ready(());
        }
        self.emptied.register(cx.waker());
        // Emptied between the look and the registration: look again.
        if self.held.load(Ordering::Acquire) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// One piece of a stream's bytes.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Bytes,
    /// `None`: nothing that anyone would miss.
    queue: Option<Arc<Queue>>,
}

impl Chunk {
    /// Counted in `queue` for as long as it lives.
    pub(super) fn of(bytes: &[u8], queue: &Arc<Queue>) -> Self {
        queue.held.fetch_add(1, Ordering::Relaxed);
        Self { bytes: Bytes::copy_from_slice(bytes), queue: Some(queue.clone()) }
    }

    /// For an END_STREAM of its own.
    pub(super) fn empty() -> Self {
        Self { bytes: Bytes::new(), queue: None }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue
            && queue.held.fetch_sub(1, Ordering::Release) == 1
        {
            queue.emptied.wake();
        }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_empty_when_its_last_piece_is_gone() {
        let queue = Arc::new(Queue::default());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(queue.poll_empty(&mut cx).is_ready());
        let (one, two) = (Chunk::of(b"one", &queue), Chunk::of(b"two", &queue));
        drop(one);
        assert!(queue.poll_empty(&mut cx).is_pending());
        drop(two);
        assert!(queue.poll_empty(&mut cx).is_ready());
    }
}

//! One direction: reads from one end, writes to the other, passes the end of data on.

use std::io;
use std::task::{Context, Poll, ready};

use crate::worker::buffers::{self, Level};
use crate::worker::end::End;

/// Bytes one connection may move before others of its thread get their turn.
const TURN: usize = 1024 * 1024;

/// An end failed while it was read or while it was written.
pub(super) enum Fault {
    Read(io::Error),
    Write(io::Error),
}

/// One direction.
#[derive(Default)]
pub(super) struct Half {
    // Present only while it holds bytes or is about to.
    buffer: Option<Vec<u8>>,
    written: usize,
    level: Level,
    state: State,
    // The other side is silent: nothing is read for it, and its timer looks again.
    held_back: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Moving,
    // The reader has ended and all is written: pass the end on.
    Closing,
    Over,
}

impl Half {
    pub(super) fn holds(&self) -> usize {
        self.buffer.as_ref().map_or(0, Vec::capacity)
    }

    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Whether it does not wait for its reader: it has ended, or the other side does not take what it holds, or more.
    pub(super) fn is_not_reading(&self) -> bool {
        self.is_over() || self.held_back || self.buffer.as_ref().is_some_and(|buffer| self.written < buffer.len())
    }

    /// Ends it with what it holds.
    pub(super) fn give_up(&mut self) {
        self.state = State::Over;
        self.buffer.take().into_iter().for_each(buffers::give_back);
    }

    /// With `broken`, the reader is: its end of data is none that may be passed on.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut End,
        to: &mut End,
        moved: impl Fn(usize),
        broken: bool,
    ) -> Poll<Result<(), Fault>> {
        let polled = self.poll_inner(cx, from, to, moved, broken);
        if polled.is_ready() {
            self.give_up();
        }
        polled
    }

    fn poll_inner(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut End,
        to: &mut End,
        moved: impl Fn(usize),
        broken: bool,
    ) -> Poll<Result<(), Fault>> {
        let mut turn = 0;
        loop {
            match self.state {
                State::Over => return Poll::Ready(Ok(())),
                State::Closing => return self.poll_close(cx, to),
                State::Moving => {}
            }
            let level = self.level;
            let buffer = self.buffer.get_or_insert_with(|| level.take());
            while self.written < buffer.len() {
                match ready!(to.poll_write(cx, &buffer[self.written..])) {
                    Ok(0) => return Poll::Ready(Err(Fault::Write(io::ErrorKind::WriteZero.into()))),
                    Ok(bytes) => {
                        self.written += bytes;
                        turn += bytes;
                        moved(bytes);
                    }
                    Err(error) => return Poll::Ready(Err(Fault::Write(error))),
                }
            }
            buffer.clear();
            self.written = 0;
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if buffer.capacity() != level.bytes() {
                buffers::give_back(std::mem::replace(buffer, level.take()));
            }
            // What is there stays with the sender's kernel, whose own deadlines then see it.
            self.held_back = to.holds_back() && !broken;
            if self.held_back {
                self.buffer.take().into_iter().for_each(buffers::give_back);
                return Poll::Pending;
            }
            match from.poll_read(cx, buffer) {
                Poll::Pending => {
                    self.buffer.take().into_iter().for_each(buffers::give_back);
                    if turn > 0
                        && let Poll::Ready(Err(error)) = to.poll_flush(cx)
                    {
                        return Poll::Ready(Err(Fault::Write(error)));
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => {
                    self.buffer.take().into_iter().for_each(buffers::give_back);
                    if broken {
                        return Poll::Ready(Ok(()));
                    }
                    self.state = State::Closing;
                }
                Poll::Ready(Ok(bytes)) => self.level.learn(bytes),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Fault::Read(error))),
            }
            #[cfg(feature = "testing")]
            crate::worker::testing_delay::burn();
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, to: &mut End) -> Poll<Result<(), Fault>> {
        match ready!(to.poll_shutdown(cx)) {
            Ok(()) => {}
            // The peer has closed both ways already: there is no one to tell.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(error) => return Poll::Ready(Err(Fault::Write(error))),
        }
        Poll::Ready(Ok(()))
    }
}

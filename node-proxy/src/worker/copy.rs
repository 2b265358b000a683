//! Moves bytes between the two ends of a connection until both directions have ended.
//!
//! Each direction ends on its own: an end of data is passed on as a half-close, a reset as a reset. The loop reads and writes
//! directly (splice and io_uring were measured within 10 % of it, both with their own costs) with a buffer that grows with the
//! reads and is given back while nothing moves. What it must never do: hide a reset as an end of data, or start before there
//! is a [`Connected`].

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mesh_model::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::buffers::{self, Level};
use super::connect::Connected;
use super::connection::{Connection, CutCause};
use super::end::End;
use super::tunnel;

/// One direction has ended and nothing moved in the other for this long: the connection is given up. An hour is a guess: longer than
/// any computation a client should wait for with its own side closed, short enough not to collect the forgotten.
pub const HALF_CLOSED_IDLE: Duration = Duration::from_secs(3600);
/// Bytes one connection may move before others of its thread get their turn.
const TURN: usize = 1024 * 1024;

/// How a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// Both directions came to their end.
    Done,
    /// One of the ends reset it, or failed.
    Reset(Side, io::Error),
    /// It was ended from outside.
    Cut(CutCause),
    /// Half-closed and idle for too long.
    Idle,
}

impl Ended {
    /// The reason, for those that did not simply end.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Ended::Done => None,
            Ended::Reset(_, error) if error.kind() == io::ErrorKind::TimedOut => Some(Reason::IdleTimeout),
            Ended::Reset(_, error) => Some(tunnel::reason_of(error).unwrap_or(Reason::Reset)),
            Ended::Cut(cause) => Some(cause.reason),
            Ended::Idle => Some(Reason::IdleTimeout),
        }
    }
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who called.
    Client,
    /// Who was called.
    Destination,
}

/// Moves the bytes of a connection until it ends. Dropping the future half-way closes both ends.
pub async fn duplex(connected: Connected, connection: &Connection) -> Ended {
    let (client, destination) = connected.into_ends();
    Duplex::new(client, destination, connection, HALF_CLOSED_IDLE).await
}

/// The loop as a hand-written future: its size is what an idle connection costs.
struct Duplex<'a> {
    // `None` once reset.
    ends: Option<(End, End)>,
    connection: &'a Connection,
    up: Half,
    down: Half,
    // A direction could not be written any more; the other is still read to its end, since what the peer sent before it reset is
    // still there to be delivered.
    fault: Option<(Side, io::Error)>,
    idle: Option<Pin<Box<Sleep>>>,
    idle_after: Duration,
    // Moved when the idle timer was last set.
    moved_at_idle: u64,
    // Room of the buffers that hold bytes, as it was last told.
    holds: usize,
}

impl<'a> Duplex<'a> {
    fn new(client: End, destination: End, connection: &'a Connection, idle_after: Duration) -> Self {
        Self {
            ends: Some((client, destination)),
            connection,
            up: Half::default(),
            down: Half::default(),
            fault: None,
            idle: None,
            idle_after,
            moved_at_idle: 0,
            holds: 0,
        }
    }

    fn reset(&mut self) {
        if let Some((client, destination)) = self.ends.take() {
            client.reset();
            destination.reset();
        }
    }

    /// Tells of buffers that are still held after a step: those whose bytes the other side does not take.
    fn tell_buffers(&mut self) {
        let holds = self.up.holds() + self.down.holds();
        if holds != self.holds {
            self.connection.buffers(self.holds, holds);
            self.holds = holds;
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (to_destination, to_client) = self.connection.bytes();
        let moved = to_destination.wrapping_add(to_client);
        loop {
            let timer = self.idle.get_or_insert_with(|| {
                self.moved_at_idle = moved;
                Box::pin(tokio::time::sleep(self.idle_after))
            });
            ready!(timer.as_mut().poll(cx));
            if moved == self.moved_at_idle {
                return Poll::Ready(());
            }
            self.moved_at_idle = moved;
            timer.as_mut().reset(Instant::now() + self.idle_after);
        }
    }
}

impl Drop for Duplex<'_> {
    fn drop(&mut self) {
        if self.holds > 0 {
            self.connection.buffers(self.holds, 0);
        }
    }
}

impl Future for Duplex<'_> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = &mut *self;
        // The cause of a cut wins over the noise it makes.
        if let Poll::Ready(cause) = this.connection.poll_cut(cx) {
            this.reset();
            return Poll::Ready(Ended::Cut(cause));
        }
        let Some((client, destination)) = this.ends.as_mut() else {
            return Poll::Ready(Ended::Done);
        };
        let up = this.up.poll(cx, client, destination, |bytes| this.connection.sent(bytes));
        let down = this.down.poll(cx, destination, client, |bytes| this.connection.received(bytes));
        let directions = [(up, Side::Client, Side::Destination), (down, Side::Destination, Side::Client)];
        let mut over = true;
        let mut broken = false;
        for (polled, reader, writer) in directions {
            match polled {
                Poll::Pending => over = false,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Fault::Read(error))) => {
                    this.fault.get_or_insert((reader, error));
                    broken = true;
                }
                Poll::Ready(Err(Fault::Write(error))) => {
                    this.fault.get_or_insert((writer, error));
                }
            }
        }
        if over || broken {
            return Poll::Ready(match this.fault.take() {
                Some((side, error)) => {
                    this.reset();
                    Ended::Reset(side, error)
                }
                None => Ended::Done,
            });
        }
        if (this.up.is_over() || this.down.is_over()) && this.poll_idle(cx).is_ready() {
            this.reset();
            return Poll::Ready(Ended::Idle);
        }
        this.tell_buffers();
        Poll::Pending
    }
}

/// An end failed while it was read or while it was written.
enum Fault {
    Read(io::Error),
    Write(io::Error),
}

/// One direction.
#[derive(Default)]
struct Half {
    // Present only while it holds bytes or is about to.
    buffer: Option<Vec<u8>>,
    written: usize,
    level: Level,
    state: State,
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
    fn holds(&self) -> usize {
        self.buffer.as_ref().map_or(0, Vec::capacity)
    }

    fn is_over(&self) -> bool {
        self.state == State::Over
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut End,
        to: &mut End,
        moved: impl Fn(usize),
    ) -> Poll<Result<(), Fault>> {
        let polled = self.poll_inner(cx, from, to, moved);
        if let Poll::Ready(result) = &polled {
            self.state = State::Over;
            if let (Err(_), Some(buffer)) = (result, self.buffer.take()) {
                buffers::give_back(buffer);
            }
        }
        polled
    }

    fn poll_inner(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut End,
        to: &mut End,
        moved: impl Fn(usize),
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
                match ready!(Pin::new(&mut *to).poll_write(cx, &buffer[self.written..])) {
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
            // `read_buf` keeps nothing between polls, so making it anew each time loses nothing.
            match std::pin::pin!(from.read_buf(buffer)).poll(cx) {
                Poll::Pending => {
                    self.buffer.take().into_iter().for_each(buffers::give_back);
                    if turn > 0
                        && let Poll::Ready(Err(error)) = Pin::new(&mut *to).poll_flush(cx)
                    {
                        return Poll::Ready(Err(Fault::Write(error)));
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => {
                    self.buffer.take().into_iter().for_each(buffers::give_back);
                    self.state = State::Closing;
                }
                Poll::Ready(Ok(bytes)) => self.level.learn(bytes),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Fault::Read(error))),
            }
            #[cfg(feature = "testing")]
            super::testing_delay::burn();
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, to: &mut End) -> Poll<Result<(), Fault>> {
        match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
            Ok(()) => {}
            // The peer has closed both ways already: there is no one to tell.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(error) => return Poll::Ready(Err(Fault::Write(error))),
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;

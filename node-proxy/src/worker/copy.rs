//! Moves bytes between the two ends of a connection until both directions have ended.
//!
//! Each direction ends on its own: an end of data is passed on as a half-close, a reset as a reset, behind the bytes that came before
//! it. The loop reads and writes directly (splice and io_uring were measured within 10 % of it, both with their own costs) with a
//! buffer that grows with the reads and is given back while nothing moves. What it must never do: hide a reset as an end of data,
//! wait for a reader before it hears a reset, or start before there is a [`Connected`].

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mesh_model::Reason;
use tokio::time::{Instant, Sleep};

use super::connect::Connected;
use super::connection::{Connection, CutCause};
use super::end::End;
use super::tcp::Delivered;
use super::tunnel;
use half::{Fault, Half};

/// One direction has ended and nothing moved in the other for this long: the connection is given up. An hour is a guess: longer than
/// any computation a client should wait for with its own side closed, short enough not to collect the forgotten.
pub const HALF_CLOSED_IDLE: Duration = Duration::from_secs(3600);
/// How long after a reset what came before it may still take to the other end. Without a mesh the receiver's kernel has it by then, and
/// what it has no room for is lost; here two proxies may follow each other, and the receiver hears of the reset within a second.
const LAST_BYTES: Duration = Duration::from_millis(250);
/// First pause between two looks at whether a kernel has delivered; doubled four times.
const LOOK: Duration = Duration::from_millis(1);

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
            Ended::Reset(_, error) if is_lost(error) => Some(Reason::PeerLost),
            Ended::Reset(_, error) => Some(tunnel::reason_of(error).unwrap_or(Reason::Reset)),
            Ended::Cut(cause) => Some(cause.reason),
            Ended::Idle => Some(Reason::IdleTimeout),
        }
    }
}

/// Whether the kernel gave the connection up: nothing was acknowledged (ETIMEDOUT; or what routers said meanwhile, tcp(7)).
fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::TimedOut | Kind::HostUnreachable | Kind::NetworkUnreachable)
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who called.
    Client,
    /// Who was called.
    Destination,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Side::Client => Side::Destination,
            Side::Destination => Side::Client,
        }
    }
}

/// Moves the bytes of a connection until it ends. Dropping the future half-way closes both ends.
pub async fn duplex(connected: Connected, connection: &Connection) -> Ended {
    let (client, destination) = connected.into_ends();
    Duplex::new(client, destination, connection, HALF_CLOSED_IDLE).await
}

/// The loop as a hand-written future: its size is what an idle connection costs.
struct Duplex<'a> {
    // `None` once it has ended.
    ends: Option<(End, End)>,
    connection: &'a Connection,
    up: Half,
    down: Half,
    // The first cause of an end that is not a good one.
    fault: Option<(Side, io::Error)>,
    // An end is broken: only what came from it before is still passed on.
    last: Option<LastBytes>,
    // Of a half-closed connection that is idle, or of the last bytes.
    timer: Option<Pin<Box<Sleep>>>,
    idle_after: Duration,
    // Moved when the idle timer was last set.
    moved_at_idle: u64,
    // Room of the buffers that hold bytes, as it was last told.
    holds: usize,
}

/// What is left to do after one end broke.
#[derive(Clone, Copy)]
struct LastBytes {
    from: Side,
    until: Instant,
    looks: u32,
}

impl<'a> Duplex<'a> {
    fn new(client: End, destination: End, connection: &'a Connection, idle_after: Duration) -> Self {
        Self {
            ends: Some((client, destination)),
            connection,
            up: Half::default(),
            down: Half::default(),
            fault: None,
            last: None,
            timer: None,
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

    /// Ends it for the fault that was noted, or in good order.
    fn end(&mut self) -> Ended {
        match self.fault.take() {
            Some((side, error)) => {
                self.reset();
                Ended::Reset(side, error)
            }
            None => {
                self.ends = None;
                Ended::Done
            }
        }
    }

    /// Notes what became of the direction that reads from `reader`.
    fn note(&mut self, polled: Poll<Result<(), Fault>>, reader: Side) {
        match polled {
            Poll::Pending | Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(Fault::Read(error))) => self.broke(reader, error),
            // Not broken: what it still sends may take as long as it likes.
            Poll::Ready(Err(Fault::Write(error))) if error.kind() == tunnel::WANTS_NO_MORE => {
                self.fault.get_or_insert((reader.other(), error));
            }
            Poll::Ready(Err(Fault::Write(error))) => self.broke(reader.other(), error),
        }
    }

    /// One end is broken. Nothing goes to it any more; what it sent before is still there to be delivered.
    fn broke(&mut self, side: Side, error: io::Error) {
        self.fault = Some((side, error));
        match side {
            Side::Client => self.down.give_up(),
            Side::Destination => self.up.give_up(),
        }
        let until = Instant::now() + LAST_BYTES;
        self.last = Some(LastBytes { from: side, until, looks: 0 });
        self.timer = Some(Box::pin(tokio::time::sleep_until(until)));
    }

    /// An end whose peer has vanished is broken. Before the halves are: one that is heard again is read for again.
    fn hear_of_the_lost(&mut self, cx: &mut Context<'_>) {
        let Some((client, destination)) = self.ends.as_mut().filter(|_| self.last.is_none()) else { return };
        if let Poll::Ready(error) = client.poll_lost(cx) {
            self.broke(Side::Client, error);
        } else if let Poll::Ready(error) = destination.poll_lost(cx) {
            self.broke(Side::Destination, error);
        }
    }

    /// An end that nobody reads from is watched: its reset would be heard only when somebody does.
    fn watch(&mut self, cx: &mut Context<'_>) {
        let Some((client, destination)) = self.ends.as_mut() else { return };
        if self.up.is_not_reading()
            && let Poll::Ready(error) = client.poll_broken(cx)
        {
            self.broke(Side::Client, error);
        } else if self.down.is_not_reading()
            && let Poll::Ready(error) = destination.poll_broken(cx)
        {
            self.broke(Side::Destination, error);
        }
    }

    /// Passes on what the broken end sent before. Ready when the other one has it, or the time is over.
    fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(last), Some((client, destination))) = (&mut self.last, self.ends.as_mut()) else {
            return Poll::Ready(());
        };
        let connection = self.connection;
        loop {
            let passed = match last.from {
                Side::Client => self.up.poll(cx, client, destination, |bytes| connection.sent(bytes), true),
                Side::Destination => self.down.poll(cx, destination, client, |bytes| connection.received(bytes), true),
            };
            let to = if last.from == Side::Client { &mut *destination } else { &mut *client };
            let delivered = match passed {
                Poll::Pending => Delivered::Waking,
                // The other end is broken as well.
                Poll::Ready(Err(Fault::Write(_))) => Delivered::Yes,
                Poll::Ready(Ok(()) | Err(Fault::Read(_))) => to.poll_delivered(cx),
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(last.until)));
            match delivered {
                Delivered::Yes => return Poll::Ready(()),
                Delivered::Waking => {}
                Delivered::LookAgain => {
                    let pause = LOOK * (1 << last.looks.min(4));
                    timer.as_mut().reset(last.until.min(Instant::now() + pause));
                }
            }
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= last.until {
                return Poll::Ready(());
            }
            last.looks += 1;
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
            let timer = self.timer.get_or_insert_with(|| {
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
        // Dropped half-way: never an end of data that nobody sent.
        self.reset();
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
        let connection = this.connection;
        this.hear_of_the_lost(cx);
        let Some((client, destination)) = this.ends.as_mut() else {
            return Poll::Ready(Ended::Done);
        };
        if this.last.is_none() {
            let up = this.up.poll(cx, client, destination, |bytes| connection.sent(bytes), false);
            this.note(up, Side::Client);
        }
        let Some((client, destination)) = this.ends.as_mut().filter(|_| this.last.is_none()) else {
            return this.finish(cx);
        };
        let down = this.down.poll(cx, destination, client, |bytes| connection.received(bytes), false);
        this.note(down, Side::Destination);
        if this.last.is_none() {
            if this.up.is_over() && this.down.is_over() {
                match this.fault.take() {
                    // A reset follows, and takes nothing of a whole answer away.
                    Some((side, error)) => this.broke(side, error),
                    None => return Poll::Ready(this.end()),
                }
            } else {
                this.watch(cx);
            }
        }
        if this.last.is_some() {
            return this.finish(cx);
        }
        if (this.up.is_over() || this.down.is_over()) && this.poll_idle(cx).is_ready() {
            this.reset();
            return Poll::Ready(Ended::Idle);
        }
        this.tell_buffers();
        Poll::Pending
    }
}

impl Duplex<'_> {
    fn finish(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if self.poll_last(cx).is_ready() {
            return Poll::Ready(self.end());
        }
        self.tell_buffers();
        Poll::Pending
    }
}

mod half;
#[cfg(test)]
mod tests;

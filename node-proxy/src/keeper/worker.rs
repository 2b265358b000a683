//! The keeper's end of the link to the worker: one at a time, believed in nothing but fixed-size records.
//!
//! While a worker is served, nobody else is accepted: a second one waits in the backlog until the first has gone. While nobody is
//! served, [`super::place`] sees to it that the socket is where a worker looks for it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use mesh_api::link::worker::{BadRecord, COUNTER, FromWorker, INSPECT, ToWorker};
use mesh_api::link::{self, Hello, LinkError};
use mesh_net::seqpacket::{AsyncConn, Packet};
use tokio::time::Instant;

use super::outbox::{Carried, Outbox};
use super::place::Place;

/// How long a worker may take for its greeting; until then nobody else can have the place.
const HELLO: Duration = Duration::from_secs(2);
/// Answers that may wait for the worker before its next request is read: it pays for its own slowness.
const ANSWERS: usize = 64;
/// After a failed accept (descriptors have run out) the next is tried this much later.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What came of waiting for a worker.
#[derive(Debug)]
pub enum Heard {
    /// One has greeted us.
    Up {
        /// How many it runs.
        threads: u8,
    },
    /// It is gone.
    Down,
    /// It says something; never a greeting or `Keep`.
    Record(FromWorker),
    /// It leaves a descriptor with us.
    Keep(OwnedFd),
}

/// The link, in whatever state.
#[derive(Debug)]
pub struct WorkerLink {
    place: Place,
    uid: u32,
    link: Link,
}

#[derive(Debug)]
enum Link {
    Waiting { from: Instant },
    Greeting { conn: AsyncConn, until: Instant },
    Up { conn: AsyncConn, outbox: Outbox },
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("link: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Language(#[from] LinkError),
    #[error(transparent)]
    Record(#[from] BadRecord),
    #[error("{0}")]
    Protocol(&'static str),
}

impl WorkerLink {
    /// Serves workers of this uid.
    pub fn new(place: Place, uid: u32) -> Self {
        Self { place, uid, link: Link::Waiting { from: Instant::now() } }
    }

    /// Whether one is being served.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// Queues a message; without a worker it is dropped.
    pub fn send(&mut self, message: &ToWorker, carried: Carried) {
        if let Link::Up { outbox, .. } = &mut self.link {
            outbox.push(link::encode(message), carried);
        }
    }

    /// The next thing that happens on the link. Cancel-safe: each await is, and the state is changed only after one.
    pub async fn next(&mut self) -> Heard {
        loop {
            match self.advance().await {
                Ok(Some(heard)) => return heard,
                Ok(None) => {}
                Err(error) => {
                    let was_up = self.is_up();
                    tracing::warn!(%error, greeted = was_up, "worker link is cut");
                    self.link = Link::Waiting { from: Instant::now() };
                    if was_up {
                        return Heard::Down;
                    }
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<Option<Heard>, Broken> {
        match &mut self.link {
            Link::Waiting { from } => {
                tokio::time::sleep_until(*from).await;
                match self.place.accept().await {
                    Ok(conn) => self.admit(conn)?,
                    Err(error) => {
                        tracing::error!(%error, "worker cannot be accepted");
                        self.link = Link::Waiting { from: Instant::now() + ACCEPT_AGAIN };
                    }
                }
                Ok(None)
            }
            Link::Greeting { conn, until } => {
                let packet = tokio::select! {
                    read = conn.recv() => read?.ok_or(Broken::Protocol("closed before greeting"))?,
                    () = tokio::time::sleep_until(*until) => return Err(Broken::Protocol("no greeting in time")),
                };
                let FromWorker::Hello { oldest, newest, threads } = read_record(&packet)? else {
                    return Err(Broken::Protocol("first record is not a greeting"));
                };
                let (oldest, newest) = (u32::from(oldest), u32::from(newest));
                Hello { component: "worker".to_owned(), oldest, newest, capabilities: Vec::new() }.agree()?;
                let waiting = Link::Waiting { from: *until };
                if let Link::Greeting { conn, .. } = std::mem::replace(&mut self.link, waiting) {
                    self.link = Link::Up { conn, outbox: Outbox::default() };
                }
                self.send(&ToWorker::Hello(Hello::of("keeper").with(COUNTER).with(INSPECT)), Carried::Nothing);
                Ok(Some(Heard::Up { threads }))
            }
            Link::Up { conn, outbox } => {
                let slow = outbox.len() >= ANSWERS;
                // Either may be dropped half-way: see the two functions. A slow reader's records wait; the flush ends the select by
                // failing, or the caller's other events bring us back here with a shorter queue.
                let packet = tokio::select! {
                    error = outbox.flush_below(conn, if slow { ANSWERS } else { 0 }) => match error {
                        Some(error) => return Err(error.into()),
                        None => return Ok(None),
                    },
                    read = conn.recv(), if !slow => read?.ok_or(Broken::Protocol("closed by the worker"))?,
                };
                match read_record(&packet)? {
                    FromWorker::Hello { .. } => Err(Broken::Protocol("second greeting")),
                    FromWorker::Keep => match <[OwnedFd; 1]>::try_from(packet.fds) {
                        Ok([memfd]) => Ok(Some(Heard::Keep(memfd))),
                        Err(_) => Err(Broken::Protocol("keep without exactly one descriptor")),
                    },
                    record if packet.fds.is_empty() => Ok(Some(Heard::Record(record))),
                    _ => Err(Broken::Protocol("descriptors on a record that carries none")),
                }
            }
        }
    }

    fn admit(&mut self, conn: AsyncConn) -> Result<(), Broken> {
        let peer = conn.peer()?;
        if peer.uid == self.uid {
            self.link = Link::Greeting { conn, until: Instant::now() + HELLO };
        } else {
            tracing::warn!(uid = peer.uid, expected = self.uid, "a process that is not the worker was refused");
        }
        Ok(())
    }
}

fn read_record(packet: &Packet) -> Result<FromWorker, Broken> {
    Ok(FromWorker::from_bytes(&packet.bytes)?)
}

//! Packets that wait for room in a link's socket, with the descriptors they carry.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use mesh_net::seqpacket::AsyncConn;
use tokio::time::Instant;

use super::hands::Held;

/// A peer that takes no packet for this long while one waits is not alive.
const STALL: Duration = Duration::from_secs(5);
/// Packets that may wait: all pods of a full keeper, each named once and changed a few times.
const LIMIT: usize = 8_192;

/// Descriptors of a packet; closed, or let go, once it is sent.
#[derive(Debug)]
pub enum Carried {
    /// None.
    Nothing,
    /// Made for the receiver.
    Own(Vec<OwnedFd>),
    /// A pod's listeners.
    Listeners(Rc<Held>),
    /// Something kept.
    Shared(Rc<OwnedFd>),
}

/// The queue of one link.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<(Vec<u8>, Carried)>,
    since: Option<Instant>,
}

impl Outbox {
    /// Puts a packet behind the others. Past the limit the next flush fails, and the link with it.
    pub fn push(&mut self, bytes: Vec<u8>, carried: Carried) {
        if self.waiting.is_empty() {
            self.since = Some(Instant::now());
        }
        self.waiting.push_back((bytes, carried));
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Sends until empty, then waits for ever: ends only by failing. Cancel-safe: a packet leaves the queue in the same poll that
    /// sends it.
    pub async fn flush(&mut self, conn: &AsyncConn) -> io::Error {
        match self.flush_below(conn, 0).await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Sends until fewer than `target` packets wait (`None`), or fails. With a target of zero it never ends well. Cancel-safe too.
    pub async fn flush_below(&mut self, conn: &AsyncConn, target: usize) -> Option<io::Error> {
        loop {
            if self.waiting.len() < target {
                return None;
            }
            if self.waiting.len() > LIMIT {
                return Some(io::Error::new(io::ErrorKind::QuotaExceeded, "too many packets wait for the other end"));
            }
            let (Some((bytes, carried)), Some(since)) = (self.waiting.front(), self.since) else {
                return std::future::pending().await;
            };
            let fds: Vec<BorrowedFd<'_>> = match carried {
                Carried::Nothing => Vec::new(),
                Carried::Own(fds) => fds.iter().map(AsFd::as_fd).collect(),
                Carried::Listeners(held) => held.listeners.iter().map(AsFd::as_fd).collect(),
                Carried::Shared(fd) => vec![fd.as_fd()],
            };
            match tokio::time::timeout_at(since + STALL, conn.send(bytes, &fds)).await {
                Ok(Ok(())) => {
                    self.waiting.pop_front();
                    self.since = Some(Instant::now());
                }
                Ok(Err(error)) => return Some(error),
                Err(_) => return Some(io::Error::new(io::ErrorKind::TimedOut, "the other end does not read")),
            }
        }
    }
}

//! From one keeper to the next on the same node: [`Giving`] is the older one's end, [`Taking`] the newer one's.
//!
//! Both then hold the same listening sockets, each with a worker that accepts from them: whichever goes first takes no connection with
//! it. What is taken waits in [`super::hands`] until pod-watcher names the pod.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use mesh_api::link::handover::Handed;
use mesh_api::link::{self, LinkError};
use mesh_net::seqpacket::{AsyncConn, Conn};
use tokio::time::Instant;

use super::outbox::{Carried, Outbox};

/// How long a predecessor may take for all of it: pods wait meanwhile, and pod-watcher for them (5 s). What has not come by then is
/// opened anew, which its owner's death makes possible.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is on its way to a successor.
#[derive(Debug)]
pub struct Giving {
    conn: AsyncConn,
    outbox: Outbox,
}

impl Giving {
    /// To the other end of this.
    pub fn to(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { conn: AsyncConn::new(Conn::from_fd(fd))?, outbox: Outbox::default() })
    }

    /// Puts one behind the others.
    pub fn put(&mut self, message: &Handed, carried: Carried) {
        self.outbox.push(link::encode(message), carried);
    }

    /// Ends when all is sent, or when it cannot be. Cancel-safe, as the outbox is.
    pub async fn sent(&mut self) -> io::Result<()> {
        self.outbox.flush_below(&self.conn, 1).await.map_or(Ok(()), Err)
    }
}

/// What comes from a predecessor.
#[derive(Debug)]
pub struct Taking {
    conn: AsyncConn,
    until: Instant,
}

/// Why no more comes.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The socket.
    #[error("link")]
    Io(#[from] io::Error),
    /// Not what we speak.
    #[error(transparent)]
    Language(#[from] LinkError),
    /// Closed before the end.
    #[error("closed before all was handed over")]
    Closed,
    /// Too slow.
    #[error("not handed over within {} s", PATIENCE.as_secs())]
    Late,
}

impl Taking {
    /// From the other end of this.
    pub fn from(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { conn: AsyncConn::new(Conn::from_fd(fd))?, until: Instant::now() + PATIENCE })
    }

    /// The next thing, with its descriptors. Cancel-safe: a packet is taken in the poll that returns it.
    pub async fn next(&mut self) -> Result<(Handed, Vec<OwnedFd>), Broken> {
        let read = tokio::time::timeout_at(self.until, self.conn.recv()).await.map_err(|_| Broken::Late)?;
        let packet = read?.ok_or(Broken::Closed)?;
        Ok((link::decode("handover", &packet.bytes)?, packet.fds))
    }
}

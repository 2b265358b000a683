//! The keeper's end of the link to pod-watcher: dialled for ever, greeted, read.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use mesh_api::link::proxy::{FromKeeper, HANDOVER, OWNED, STATS, ToKeeper};
use mesh_api::link::worker::COUNTER;
use mesh_api::link::{self, Hello, LinkError};
use mesh_net::seqpacket::{AsyncConn, Packet};
use tokio::time::Instant;

use super::outbox::{Carried, Outbox};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// How long pod-watcher may take for its greeting.
const HELLO: Duration = Duration::from_secs(5);
/// A link that lived this long was a good one: the next dial starts over at the shortest wait.
const GOOD: Duration = Duration::from_secs(10);

/// What came of waiting for pod-watcher.
#[derive(Debug)]
pub enum Heard {
    /// It is there and speaks our language.
    Up,
    /// It is gone; dialled again by the next call.
    Down,
    /// A message, with its descriptors.
    Message(ToKeeper, Vec<OwnedFd>),
}

/// The link, in whatever state.
#[derive(Debug)]
pub struct WatcherLink {
    socket: PathBuf,
    link: Link,
    wait: Duration,
    complained: bool,
}

#[derive(Debug)]
enum Link {
    Down { dial_at: Instant },
    Greeting { conn: AsyncConn, outbox: Outbox, until: Instant },
    Up { conn: AsyncConn, outbox: Outbox, since: Instant, can: Can },
}

/// What pod-watcher takes beyond the version.
#[derive(Clone, Copy, Debug)]
struct Can {
    stats: bool,
    hand_over: bool,
    counter: bool,
    own_packets: bool,
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("connect to {}", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    #[error("link")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Language(#[from] LinkError),
    #[error("{0}")]
    Protocol(&'static str),
    #[error("the process behind the socket runs as uid {0}, not as root")]
    NotRoot(u32),
}

impl WatcherLink {
    /// Not dialled yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, link: Link::Down { dial_at: Instant::now() }, wait: FIRST_RETRY, complained: false }
    }

    /// Queues a message; without a link it is dropped, since its id means nothing to the next one.
    pub fn send(&mut self, message: &FromKeeper) {
        if let Link::Up { outbox, .. } = &mut self.link {
            outbox.push(link::encode(message), Carried::Nothing);
        }
    }

    /// Says that new pods are for others, to whoever knows what to do about that.
    pub fn send_leaving(&mut self) {
        if let Link::Up { can: Can { hand_over: true, .. }, .. } = &self.link {
            self.send(&FromKeeper::Leaving);
        }
    }

    /// Whether somebody listens who takes our counts.
    pub fn takes_stats(&self) -> bool {
        matches!(self.link, Link::Up { can: Can { stats: true, .. }, .. })
    }

    /// Whether somebody listens who keeps the counter of last good configurations.
    pub fn keeps_counter(&self) -> bool {
        matches!(self.link, Link::Up { can: Can { counter: true, .. }, .. })
    }

    /// Whether its rules know the proxy's packets by marked listeners.
    pub fn owns_packets(&self) -> bool {
        matches!(self.link, Link::Up { can: Can { own_packets: true, .. }, .. })
    }

    /// The next thing that happens on the link. Cancel-safe: each await is, and the state is changed only after one.
    pub async fn next(&mut self) -> Heard {
        loop {
            match self.advance().await {
                Ok(Some(heard)) => return heard,
                Ok(None) => {}
                Err(error) => {
                    if let Some(heard) = self.fall(&error) {
                        return heard;
                    }
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<Option<Heard>, Broken> {
        match &mut self.link {
            Link::Down { dial_at } => {
                tokio::time::sleep_until(*dial_at).await;
                let conn =
                    AsyncConn::connect(&self.socket).map_err(|error| Broken::Connect(self.socket.clone(), error))?;
                let peer = conn.peer()?;
                if peer.uid != 0 {
                    return Err(Broken::NotRoot(peer.uid));
                }
                let mut outbox = Outbox::default();
                let hello = Hello::of("keeper").with(HANDOVER).with(COUNTER).with(OWNED);
                outbox.push(link::encode(&FromKeeper::Hello(hello)), Carried::Nothing);
                self.link = Link::Greeting { conn, outbox, until: Instant::now() + HELLO };
                Ok(None)
            }
            Link::Greeting { conn, outbox, until } => {
                let ToKeeper::Hello(hello) = (tokio::select! {
                    error = outbox.flush(conn) => return Err(error.into()),
                    read = conn.recv() => read_message(read)?.0,
                    () = tokio::time::sleep_until(*until) => return Err(Broken::Protocol("no greeting in time")),
                }) else {
                    return Err(Broken::Protocol("first message is not a greeting"));
                };
                let version = hello.agree()?;
                let can = Can {
                    stats: hello.can(STATS),
                    hand_over: hello.can(HANDOVER),
                    counter: hello.can(COUNTER),
                    own_packets: hello.can(OWNED),
                };
                tracing::info!(watcher = hello.component, version, "pod-watcher link is up");
                self.complained = false;
                let now = Link::Down { dial_at: *until };
                if let Link::Greeting { conn, outbox, .. } = std::mem::replace(&mut self.link, now) {
                    self.link = Link::Up { conn, outbox, since: Instant::now(), can };
                }
                Ok(Some(Heard::Up))
            }
            Link::Up { conn, outbox, .. } => {
                // Either may be dropped half-way: see the two functions.
                let (message, fds) = tokio::select! {
                    error = outbox.flush(conn) => return Err(error.into()),
                    read = conn.recv() => read_message(read)?,
                };
                match message {
                    ToKeeper::Hello(_) => Err(Broken::Protocol("second greeting")),
                    message => Ok(Some(Heard::Message(message, fds))),
                }
            }
        }
    }

    fn fall(&mut self, error: &Broken) -> Option<Heard> {
        let was_up = match &self.link {
            Link::Up { since, .. } => {
                if since.elapsed() >= GOOD {
                    self.wait = FIRST_RETRY;
                }
                true
            }
            Link::Down { .. } | Link::Greeting { .. } => false,
        };
        if was_up || !self.complained {
            let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            tracing::warn!(%error, cause, "pod-watcher link is down; what is held stays, dialling on");
            self.complained = !was_up;
        }
        self.link = Link::Down { dial_at: Instant::now() + self.wait };
        self.wait = (self.wait * 2).min(LAST_RETRY);
        was_up.then_some(Heard::Down)
    }
}

fn read_message(read: io::Result<Option<Packet>>) -> Result<(ToKeeper, Vec<OwnedFd>), Broken> {
    let Packet { bytes, fds } = read?.ok_or(Broken::Protocol("closed by pod-watcher"))?;
    Ok((link::decode("proxy", &bytes)?, fds))
}

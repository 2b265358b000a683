//! One row played once: a server in one pod, a client in another, and what each of them saw.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::PollFlags;
use socket2::SockRef;

use super::rows::Row;
use super::sockets::{OwnRules, Server, dial};
use super::stage::Pair;
use crate::ways;

/// How long a connect may take; then it is told as silence.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);
/// What the same event may differ by.
const APART: Duration = Duration::from_secs(1);

/// What one end saw, in order, and when.
#[derive(Clone, Debug)]
pub(super) struct Log {
    who: &'static str,
    from: Instant,
    lines: Vec<(String, Duration)>,
}

impl Log {
    fn new(who: &'static str, from: Instant) -> Log {
        Log { who, from, lines: Vec::new() }
    }

    pub(super) fn say(&mut self, line: impl Into<String>) {
        let line: String = line.into();
        self.lines.push((format!("{}: {line}", self.who), self.from.elapsed()));
    }

    /// For a thread that plays another part of the same end.
    pub(super) fn another(&self) -> Log {
        Log::new(self.who, self.from)
    }

    pub(super) fn join(&mut self, other: Log) {
        self.lines.extend(other.lines);
    }
}

/// What both ends saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Story(Vec<(String, Duration)>);

impl Story {
    pub(super) fn said(&self) -> Vec<&str> {
        self.0.iter().map(|(line, _)| line.as_str()).collect()
    }

    /// The first line that came much earlier or later in another story of the same lines.
    pub(super) fn later(&self, other: &Story) -> Option<String> {
        let pairs = self.0.iter().zip(&other.0);
        let mut apart = pairs.filter(|((_, one), (_, two))| one.abs_diff(*two) > APART);
        apart.next().map(|((line, one), (_, two))| format!("\"{line}\" after {one:?} and {two:?}"))
    }

    /// What was said; a line of the same story that came at another time says so.
    pub(super) fn beside(&self, plain: &Story) -> String {
        let same = self.said() == plain.said();
        let lines = self.0.iter().enumerate().map(|(at, (line, when))| match plain.0.get(at) {
            Some((_, then)) if same && *when + APART < *then => format!("{line}, sooner"),
            Some((_, then)) if same && *then + APART < *when => format!("{line}, later"),
            _ => line.clone(),
        });
        lines.collect::<Vec<_>>().join("; ")
    }

    #[cfg(test)]
    pub(super) fn of(lines: &[(&str, u64)]) -> Story {
        Story(lines.iter().map(|(line, seconds)| ((*line).to_owned(), Duration::from_secs(*seconds))).collect())
    }
}

/// One end of a connection at work.
pub(super) struct End {
    pub(super) stream: TcpStream,
    pub(super) log: Log,
}

impl End {
    pub(super) fn say(&mut self, line: impl Into<String>) {
        self.log.say(line);
    }

    /// Sends bytes that everybody can check.
    pub(super) fn send(&mut self, count: usize) {
        let bytes: Vec<u8> = (0..count).map(|at| at as u8).collect();
        if let Err(error) = self.stream.write_all(&bytes) {
            self.say(format!("send {count}: {}", name(&error)));
        }
    }

    /// Reads exactly so many.
    pub(super) fn take(&mut self, count: usize) {
        let mut bytes = vec![0; count];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) if bytes.iter().enumerate().all(|(at, byte)| *byte == at as u8) => self.say(format!("read {count}")),
            Ok(()) => self.say(format!("read {count}, other bytes than were sent")),
            Err(error) => self.say(format!("read {count}: {}", name(&error))),
        }
    }

    /// Reads to the end; how many bytes, and which end.
    pub(super) fn read_to_end(&mut self) {
        let (mut count, mut buffer) = (0, vec![0; 64 << 10]);
        let end = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break "FIN".to_owned(),
                Ok(got) => count += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break name(&error),
            }
        };
        self.say(format!("read {count}, then {end}"));
    }

    pub(super) fn half_close(&mut self) {
        if let Err(error) = self.stream.shutdown(Shutdown::Write) {
            self.say(format!("shutdown: {}", name(&error)));
        }
    }

    /// Ends with RST instead of FIN.
    pub(super) fn reset(self) -> Log {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        self.log
    }

    /// Waits until the kernel has sent all of it: what it has not, it drops at a reset, with or without a mesh.
    pub(super) fn sent(&mut self) {
        if !until(|| !mesh_net::socket_options::unsent(&self.stream).unwrap_or(false)) {
            self.say("not all could be sent");
        }
    }

    /// Waits until the peer's kernel has acknowledged all of it, an end of data as well.
    pub(super) fn acknowledged(&mut self) {
        match until(|| !mesh_net::socket_options::unacknowledged(&self.stream).unwrap_or(false)) {
            true => self.say("all is acknowledged, the end as well"),
            false => self.say("the end is not acknowledged"),
        }
    }

    /// Waits until so many have come and are unread.
    pub(super) fn arrived(&mut self, count: u64) {
        let mut unread = 0;
        if !until(|| {
            unread = rustix::io::ioctl_fionread(&self.stream).unwrap_or(0);
            unread >= count
        }) {
            self.say(format!("{unread} came instead of {count}"));
        }
    }

    /// Waits for one of these events; whether it came.
    pub(super) fn hears(&self, events: PollFlags) -> bool {
        ways::wait(&self.stream, events, PATIENCE).unwrap_or(false)
    }

    /// Writes until the end is noticed: the first write after a peer's reset or close may still go out.
    pub(super) fn write_until_error(&mut self) {
        let mut wrote = Ok(0);
        until(|| {
            wrote = self.stream.write(b"x");
            wrote.is_err()
        });
        match wrote {
            Err(error) => self.say(format!("write: {}", name(&error))),
            Ok(_) => self.say("write: no error"),
        }
    }

    pub(super) fn done(self) -> Log {
        self.log
    }
}

/// Waits that long, whatever happens: for rows about silence.
pub(super) fn wait(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Waits for a fact; whether it came about.
fn until(mut fact: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        if fact() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// What an error is called: the same on both ends, and in the page.
pub(super) fn name(error: &io::Error) -> String {
    use rustix::io::Errno;
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::AGAIN | Errno::INPROGRESS) => "silence".to_owned(),
        Some(Errno::CONNREFUSED) => "ECONNREFUSED".to_owned(),
        Some(Errno::CONNRESET) => "ECONNRESET".to_owned(),
        Some(Errno::TIMEDOUT) => "ETIMEDOUT".to_owned(),
        Some(Errno::PIPE) => "EPIPE".to_owned(),
        Some(Errno::INVAL) => "EINVAL".to_owned(),
        Some(Errno::HOSTUNREACH) => "EHOSTUNREACH".to_owned(),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => "FIN".to_owned(),
        _ if error.kind() == io::ErrorKind::TimedOut => "silence".to_owned(),
        _ => error.to_string(),
    }
}

/// Plays a row between two pods.
pub(super) fn act(row: &Row, pair: &Pair, v6: bool, port: u16) -> Result<Story> {
    let Pair { client, server, vip } = pair;
    let of = |ips: &[IpAddr]| ips.iter().copied().find(|ip| ip.is_ipv6() == v6).context("an address of the family");
    let (own, peer) = (of(&client.ips())?, of(&server.ips())?);
    let to = SocketAddr::new(if vip.is_empty() { peer } else { of(vip)? }, port);
    let rules = OwnRules::set(row, client, server, SocketAddr::new(peer, port))?;
    let listening = server.in_netns(|| Server::listen(row.listen, peer, own, port))?;
    let from = Instant::now();
    let (served, called) = std::thread::scope(|scope| {
        let serving = listening.as_ref().map(|listening| {
            scope.spawn(move || {
                let mut log = Log::new("server", from);
                match listening.accept() {
                    Some((stream, seen)) => (Some(seen), (row.server)(End { stream, log })),
                    None => {
                        log.say("not reached");
                        (None, log)
                    }
                }
            })
        });
        let mut log = Log::new("client", from);
        let dialled = client.in_netns(|| Ok(dial(row.dial, own, to)));
        let called = match dialled.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(stream) => {
                log.say("connected");
                let at = stream.local_addr().ok();
                (at, (row.client)(End { stream, log }))
            }
            // A handshake that is refused gives ECONNREFUSED. This one was completed, and reset before this thread had looked.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                log.say("connected");
                log.say("read 0, then ECONNRESET");
                (None, log)
            }
            Err(error) => {
                log.say(format!("connect: {}", name(&error)));
                (None, log)
            }
        };
        (serving.map(|serving| serving.join()), called)
    });
    drop(rules);
    let served = served.transpose().map_err(|_| anyhow::anyhow!("the server panicked"))?;
    let (at, mut all) = called;
    if let Some((seen, log)) = served {
        if let (true, Some(at), Some(seen)) = (row.peer, at, seen) {
            let ip = if seen.ip() == at.ip() { "the caller's address" } else { "another address" };
            let port = if seen.port() == at.port() { "port" } else { "another port" };
            all.lines.push((format!("server: called from {ip} and {port}"), Duration::ZERO));
        }
        all.join(log);
    }
    Ok(Story(all.lines))
}

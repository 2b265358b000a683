//! One row played once: a server in one pod, a client in another, and what each of them saw.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{PodHandle, User};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::rows::{Dial, Listen, Row};

/// How long anybody waits for anything; then it is told as silence.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
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
    pub(super) fn say(&mut self, line: impl Into<String>) {
        let line: String = line.into();
        self.lines.push((format!("{}: {line}", self.who), self.from.elapsed()));
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

    /// Writes until the end is noticed: the first write after a peer's reset or close may still go out.
    pub(super) fn write_until_error(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.stream.write(b"x") {
                Err(error) => return self.say(format!("write: {}", name(&error))),
                Ok(_) if Instant::now() > until => return self.say("write: no error"),
                Ok(_) => std::thread::park_timeout(Duration::from_millis(20)),
            }
        }
    }

    pub(super) fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
    }

    pub(super) fn done(self) -> Log {
        self.log
    }
}

/// What an error is called: the same on both ends, and in the page.
pub(super) fn name(error: &io::Error) -> String {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::AGAIN | rustix::io::Errno::INPROGRESS) => "silence".to_owned(),
        Some(rustix::io::Errno::CONNREFUSED) => "ECONNREFUSED".to_owned(),
        Some(rustix::io::Errno::CONNRESET) => "ECONNRESET".to_owned(),
        Some(rustix::io::Errno::TIMEDOUT) => "ETIMEDOUT".to_owned(),
        Some(rustix::io::Errno::PIPE) => "EPIPE".to_owned(),
        Some(rustix::io::Errno::HOSTUNREACH) => "EHOSTUNREACH".to_owned(),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => "FIN".to_owned(),
        _ if error.kind() == io::ErrorKind::TimedOut => "silence".to_owned(),
        _ => error.to_string(),
    }
}

/// Plays a row between two pods.
pub(super) fn act(
    row: &Row,
    client: &PodHandle,
    server: &PodHandle,
    vip: &[IpAddr],
    v6: bool,
    port: u16,
) -> Result<Story> {
    let of = |ips: &[IpAddr]| ips.iter().copied().find(|ip| ip.is_ipv6() == v6).context("an address of the family");
    let (own, peer) = (of(&client.ips())?, of(&server.ips())?);
    let to = SocketAddr::new(if vip.is_empty() { peer } else { of(vip)? }, port);
    rules(row.client_rules, client, port, "client")?;
    rules(row.server_rules, server, port, "server")?;
    let listener = server.in_netns(|| listen(row.listen, peer, own, port))?;
    let from = Instant::now();
    let log = |who| Log { who, from, lines: Vec::new() };
    let (served, called) = std::thread::scope(|scope| {
        let serving = listener.as_ref().map(|listener| {
            scope.spawn(move || {
                let mut log = log("server");
                match listener.accept() {
                    Ok((socket, peer)) => {
                        let stream = ready(socket);
                        let seen = peer.as_socket().map(|seen| SocketAddr::new(seen.ip().to_canonical(), seen.port()));
                        if row.peer {
                            let port = seen.map_or(0, |seen| seen.port());
                            let port = if port < 1024 { "a privileged port" } else { "another port" };
                            let ip = if seen.map(|seen| seen.ip()) == Some(own) {
                                "the caller's address"
                            } else {
                                "another address"
                            };
                            log.say(format!("called from {ip} and {port}"));
                        }
                        (row.server)(End { stream, log })
                    }
                    Err(_) => {
                        log.say("not reached");
                        log
                    }
                }
            })
        });
        let mut log = log("client");
        let called = match client.in_netns(|| Ok(dial(row.dial, own, to))) {
            Ok(Ok(stream)) => {
                log.say("connected");
                (row.client)(End { stream, log })
            }
            Ok(Err(error)) => {
                log.say(format!("connect: {}", name(&error)));
                log
            }
            Err(error) => {
                log.say(format!("connect: {error:#}"));
                log
            }
        };
        let served = serving.map(|serving| serving.join());
        (served, called)
    });
    rules_gone(row, client, server, port);
    let served = served.transpose().map_err(|_| anyhow::anyhow!("the server panicked"))?;
    Ok(Story(called.lines.into_iter().chain(served.into_iter().flat_map(|log| log.lines)).collect()))
}

/// A pod's own rules for the time of a row; `PORT` stands for the port.
fn rules(text: Option<&str>, pod: &PodHandle, port: u16, side: &str) -> Result<()> {
    let Some(text) = text else { return Ok(()) };
    let text = text.replace("PORT", &port.to_string()).replace("NEXT", &(port + 1).to_string());
    let table = format!("table inet own-{side}-{port} {{ {text}; }}");
    pod.exec_as(User::root(), &["nft", &format!("add {table}")])?.ok().context("the pod's own rules")?;
    Ok(())
}

fn rules_gone(row: &Row, client: &PodHandle, server: &PodHandle, port: u16) {
    for (given, pod, side) in [(row.client_rules, client, "client"), (row.server_rules, server, "server")] {
        if given.is_some() {
            // The pod may have gone meanwhile; then so have its rules.
            let _ = pod.exec_as(User::root(), &["nft", &format!("delete table inet own-{side}-{port}")]);
        }
    }
}

fn listen(how: Listen, own: IpAddr, caller: IpAddr, port: u16) -> Result<Option<Socket>> {
    let port = if how == Listen::NextPort { port + 1 } else { port };
    let any: IpAddr = if own.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let local: IpAddr = if own.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let at = match how {
        Listen::Nowhere => return Ok(None),
        Listen::Family | Listen::Device | Listen::Signed | Listen::NextPort => any,
        Listen::Dual => Ipv6Addr::UNSPECIFIED.into(),
        Listen::Loopback => local,
        Listen::OwnAddress => own,
    };
    let at = SocketAddr::new(at, port);
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(how != Listen::Dual)?;
    }
    socket.set_reuse_address(true)?;
    if how == Listen::Device {
        socket.bind_device(Some(b"eth0"))?;
    }
    if how == Listen::Signed {
        mesh_net::md5::sign(&socket, caller, b"secret").context("a signed socket")?;
    }
    socket.bind(&at.into()).with_context(|| format!("bind {at}"))?;
    socket.listen(16)?;
    socket.set_read_timeout(Some(PATIENCE + PATIENCE / 2))?;
    Ok(Some(socket))
}

fn ready(socket: Socket) -> TcpStream {
    let stream = TcpStream::from(socket);
    let _ = stream.set_read_timeout(Some(PATIENCE * 2));
    let _ = stream.set_write_timeout(Some(PATIENCE * 2));
    let _ = stream.set_nodelay(true);
    stream
}

fn dial(how: Dial, own: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    match how {
        Dial::Ordinary => {}
        Dial::PrivilegedPort => {
            socket.set_reuse_address(true)?;
            // One of its own for each called port: several run at once.
            socket.bind(&SocketAddr::new(own, 600 + to.port() % 400).into())?;
        }
        Dial::Signed => mesh_net::md5::sign(&socket, to.ip(), b"secret")?,
        Dial::UserTimeout => socket.set_tcp_user_timeout(Some(Duration::from_secs(1)))?,
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(ready(socket))
}

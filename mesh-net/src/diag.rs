//! sock_diag: which TCP sockets exist in a namespace, asked by exact 4-tuple, or listed.
//!
//! The socket answers for the namespace it was opened in, whoever holds it: an uncapable worker asks on one that was opened in the
//! node's netns. Two holders of one socket would take each other's answers, so each thread has its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

// linux/sock_diag.h, linux/inet_diag.h, linux/netlink.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const REQUEST: usize = 56;
// include/net/tcp_states.h
const TCP_FIN_WAIT1: u8 = 4;
const TCP_FIN_WAIT2: u8 = 5;
const TCP_SYN_SENT: u8 = 2;
const TCP_SYN_RECV: u8 = 3;
const TCP_TIME_WAIT: u8 = 6;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;
/// Every state but that of a listener and of one that is closed.
const CONNECTED: u32 = 0x1fff & !(1 << TCP_LISTEN) & !(1 << TCP_CLOSE);
/// `struct inet_diag_msg`; attributes follow.
const MESSAGE: usize = 72;
/// `INET_DIAG_MARK`: told to whoever has NET_ADMIN over the namespace.
const MARK: u16 = 15;
/// A list that changes while it is made is made again this often (guess).
const LIST_TRIES: u32 = 8;
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// A listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: SocketAddr,
    /// `SO_MARK`.
    pub mark: u32,
}

/// A TCP socket that is no listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Its own end.
    pub local: SocketAddr,
    /// The far end.
    pub remote: SocketAddr,
    /// `SO_MARK`; zero where the kernel keeps none (TIME_WAIT).
    pub mark: u32,
    /// Both sides have ended; the kernel keeps a note for a while.
    pub has_ended: bool,
}

/// A NETLINK_SOCK_DIAG socket.
#[derive(Debug)]
pub struct Diag {
    fd: OwnedFd,
    sequence: u32,
}

impl Diag {
    /// For the namespace that the calling thread is in.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(Self::from_fd(rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(netlink::SOCK_DIAG),
        )?))
    }

    /// Takes one that was opened elsewhere.
    pub fn from_fd(fd: OwnedFd) -> Self {
        // A former holder may have left answers unread; theirs will not carry our numbers.
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.subsec_nanos());
        Self { fd, sequence: now }
    }

    /// The descriptor, for passing on.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Whether a socket with exactly these ends exists whose far end has answered to it: one that is still connecting, or being connected
    /// to, proves nothing about who is there. One that has ended counts.
    pub fn has_socket(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        let (local, remote) = (canonical(local), canonical(remote));
        if local.is_ipv4() != remote.is_ipv4() {
            return Ok(false);
        }
        let mut found = false;
        self.ask(&request(local, remote, u32::MAX), 0, &mut |socket| {
            // The kernel's lookup falls back to a listener on the local port, and would find a socket by a different scope.
            let unproven =
                [TCP_SYN_SENT, TCP_SYN_RECV, TCP_NEW_SYN_RECV, TCP_CLOSE, TCP_LISTEN].contains(&socket.state);
            found |= !unproven && socket.local == local && socket.remote == remote;
        })?;
        Ok(found)
    }

    /// Whether the socket with exactly these ends has been closed by its process, and not only half-closed: the kernel brings it to its
    /// end alone, and what is sent to it meets a reset. One that is not found says nothing.
    pub fn is_orphan(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        let (local, remote) = (canonical(local), canonical(remote));
        if local.is_ipv4() != remote.is_ipv4() {
            return Ok(false);
        }
        let mut found = false;
        self.ask(&request(local, remote, u32::MAX), 0, &mut |socket| {
            let ends = [TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_TIME_WAIT].contains(&socket.state);
            found |= ends && socket.inode == 0 && socket.local == local && socket.remote == remote;
        })?;
        Ok(found)
    }

    /// All listening TCP sockets.
    pub fn listeners(&mut self) -> io::Result<Vec<Listener>> {
        let mut found = Vec::new();
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let zero = SocketAddr::new(any, 0);
            self.ask(&request(zero, zero, 1 << TCP_LISTEN), NLM_F_DUMP, &mut |socket| {
                if socket.state == TCP_LISTEN {
                    found.push(Listener { address: socket.raw_local, mark: socket.mark });
                }
            })?;
        }
        Ok(found)
    }

    /// All connections, in whatever state, that are wanted.
    pub fn connections(&mut self, wanted: impl Fn(&Connection) -> bool) -> io::Result<Vec<Connection>> {
        let mut tries = 0;
        loop {
            match self.connections_once(&wanted) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < LIST_TRIES => tries += 1,
                done => return done,
            }
        }
    }

    fn connections_once(&mut self, wanted: &impl Fn(&Connection) -> bool) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        // Mapped IPv4 stands among IPv6.
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let zero = SocketAddr::new(any, 0);
            self.ask(&request(zero, zero, CONNECTED), NLM_F_DUMP, &mut |socket| {
                let Socket { state, local, remote, mark, raw_local: _, inode: _ } = socket;
                let connection = Connection { local, remote, mark, has_ended: state == TCP_TIME_WAIT };
                found.extend(Some(connection).filter(|connection| wanted(connection)));
            })?;
        }
        Ok(found)
    }

    /// Sends one request and feeds every socket of the answer to `each`. The kernel answers within the send (and each receive of a
    /// dump), so nothing is waited for.
    fn ask(&mut self, body: &[u8; REQUEST], flags: u16, each: &mut dyn FnMut(Socket)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = Vec::with_capacity(HEADER + REQUEST);
        packet.extend(u32::to_ne_bytes((HEADER + REQUEST) as u32));
        packet.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        packet.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        packet.extend(self.sequence.to_ne_bytes());
        packet.extend([0; 4]);
        packet.extend(body);
        rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, &packet, SendFlags::empty()))?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let (length, _) =
                rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT))?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if self.read(&buffer[..length.min(32 * 1024)], flags & NLM_F_DUMP != 0, each)? {
                return Ok(());
            }
        }
    }

    /// Reads one datagram; `true` when the answer is complete.
    fn read(&self, mut rest: &[u8], dump: bool, each: &mut dyn FnMut(Socket)) -> io::Result<bool> {
        while let Some(header) = Header::read(rest) {
            let length = header.length.clamp(HEADER, rest.len());
            let body = &rest[HEADER..length];
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            if header.sequence != self.sequence {
                continue;
            }
            if header.flags & NLM_F_DUMP_INTR != 0 && dump {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "sockets changed while they were listed"));
            }
            match header.kind {
                NLMSG_DONE => return Ok(true),
                NLMSG_ERROR => {
                    let code = body.first_chunk().map_or(-libc::EPROTO, |code| i32::from_ne_bytes(*code));
                    return match -code {
                        0 | libc::ENOENT => Ok(true),
                        errno => Err(io::Error::from_raw_os_error(errno)),
                    };
                }
                SOCK_DIAG_BY_FAMILY => {
                    if let Some(socket) = Socket::read(body) {
                        each(socket);
                    }
                    if !dump {
                        return Ok(true);
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }
}

impl AsFd for Diag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct Header {
    length: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *bytes.first_chunk::<HEADER>()?;
        Some(Self {
            length: u32::from_ne_bytes([l0, l1, l2, l3]) as usize,
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        })
    }
}

/// The part of inet_diag_msg that we use.
struct Socket {
    state: u8,
    local: SocketAddr,
    remote: SocketAddr,
    raw_local: SocketAddr,
    mark: u32,
    /// Of the file that processes have of it; 0: none has.
    inode: u32,
}

impl Socket {
    /// struct inet_diag_msg: family, state, timer, retrans, then inet_diag_sockid: ports, two 16-byte addresses.
    fn read(body: &[u8]) -> Option<Self> {
        let [family, state, _timer, _retrans, ports_and_addresses @ ..] = body.first_chunk::<40>()?;
        let [s0, s1, d0, d1, addresses @ ..] = ports_and_addresses;
        let (source, destination) = addresses.split_first_chunk::<16>()?;
        let destination = destination.first_chunk::<16>()?;
        let local = SocketAddr::new(address(*family, source)?, u16::from_be_bytes([*s0, *s1]));
        let remote = SocketAddr::new(address(*family, destination)?, u16::from_be_bytes([*d0, *d1]));
        let attributes = crate::netlink::Attributes::nested(body.get(MESSAGE..).unwrap_or_default());
        let mark = attributes.ne32(MARK).unwrap_or(0);
        // Its last field, behind expires, queues and uid.
        let inode = body.get(MESSAGE - 4..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
        let (raw_local, local, remote) = (local, canonical(local), canonical(remote));
        Some(Self { state: *state, local, remote, raw_local, mark, inode })
    }
}

fn address(family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

/// Mapped addresses become IPv4; scopes and flow labels are not compared.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// struct inet_diag_req_v2.
fn request(local: SocketAddr, remote: SocketAddr, states: u32) -> [u8; REQUEST] {
    let mut out = [0; REQUEST];
    out[0] = if local.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 };
    out[1] = libc::IPPROTO_TCP as u8;
    out[4..8].copy_from_slice(&states.to_ne_bytes());
    out[8..10].copy_from_slice(&local.port().to_be_bytes());
    out[10..12].copy_from_slice(&remote.port().to_be_bytes());
    for (at, ip) in [(12, local.ip()), (28, remote.ip())] {
        match ip {
            IpAddr::V4(v4) => out[at..at + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => out[at..at + 16].copy_from_slice(&v6.octets()),
        }
    }
    out[48..56].copy_from_slice(&NO_COOKIE);
    out
}

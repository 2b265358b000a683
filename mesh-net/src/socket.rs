//! TCP sockets with the options that capture needs: per-pod listeners, minted sockets, and what is asked of accepted ones.
//!
//! `listen` and `mint` make sockets in the *current* namespace: call them inside [`crate::Netns::run`]. What a socket may do
//! afterwards (bind a foreign source, carry the mark) stays with it when it is passed to a process without capabilities.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use mesh_model::{Mark, OrigDst};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use crate::socket_options::set_option;

/// What a minted socket is for; decides its options (as `mesh_api::link::worker::Purpose` documents).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Towards the pod's own application, from a foreign source address.
    TowardsApp,
    /// From the pod to the world.
    TowardsPeer,
}

/// Address family of a minted socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

impl Family {
    /// The family in which `address` is reached (an IPv4-mapped address is IPv4).
    pub fn of(address: std::net::IpAddr) -> Self {
        if address.to_canonical().is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program of the pod has the port.
    #[error("port {port} is in use by another program in the pod")]
    InUse {
        /// The port.
        port: u16,
    },
    /// The kernel refused otherwise.
    #[error("open listener on port {port}")]
    Kernel {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What reaches a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// What is sent to its own port.
    OwnPort,
    /// Also what rules steer to it (`IP_TRANSPARENT`), with the destination that it has: see [`mesh_model::ports::LANDING`].
    Steered,
    /// The same, and rules know its packets, those of its connections, and those of what is left of them by this mark and by being
    /// transparent ([`crate::capture`]).
    Owned(Mark),
}

/// A listener on every address of the current namespace, IPv4 and IPv6 on one socket (IPv4 alone where the kernel has no IPv6).
/// Accepted connections inherit TCP_NODELAY and the keepalive settings.
pub fn listen(port: u16, reach: Reach, backlog: u32) -> Result<OwnedFd, ListenError> {
    open_listener(port, reach, backlog).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { port },
        _ => ListenError::Kernel { port, source },
    })
}

fn open_listener(port: u16, reach: Reach, backlog: u32) -> io::Result<OwnedFd> {
    let (socket, address): (Socket, SocketAddr) = match stream(Domain::IPV6) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            (socket, (Ipv6Addr::UNSPECIFIED, port).into())
        }
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            (stream(Domain::IPV4)?, (Ipv4Addr::UNSPECIFIED, port).into())
        }
        Err(error) => return Err(error),
    };
    give(&socket, address, reach)?;
    // Connections of an earlier listener that still linger must not bar the port. A live listener of another program still does.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    keepalive(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

fn give(socket: &Socket, address: SocketAddr, reach: Reach) -> io::Result<()> {
    let (steered, mark) = match reach {
        Reach::OwnPort => (false, 0),
        Reach::Steered => (true, 0),
        Reach::Owned(mark) => (true, mark.value()),
    };
    socket.set_mark(mark)?;
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(steered),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(steered),
    }
}

/// The port of a listening TCP socket on every address; `None` for any other socket.
pub fn listening_port(fd: &impl AsFd) -> io::Result<Option<u16>> {
    let socket = SockRef::from(fd);
    let is_listener = socket.r#type()? == Type::STREAM && socket.is_listener()?;
    let address = socket.local_addr()?.as_socket();
    Ok(address.filter(|address| is_listener && address.ip().is_unspecified()).map(|address| address.port()))
}

/// Sets what reaches a listener that somebody else opened.
pub fn set_reach(fd: &impl AsFd, reach: Reach) -> io::Result<()> {
    let socket = SockRef::from(fd);
    let address = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))?;
    give(&socket, address, reach)
}

/// An unbound, unconnected, non-blocking socket in the current namespace, carrying the mark that exempts it from capture. Transparent for
/// any purpose: what is left of a connection (TIME_WAIT) has no mark, and is known by that ([`crate::capture`]). What has a foreign source
/// does not leave the pod.
pub fn mint(family: Family, purpose: Purpose, mark: Mark) -> io::Result<OwnedFd> {
    let socket = match family {
        Family::V4 => stream(Domain::IPV4)?,
        Family::V6 => stream(Domain::IPV6)?,
    };
    socket.set_mark(mark.value())?;
    socket.set_tcp_nodelay(true)?;
    bind_address_no_port(&socket)?;
    match family {
        Family::V4 => socket.set_ip_transparent_v4(true)?,
        Family::V6 => socket.set_ip_transparent_v6(true)?,
    }
    if purpose == Purpose::TowardsPeer {
        return Ok(socket.into());
    }
    match family {
        Family::V4 => socket.set_freebind_v4(true)?,
        Family::V6 => socket.set_freebind_v6(true)?,
    }
    socket.set_reuse_address(true)?;
    // Without it 28,232 connections in 60 s from one source exhaust the port range: TIME_WAIT is looked up per device (seen).
    socket.bind_device(Some(b"lo"))?;
    Ok(socket.into())
}

/// Gives a minted socket its source address; port 0 leaves the choice to `connect` (IP_BIND_ADDRESS_NO_PORT).
pub fn bind_source(fd: &impl AsFd, source: SocketAddr) -> io::Result<()> {
    SockRef::from(fd).bind(&SockAddr::from(source))
}

/// Ports that `connect` hands out by itself where nobody changed it: the kernel's default of `net.ipv4.ip_local_port_range` (ip(7)).
const HANDED_OUT: RangeInclusive<u16> = 32_768..=60_999;

/// Gives a minted socket its source address, and its port where that is free when it connects; [`bind_source`] with any port is left for
/// a `connect` that says it is not.
///
/// A port that `connect` hands out is asked of `connect`: it shares ports between connections that differ in anything else, but takes none
/// that some socket was bound to explicitly. Bound here, the callers' ports would one by one be lost to the namespace's own connections.
pub fn bind_caller(fd: &impl AsFd, source: SocketAddr) -> io::Result<()> {
    // An older kernel does not know the option.
    if HANDED_OUT.contains(&source.port()) && prefer_port(fd, Some(source.port())).is_ok() {
        return bind_source(fd, SocketAddr::new(source.ip(), 0)).inspect_err(|_| drop(prefer_port(fd, None)));
    }
    bind_source(fd, source)
}

/// Has `connect` choose this port alone for a socket that is bound to none, or with `None` any again. ip(7), IP_LOCAL_PORT_RANGE: Linux 6.3;
/// a port outside of the namespace's own range is passed over in silence. Works for IPv6 sockets at level IP too.
pub fn prefer_port(fd: &impl AsFd, port: Option<u16>) -> io::Result<()> {
    // The lowest port in the low half, the highest in the high one; zero is no range.
    let range = port.map_or(0, u32::from);
    set_option(fd, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, (range << 16 | range).cast_signed())
}

/// linux/in.h; the libc crate does not have it.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

/// Where a connection that was steered without a translation wanted to go: the accepted socket's own address.
pub fn steered_dst(fd: &impl AsFd) -> Option<OrigDst> {
    SockRef::from(fd).local_addr().ok()?.as_socket().map(OrigDst::new)
}

/// Where an accepted connection wanted to go before the redirect; `None` when the kernel does not know (no conntrack entry).
pub fn original_dst(fd: &impl AsFd) -> Option<OrigDst> {
    let socket = SockRef::from(fd);
    let local = socket.local_addr().ok()?.as_socket()?;
    // An IPv4 connection on a dual-stack listener is an AF_INET6 socket with a mapped address; the kernel answers it at level IP.
    let original =
        if local.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    Some(OrigDst::new(original.ok()?.as_socket()?))
}

/// Closing it will send RST instead of FIN and keep no TIME_WAIT.
pub fn reset_on_close(fd: &impl AsFd) -> io::Result<()> {
    SockRef::from(fd).set_linger(Some(Duration::ZERO))
}

/// Small writes go out at once.
pub fn nodelay(fd: &impl AsFd) -> io::Result<()> {
    SockRef::from(fd).set_tcp_nodelay(true)
}

/// A dead far end is noticed after 180 s of silence and 9 unanswered probes 180 s apart (the reference proxy's figures).
pub fn keepalive(fd: &impl AsFd) -> io::Result<()> {
    let every = Duration::from_secs(180);
    SockRef::from(fd).set_tcp_keepalive(&TcpKeepalive::new().with_time(every).with_interval(every).with_retries(9))
}

/// The most that a listener of the current namespace may queue.
pub fn somaxconn() -> u32 {
    let read = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
    // 4096: the kernel's default since 5.4, for a /proc without sysctls.
    read.and_then(|text| text.trim().parse().ok()).unwrap_or(4096)
}

fn stream(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))
}

/// ip(7): the port is chosen at `connect`, when the whole 4-tuple is known. Works for IPv6 sockets at level IP too. Minted sockets have it.
pub fn bind_address_no_port(fd: &impl AsFd) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, TcpListener, TcpStream};
    use std::process::Command;

    use super::*;
    use crate::Netns;

    /// A namespace whose connections have ten ports.
    fn ten_ports() -> Netns {
        let pod = Netns::create().expect("needs root");
        let command = "ip link set lo up && echo 40000 40009 > /proc/sys/net/ipv4/ip_local_port_range";
        let done = pod.run(|| Command::new("sh").args(["-c", command]).status()).expect("entered").expect("sh runs");
        assert!(done.success());
        pod
    }

    fn connect(fd: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::from(fd);
        socket.set_nonblocking(false)?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    }

    const FAMILIES: [(Family, IpAddr); 2] =
        [(Family::V4, IpAddr::V4(Ipv4Addr::LOCALHOST)), (Family::V6, IpAddr::V6(Ipv6Addr::LOCALHOST))];

    #[test]
    fn a_callers_port_is_taken_and_stays_free_for_the_namespaces_own_connections() {
        let mark = Mark::from_random(0x1234_5678).expect("not a reserved value");
        for (family, ip) in FAMILIES {
            let pod = ten_ports();
            pod.run(|| {
                let [app_at, other_at] = [7_000, 7_001].map(|port| SocketAddr::new(ip, port));
                let [app, other] = [app_at, other_at].map(|at| TcpListener::bind(at).expect("bind"));
                let mut held = Vec::new();
                for port in 40_000..=40_009 {
                    let minted = mint(family, Purpose::TowardsApp, mark).expect("mint");
                    bind_caller(&minted, SocketAddr::new(ip, port)).expect("bind");
                    held.push((connect(minted, app_at).expect("connect"), app.accept().expect("accept")));
                    assert_eq!(held.last().map(|(_, (_, seen))| seen.port()), Some(port));
                }
                // Each of the ten has a connection, and none of them to the other listener.
                for _ in 0..10 {
                    held.push((TcpStream::connect(other_at).expect("its own"), other.accept().expect("accept")));
                }
            })
            .expect("entered");
        }
    }

    #[test]
    fn a_callers_port_that_is_not_free_is_told_by_connect_and_any_other_can_be_had() {
        let mark = Mark::from_random(0x1234_5678).expect("not a reserved value");
        for (family, ip) in FAMILIES {
            let pod = ten_ports();
            pod.run(|| {
                let to = SocketAddr::new(ip, 7_000);
                let _app = TcpListener::bind(to).expect("bind");
                let from = |port| {
                    let minted = mint(family, Purpose::TowardsApp, mark).expect("mint");
                    bind_caller(&minted, SocketAddr::new(ip, port)).expect("bind");
                    minted
                };
                let _first = connect(from(40_003), to).expect("connect");
                let taken = connect(from(40_003), to).expect_err("this very connection exists");
                assert_eq!(taken.kind(), io::ErrorKind::AddrNotAvailable);
                let again = from(40_003);
                prefer_port(&again, None).expect("any again");
                connect(again, to).expect("by another port");
                // Not one of those that are handed out: bound, as it has always been.
                let bound = connect(from(61_000), to).expect("connect");
                assert_eq!(bound.local_addr().expect("address").port(), 61_000);
            })
            .expect("entered");
        }
    }
}

//! The programs that run in pods: servers of several kinds (`culvert-lab app`) and clients (`culvert-lab client`).
//!
//! They know nothing of the mesh. Servers count what reaches them into a file, clients print one JSON report: what a
//! test asserts is what an app saw.

pub mod bulk;
pub mod client;
pub mod live;
pub mod probe;
pub mod server;
pub mod stats;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

/// Runs a future on a runtime of one thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(future);
    // tokio's reader of standard input sits in a thread that nothing wakes: it is left behind, not waited for.
    runtime.shutdown_background();
    done
}

/// An IPv4-mapped address as the IPv4 address it is.
pub(crate) fn unmapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::V4(SocketAddrV4::new(v4, v6.port())),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}

/// Every address of a `host:port`; names through /etc/hosts.
pub(crate) async fn resolve(target: &str) -> Result<Vec<SocketAddr>> {
    let all: Vec<SocketAddr> =
        tokio::net::lookup_host(target).await.with_context(|| format!("look up {target}"))?.collect();
    anyhow::ensure!(!all.is_empty(), "{target} has no address");
    Ok(all)
}

/// How a client's socket differs from an ordinary one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SocketOptions {
    pub(crate) source_port: Option<u16>,
    pub(crate) mark: Option<u32>,
}

/// Connects within a deadline.
pub(crate) async fn dial(to: SocketAddr, options: SocketOptions, deadline: Duration) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    if let Some(port) = options.source_port {
        socket.set_reuse_address(true)?;
        let any: IpAddr = if to.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { Ipv6Addr::UNSPECIFIED.into() };
        socket.bind(&SocketAddr::new(any, port).into())?;
    }
    let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
    let connecting = tokio::time::timeout(deadline, socket.connect(to)).await;
    connecting.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// A short, closed set of words for how an attempt failed.
pub(crate) fn outcome(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused => "refused",
        Kind::ConnectionReset | Kind::BrokenPipe | Kind::NotConnected => "reset",
        Kind::TimedOut => "timeout",
        Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => "unreachable",
        Kind::AddrNotAvailable | Kind::AddrInUse => "no-address",
        Kind::PermissionDenied => "not-permitted",
        Kind::UnexpectedEof => "eof",
        _ => "other",
    }
}

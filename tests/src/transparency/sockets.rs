//! The sockets of a row: how a server listens, how a client dials, and what the pods' own rules are meanwhile.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{PodHandle, User};
use socket2::{Domain, Protocol, Socket, Type};

use super::play::{PATIENCE, wait};
use super::rows::{Dial, Listen, Row};

/// How long a server waits for its caller, and either end for bytes: longer than a connect may take.
const FOR_BYTES: Duration = PATIENCE.saturating_add(Duration::from_secs(2));
/// When a listener that was full has room again. Kernels ask again a second after the first SYN, and then two or three seconds after it:
/// far enough from "at once" either way.
const ROOM_AFTER: Duration = Duration::from_millis(1500);

/// A listening socket, and what fills it.
pub(super) struct Server {
    socket: Socket,
    how: Listen,
    _filling: Option<TcpStream>,
}

impl Server {
    pub(super) fn listen(how: Listen, own: IpAddr, caller: IpAddr, port: u16) -> Result<Option<Server>> {
        let port = if how == Listen::NextPort { port + 1 } else { port };
        let any = |v6: bool| -> IpAddr { if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() } };
        let ip = match how {
            Listen::Nowhere => return Ok(None),
            Listen::Dual => any(true),
            Listen::OtherFamily => any(own.is_ipv4()),
            Listen::Loopback if own.is_ipv6() => Ipv6Addr::LOCALHOST.into(),
            Listen::Loopback => Ipv4Addr::LOCALHOST.into(),
            Listen::OwnAddress => own,
            Listen::Family
            | Listen::Device
            | Listen::Signed
            | Listen::NextPort
            | Listen::Full
            | Listen::FullAtFirst => any(own.is_ipv6()),
        };
        let at = SocketAddr::new(ip, port);
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
        let fills = matches!(how, Listen::Full | Listen::FullAtFirst);
        socket.listen(if fills { 0 } else { 16 })?;
        socket.set_read_timeout(Some(FOR_BYTES))?;
        // A queue of length 0 holds one connection (`sk_acceptq_is_full`).
        let filling = fills.then(|| TcpStream::connect_timeout(&SocketAddr::new(own, port), PATIENCE)).transpose();
        Ok(Some(Server { socket, how, _filling: filling.context("fill the listener")? }))
    }

    /// The caller; nobody when it does not come in time.
    pub(super) fn accept(&self) -> Option<(TcpStream, SocketAddr)> {
        match self.how {
            // Nobody accepts at all.
            Listen::Full => return None,
            Listen::FullAtFirst => {
                wait(ROOM_AFTER);
                drop(self.socket.accept());
            }
            _ => {}
        }
        let (socket, peer) = self.socket.accept().ok()?;
        let peer = peer.as_socket()?;
        Some((ready(socket), SocketAddr::new(peer.ip().to_canonical(), peer.port())))
    }
}

fn ready(socket: Socket) -> TcpStream {
    let stream = TcpStream::from(socket);
    let _ = stream.set_read_timeout(Some(FOR_BYTES));
    let _ = stream.set_write_timeout(Some(FOR_BYTES));
    let _ = stream.set_nodelay(true);
    stream
}

pub(super) fn dial(how: Dial, own: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
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

/// Rules of the pods' own, for the time of a row.
pub(super) struct OwnRules<'p> {
    tables: Vec<(&'p PodHandle, String)>,
}

impl<'p> OwnRules<'p> {
    pub(super) fn set(row: &Row, client: &'p PodHandle, server: &'p PodHandle, to: SocketAddr) -> Result<Self> {
        let mut rules = OwnRules { tables: Vec::new() };
        for (text, pod, side) in [(row.client_rules, client, "client"), (row.server_rules, server, "server")] {
            let Some(text) = text else { continue };
            let (family, address) = match to.ip() {
                IpAddr::V4(ip) => ("ip", ip.to_string()),
                IpAddr::V6(ip) => ("ip6", format!("[{ip}]")),
            };
            let text = text.replace("FAMILY", family).replace("ADDRESS", &address);
            let text = text.replace("PORT", &to.port().to_string()).replace("NEXT", &(to.port() + 1).to_string());
            let name = format!("own-{side}-{family}-{}", to.port());
            let table = format!("add table inet {name} {{ {text}; }}");
            rules.tables.push((pod, name));
            pod.exec_as(User::root(), &["nft", &table])?.ok().context("the pod's own rules")?;
        }
        Ok(rules)
    }
}

impl Drop for OwnRules<'_> {
    fn drop(&mut self) {
        for (pod, name) in &self.tables {
            // The pod may have gone meanwhile; then so have its rules.
            let _ = pod.exec_as(User::root(), &["nft", &format!("delete table inet {name}")]);
        }
    }
}

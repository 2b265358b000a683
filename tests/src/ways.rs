//! A client and a server that talk over each way of the mesh: their sockets are the test's own, made in the pods' networks.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{App, Pod, PodHandle, User};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::support::{Clear, Watched};
use crate::talk;

/// Pods for every way.
pub(crate) struct Ways {
    pub(crate) lab: Watched,
    cart: PodHandle,
    near: PodHandle,
    far: PodHandle,
    pub(crate) stranger: PodHandle,
    other: PodHandle,
}

/// From whom to whom.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) client: PodHandle,
    pub(crate) server: PodHandle,
}

impl Ways {
    pub(crate) fn open(lab: Watched) -> Result<Ways> {
        let pod = |namespace: &str, name: &str, node| lab.add_pod(Pod::new(namespace, name).node(node).app(App::None));
        let (cart, near, far) = (pod("shop", "cart", 1)?, pod("shop", "near", 1)?, pod("shop", "far", 2)?);
        let (stranger, other) = (pod("outside", "stranger", 1)?, pod("outside", "other", 2)?);
        for outside in [&stranger, &other] {
            lab.allow("a stranger to the mesh", Clear::of(outside));
        }
        talk::everyone_known(&lab, &[&cart, &near, &far])?;
        Ok(Ways { lab, cart, near, far, stranger, other })
    }

    /// Through a tunnel.
    pub(crate) fn tunnel(&self) -> Way {
        Way { name: "tunnel", client: self.cart.clone(), server: self.far.clone() }
    }

    /// To somebody outside of the mesh.
    pub(crate) fn out(&self) -> Way {
        Way { name: "plaintext out", client: self.cart.clone(), server: self.other.clone() }
    }

    /// From somebody outside of the mesh.
    pub(crate) fn inward(&self) -> Way {
        Way { name: "plaintext in", client: self.stranger.clone(), server: self.far.clone() }
    }

    /// Every way, the one without a mesh first.
    pub(crate) fn all(&self) -> [Way; 5] {
        [
            Way { name: "no mesh", client: self.stranger.clone(), server: self.other.clone() },
            self.tunnel(),
            Way { name: "same node", client: self.cart.clone(), server: self.near.clone() },
            self.inward(),
            self.out(),
        ]
    }
}

impl Way {
    /// A listener on every address of the server's pod.
    pub(crate) fn listen(&self, port: u16) -> Result<TcpListener> {
        self.server.in_netns(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?))
    }

    /// A connection to that listener; reads and writes have a deadline.
    pub(crate) fn connect(&self, ip: IpAddr, port: u16) -> Result<TcpStream> {
        let stream = talk::connect(&self.client, SocketAddr::new(ip, port))?;
        stream.with_context(|| format!("{}: connect to {ip}", self.name))
    }

    /// Drops in the server's pod what matches this, until the pod ends.
    pub(crate) fn drop_at(pod: &PodHandle, what: &str) -> Result<()> {
        let rules = format!(
            "add table inet blackhole; add chain inet blackhole in {{ type filter hook input priority -400; }}; \
             add rule inet blackhole in {what} drop"
        );
        pod.exec_as(User::root(), &["nft", &rules])?.ok().map(drop)
    }
}

/// Takes the next connection, within the time that an answer may take.
pub(crate) fn accept(listener: &TcpListener) -> Result<TcpStream> {
    ensure!(wait(listener, PollFlags::IN, talk::PATIENCE)?, "nobody came");
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(talk::PATIENCE))?;
    stream.set_write_timeout(Some(talk::PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether one of these events comes in time.
pub(crate) fn wait(fd: &impl std::os::fd::AsFd, events: PollFlags, deadline: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, events)];
    let deadline = Timespec::try_from(deadline).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(poll(&mut fds, Some(&deadline))? > 0)
}

/// Closes it by RST.
pub(crate) fn reset(stream: TcpStream) -> io::Result<()> {
    mesh_net::socket::reset_on_close(&stream)
}

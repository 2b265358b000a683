//! Two namespaces joined by a veth pair: a pod, and the world around it. Both families, no duplicate address detection.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use mesh_model::Mark;
use mesh_net::capture::{Mode, Session, Spec, Stage};
use mesh_net::{Netns, socket};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub const V4: usize = 0;
pub const V6: usize = 1;
pub const FAMILIES: [usize; 2] = [V4, V6];
/// Longer than anything on one machine takes, short enough for a test that waits for nothing to come.
pub const SOON: Duration = Duration::from_millis(1500);

pub struct Bed {
    pub pod: Netns,
    pub world: Netns,
}

pub fn mark() -> Mark {
    Mark::from_random(0x1234_5678).unwrap()
}

pub fn spec(stage: Stage) -> Spec {
    Spec { stage, mark: mark(), generation: 1 }
}

impl Bed {
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let (pod, world) = (Netns::create().unwrap(), Netns::create().unwrap());
        let bed = Self { pod, world };
        let peer = format!("/proc/{}/fd/{}", std::process::id(), rustix::fd::AsFd::as_fd(&bed.world).as_raw_fd());
        bed.pod_sh(&format!("ip link add eth0 type veth peer name eth0 netns {peer}"));
        for (netns, last) in [(&bed.pod, 2), (&bed.world, 1)] {
            // Without duplicate address detection of the link-local address, or neighbours are not found for a second.
            sh(netns, "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set lo up && ip link set eth0 up");
            sh(
                netns,
                &format!("ip addr add 198.18.9.{last}/24 dev eth0 && ip addr add fd77:0:0:9::{last}/64 dev eth0 nodad"),
            );
        }
        bed.pod_sh("ip route add default via 198.18.9.1 && ip route add default via fd77:0:0:9::1");
        // A client of a second address, so that the pod's answers to it need the default route.
        sh(&bed.world, "ip addr add 203.0.113.7/32 dev lo && ip addr add fd77:0:0:a::7/128 dev lo nodad");
        bed
    }

    pub fn pod_sh(&self, script: &str) -> String {
        sh(&self.pod, script)
    }

    pub fn session(&self, mode: Mode) -> Session {
        Session::open(&self.pod, mode).unwrap()
    }

    /// A session with this stage in force.
    pub fn applied(&self, mode: Mode, stage: Stage) -> Session {
        let mut session = self.session(mode);
        session.apply(&spec(stage)).unwrap();
        session
    }
}

/// Runs a shell script in a namespace; it must succeed.
pub fn sh(netns: &Netns, script: &str) -> String {
    let (ok, out) = try_sh(netns, script);
    assert!(ok, "{script}: {out}");
    out
}

pub fn try_sh(netns: &Netns, script: &str) -> (bool, String) {
    let output = netns.run(|| Command::new("sh").args(["-c", script]).output()).unwrap().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

pub fn pod(family: usize) -> IpAddr {
    ["198.18.9.2", "fd77:0:0:9::2"][family].parse().unwrap()
}

pub fn world(family: usize) -> IpAddr {
    ["198.18.9.1", "fd77:0:0:9::1"][family].parse().unwrap()
}

pub fn client(family: usize) -> IpAddr {
    ["203.0.113.7", "fd77:0:0:a::7"][family].parse().unwrap()
}

pub fn loopback(family: usize) -> IpAddr {
    ["127.0.0.1", "::1"][family].parse().unwrap()
}

/// A listener on all addresses of both families; one of the proxy's, if the port is one of the mesh's.
pub fn listen(netns: &Netns, port: u16) -> TcpListener {
    let ours = mesh_model::ports::is_reserved(port);
    let reach = if ours { socket::Reach::Owned(mark()) } else { socket::Reach::OwnPort };
    TcpListener::from(let_go(|| netns.run(|| socket::listen(port, reach, 64)).unwrap()))
}

/// Does what works once a socket of this process is gone that was dropped: a child that another test has just started may have it until
/// it has begun its program.
pub fn let_go<T, E: std::fmt::Debug>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let until = Instant::now() + SOON;
    loop {
        match attempt() {
            Err(error) => assert!(Instant::now() < until, "{error:?}"),
            Ok(done) => return done,
        }
    }
}

/// The same of an application, whatever the port.
pub fn listen_as_app(netns: &Netns, port: u16) -> TcpListener {
    TcpListener::from(let_go(|| netns.run(|| socket::listen(port, socket::Reach::OwnPort, 64)).unwrap()))
}

/// The next connection, or `None` if none comes soon.
pub fn accept_within(listener: &TcpListener, wait: Duration) -> Option<(TcpStream, SocketAddr)> {
    let timeout =
        rustix::time::Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: i64::from(wait.subsec_nanos()) };
    let mut fds = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&timeout)).unwrap();
    let (stream, from) = listener.accept().ok()?;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    Some((stream, SocketAddr::new(from.ip().to_canonical(), from.port())))
}

pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    accept_within(listener, SOON).expect("a connection should have come")
}

/// Nothing may have come, also not late.
pub fn assert_untouched(listener: &TcpListener, why: &str) {
    if let Some((_, from)) = accept_within(listener, Duration::ZERO) {
        panic!("{why}: a connection from {from} came through");
    }
}

/// A socket made in this namespace, to be bound, marked and connected.
pub fn raw_socket(netns: &Netns, family: usize) -> Socket {
    let domain = [Domain::IPV4, Domain::IPV6][family];
    netns.run(|| Socket::new(domain, Type::STREAM, Some(Protocol::TCP))).unwrap().unwrap()
}

pub fn connect(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    socket.connect_timeout(&SockAddr::from(to), SOON)?;
    let stream = TcpStream::from(OwnedFd::from(socket));
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

pub fn dial(netns: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
    connect(raw_socket(netns, usize::from(to.is_ipv6())), to)
}

/// The same from an address and port of the caller's choice, also while others use them.
pub fn dial_from(netns: &Netns, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = raw_socket(netns, usize::from(to.is_ipv6()));
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    connect(socket, to)
}

/// Both ends can speak and hear.
pub fn assert_talks(left: &mut TcpStream, right: &mut TcpStream) {
    say(left, right);
    say(right, left);
}

fn say(from: &mut TcpStream, to: &mut TcpStream) {
    let mut heard = [0; 4];
    from.write_all(b"ping").unwrap();
    to.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"ping");
}

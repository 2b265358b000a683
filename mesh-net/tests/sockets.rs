//! What only the kernel can show: per-pod listeners, minted sockets and sock_diag in real network namespaces. Needs root.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use mesh_model::Mark;
use mesh_net::diag::Diag;
use mesh_net::socket::{self, Family, ListenError, Purpose, Reach};
use mesh_net::{Netns, procfs};

const FAMILIES: [(Family, IpAddr, IpAddr); 2] = [
    (Family::V4, IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::new(198, 18, 9, 9))),
    (Family::V6, IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::new(0xfd77, 9, 0, 0, 0, 0, 0, 9))),
];

fn mark() -> Mark {
    Mark::from_random(0x1234_5678).expect("not a reserved value")
}

/// A pod-like namespace: `lo` up, and what brings replies to a foreign source back to us.
fn pod(rules: &[&str]) -> Netns {
    let pod = Netns::create().expect("these tests need root");
    let mut commands = vec!["ip link set lo up".to_owned()];
    commands.extend(rules.iter().map(|rule| (*rule).to_owned()));
    for command in commands {
        let done = pod.run(|| Command::new("sh").args(["-c", &command]).status()).expect("entered").expect("sh runs");
        assert!(done.success(), "{command}");
    }
    pod
}

fn inside<T>(pod: &Netns, work: impl FnOnce() -> T) -> T {
    pod.run(work).expect("entered")
}

/// Connects a non-blocking socket and makes it an ordinary blocking stream.
fn connect(socket: OwnedFd, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::from(socket);
    socket.set_nonblocking(false)?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

fn listener(pod: &Netns, port: u16) -> TcpListener {
    let fd = inside(pod, || socket::listen(port, Reach::OwnPort, 16)).expect("listen");
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(false).expect("blocking");
    listener
}

/// The same, once a child that another test is starting has let go of its copy of an earlier listener: between fork and exec
/// it holds every descriptor of this process. The wait is far below the 60 s of TIME-WAIT, so that cannot be what ends.
fn listener_once_free(pod: &Netns, port: u16) -> TcpListener {
    let begun = Instant::now();
    loop {
        match inside(pod, || socket::listen(port, Reach::OwnPort, 16)) {
            Err(ListenError::InUse { .. }) if begun.elapsed() < Duration::from_secs(10) => std::thread::yield_now(),
            other => {
                let listener = TcpListener::from(other.expect("listen"));
                listener.set_nonblocking(false).expect("blocking");
                return listener;
            }
        }
    }
}

#[test]
fn a_minted_socket_connects_from_a_foreign_source_and_the_app_sees_that_source() {
    // Local routes for everything stand in for the mark rules that capture writes.
    let pod = pod(&[
        "ip rule add iif lo lookup 100 pref 1; ip route add local default dev lo table 100",
        "ip -6 rule add iif lo lookup 100 pref 1; ip -6 route add local default dev lo table 100",
    ]);
    let app = listener(&pod, 8080);
    for (family, loopback, foreign) in FAMILIES {
        for port in [0, 40001] {
            let minted = inside(&pod, || socket::mint(family, Purpose::TowardsApp, mark())).expect("mint");
            // From here on outside the namespace, as the worker is.
            socket::bind_source(&minted, SocketAddr::new(foreign, port)).expect("bind a foreign source");
            let mut near = connect(minted, SocketAddr::new(loopback, 8080)).expect("connect");
            let (mut far, seen) = app.accept().expect("accept");
            assert_eq!(seen.ip().to_canonical(), foreign);
            assert!(port == 0 || seen.port() == port);
            near.write_all(b"to").expect("write");
            far.write_all(b"fro").expect("write");
            let (mut to, mut fro) = ([0; 2], [0; 3]);
            far.read_exact(&mut to).expect("read");
            near.read_exact(&mut fro).expect("read");
            assert_eq!((&to, &fro), (b"to", b"fro"));
        }
    }
}

#[test]
fn minted_sockets_live_in_the_pod_and_carry_its_mark() {
    let pod = pod(&[]);
    for (family, loopback, _) in FAMILIES {
        for purpose in [Purpose::TowardsApp, Purpose::TowardsPeer] {
            let minted = inside(&pod, || socket::mint(family, purpose, mark())).expect("mint");
            let view = socket2::SockRef::from(&minted);
            assert_eq!(view.mark().expect("mark"), mark().value());
            assert!(view.tcp_nodelay().expect("nodelay"));
            assert!(view.nonblocking().expect("non-blocking"));
        }
        // A listener of the same port outside is not reached.
        let port = listener(&pod, 0).local_addr().expect("bound").port();
        let minted = inside(&pod, || socket::mint(family, Purpose::TowardsPeer, mark())).expect("mint");
        let refused = connect(minted, SocketAddr::new(loopback, port)).map(|_| ()).map_err(|error| error.kind());
        assert_eq!(refused, Err(std::io::ErrorKind::ConnectionRefused));
    }
}

#[test]
fn the_original_destination_of_a_redirected_connection_is_read_for_both_families() {
    let pod = pod(&[
        "nft 'add table inet t; add chain inet t out { type nat hook output priority -100; }; add rule inet t out tcp dport 80 redirect to :15001'",
        "ip addr add 198.18.9.1/32 dev lo; ip -6 addr add fd77:9::1/128 dev lo nodad",
    ]);
    let capture = listener(&pod, 15001);
    for wanted in ["198.18.9.1:80", "[fd77:9::1]:80"] {
        let wanted: SocketAddr = wanted.parse().expect("address");
        let near = inside(&pod, || TcpStream::connect(wanted)).expect("redirected");
        let (far, _) = capture.accept().expect("accept");
        assert_eq!(socket::original_dst(&far).map(|dst| dst.addr()), Some(wanted));
        assert_eq!(socket::original_dst(&near).map(|dst| dst.addr().port()), Some(80), "the client's end knows it too");
    }
}

#[test]
fn accepted_connections_inherit_what_the_listener_set() {
    let pod = pod(&[]);
    let listener = listener(&pod, 15006);
    for (_, loopback, _) in FAMILIES {
        let _near = inside(&pod, || TcpStream::connect((loopback, 15006))).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        let view = socket2::SockRef::from(&far);
        assert!(view.tcp_nodelay().expect("nodelay"));
        assert!(view.keepalive().expect("keepalive"));
        assert_eq!(view.tcp_keepalive_time().expect("time"), std::time::Duration::from_secs(180));
        assert_eq!(view.tcp_keepalive_retries().expect("retries"), 9);
    }
}

#[test]
fn a_port_that_an_app_has_is_told_apart_whichever_address_it_took() {
    for app in ["127.0.0.1:15001", "0.0.0.0:15001", "[::1]:15001", "[::]:15001"] {
        let pod = pod(&[]);
        let _app = inside(&pod, || TcpListener::bind(app)).expect(app);
        let refused = inside(&pod, || socket::listen(15001, Reach::OwnPort, 16)).map(|_| ());
        assert!(matches!(refused, Err(ListenError::InUse { port: 15001 })), "{app}: {refused:?}");
        inside(&pod, || socket::listen(15006, Reach::OwnPort, 16)).expect("another port is free");
    }
}

#[test]
fn a_listener_opens_over_time_wait_of_an_earlier_one() {
    let pod = pod(&[]);
    for _ in 0..3 {
        let listener = listener_once_free(&pod, 15008);
        let near = inside(&pod, || TcpStream::connect("127.0.0.1:15008")).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        // The server side closes first: its end stays in TIME-WAIT.
        drop(far);
        drop(near);
    }
}

#[test]
fn diag_finds_exactly_the_asked_pair_also_in_time_wait_and_never_a_listener() {
    let pod = pod(&[]);
    let mut diag = inside(&pod, Diag::open).expect("sock_diag");
    for (_, loopback, foreign) in FAMILIES {
        // A dual-stack listener, so that IPv4 is seen in mapped form too.
        let server = listener(&pod, 0);
        let port = server.local_addr().expect("bound").port();
        let near = inside(&pod, || TcpStream::connect((loopback, port))).expect("connect");
        let (far, _) = server.accept().expect("accept");
        let (here, there) = (near.local_addr().expect("local"), near.peer_addr().expect("peer"));
        assert!(diag.has_socket(here, there).expect("ask"), "the client's end");
        assert!(diag.has_socket(there, here).expect("ask"), "the server's end");
        let other = |addr: SocketAddr, port: u16| SocketAddr::new(addr.ip(), port);
        // The server's port answers for a listener, which is not what was asked.
        assert!(!diag.has_socket(there, other(here, here.port() ^ 1)).expect("ask"));
        assert!(!diag.has_socket(other(here, here.port() ^ 1), there).expect("ask"));
        assert!(!diag.has_socket(SocketAddr::new(foreign, here.port()), there).expect("ask"));
        assert!(!diag.has_socket(there, SocketAddr::new(foreign, 1)).expect("ask"));
        // The client closes first and waits.
        drop(near);
        let mut rest = Vec::new();
        (&far).read_to_end(&mut rest).expect("end");
        drop(far);
        assert!(diag.has_socket(here, there).expect("ask"), "TIME-WAIT counts");
    }
}

#[test]
fn diag_answers_for_its_own_namespace_whoever_asks() {
    let (asked, other) = (pod(&[]), pod(&[]));
    let mut diag = inside(&asked, Diag::open).expect("sock_diag");
    let server = listener(&other, 0);
    let port = server.local_addr().expect("bound").port();
    let near = inside(&other, || TcpStream::connect(("127.0.0.1", port))).expect("connect");
    let (here, there) = (near.local_addr().expect("local"), near.peer_addr().expect("peer"));
    let answer = inside(&other, || diag.has_socket(here, there)).expect("ask");
    assert!(!answer, "a socket of another namespace was found");
}

#[test]
fn diag_lists_listeners_of_both_families() {
    let pod = pod(&[]);
    let _four = inside(&pod, || TcpListener::bind("127.0.0.1:7001")).expect("bind");
    let _six = inside(&pod, || TcpListener::bind("[::1]:7002")).expect("bind");
    let _many: Vec<OwnedFd> =
        (20000..20600).map(|port| inside(&pod, || socket::listen(port, Reach::OwnPort, 4)).expect("listen")).collect();
    let mut diag = inside(&pod, Diag::open).expect("sock_diag");
    let found = diag.listeners().expect("list");
    assert_eq!(found.len(), 602);
    for expected in ["127.0.0.1:7001", "[::1]:7002", "[::]:20000", "[::]:20599"] {
        let expected = expected.parse().expect("address");
        assert!(found.iter().any(|listener| listener.address == expected), "{expected}");
    }
}

#[test]
fn a_child_in_the_pod_is_seen_there_by_procfs() {
    let pod = pod(&[]);
    let mut child = inside(&pod, || Command::new("sleep").arg("60").spawn()).expect("entered_sleep");
    let opened = procfs::open_netns(child.id()).expect("child's namespace");
    let same = opened.id() == pod.id();
    child.kill().expect("our own child");
    child.wait().expect("reaped");
    assert!(same);
}

//! What a process of the pod, or a peer, can try in order not to be captured.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use mesh_model::Mark;
use mesh_net::capture::{FWMARK, Mode, Stage};
use mesh_net::{Netns, socket};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use crate::bed::{
    Bed, FAMILIES, accept, accept_within, assert_talks, assert_untouched, connect, dial, listen, mark, pod, raw_socket,
    sh, spec, world,
};

const APP: u16 = 8080;

#[test]
fn no_mark_but_the_enrolments_own_escapes() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let (outbound, far) = (listen(&bed.pod, 15001), listen(&bed.world, APP));
    let mut marks = vec![0x539, 0x111, 0x8000_0539, 1, u32::MAX, mark().value() ^ 1];
    marks.extend([FWMARK, FWMARK | !Mark::MASK]);
    let mut state: u32 = 0x9e37_79b9; // xorshift: 4,096 marks in no order, the same in each run
    marks.extend((0..4096).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }));
    for (tried, mark) in marks.into_iter().enumerate() {
        let family = tried % 2;
        // Those that routing knows are tried in both families.
        let families = if tried < 10 { FAMILIES.to_vec() } else { vec![family] };
        for family in families {
            let to = SocketAddr::new(world(family), APP);
            let socket = raw_socket(&bed.pod, family);
            socket.set_mark(mark).unwrap();
            // With a source of its own: table 100 would make the kernel choose the destination as source.
            socket.bind(&SockAddr::from(SocketAddr::new(pod(family), 0))).unwrap();
            let dialled = connect(socket, to).unwrap_or_else(|error| panic!("mark {mark:#x}: {error}"));
            let (captured, from) = accept(&outbound);
            assert_eq!(from, dialled.local_addr().unwrap());
            assert_eq!(socket::steered_dst(&captured).map(mesh_model::OrigDst::addr), Some(to));
            socket::reset_on_close(&dialled).unwrap();
        }
    }
    assert_untouched(&far, "a marked socket");
}

/// Routing sends them to `lo` for any destination: by the reply mark, and by the rule for sockets bound to `lo`.
#[test]
fn what_routing_sends_to_lo_reaches_nobody_unjudged() {
    let bed = Bed::new();
    let mut session = bed.session(Mode::Owned);
    let (_outbound, far, app) = (listen(&bed.pod, 15001), listen(&bed.world, APP), listen(&bed.pod, APP));
    for stage in [Stage::Deny, Stage::Redirect] {
        session.apply(&spec(stage)).unwrap();
        for family in FAMILIES {
            for (mark, bound) in [(FWMARK, false), (0, true), (FWMARK, true)] {
                for source in [None, Some(pod(family))] {
                    let socket = raw_socket(&bed.pod, family);
                    socket.set_mark(mark).unwrap();
                    if bound {
                        socket.bind_device(Some(b"lo")).unwrap();
                    }
                    if let Some(source) = source {
                        socket.bind(&SockAddr::from(SocketAddr::new(source, 0))).unwrap();
                    }
                    socket.set_nonblocking(true).unwrap();
                    let _ = socket.connect(&SockAddr::from(SocketAddr::new(world(family), APP)));
                    let wait = std::time::Duration::from_millis(50);
                    assert!(accept_within(&far, wait).is_none(), "{stage:?} {mark:#x} {bound} {source:?}");
                    assert_untouched(&app, "an address that is not the pod's");
                }
            }
        }
    }
}

#[test]
fn a_connection_mark_that_others_set_does_not_exempt() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    sh(
        &bed.pod,
        &format!(
            "nft add table inet theirs; nft add chain inet theirs o '{{ type filter hook output priority -160; }}'; \
             nft add rule inet theirs o ct mark set {FWMARK}; \
             nft add chain inet theirs p '{{ type filter hook prerouting priority -160; }}'; \
             nft add rule inet theirs p ct mark set {FWMARK}"
        ),
    );
    let (app, far) = (listen(&bed.pod, APP), listen(&bed.world, APP));
    let (outbound, _inbound) = (listen(&bed.pod, 15001), listen(&bed.pod, 15006));
    for family in FAMILIES {
        let mut dialled = dial(&bed.pod, SocketAddr::new(world(family), APP)).unwrap();
        assert_talks(&mut dialled, &mut accept(&outbound).0);
        // Inbound its answers are led astray, which is its own doing; it does not reach the application.
        let socket = raw_socket(&bed.world, family);
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&SockAddr::from(SocketAddr::new(pod(family), APP)));
        assert!(accept_within(&app, std::time::Duration::from_millis(150)).is_none());
    }
    assert_untouched(&far, "with a connection mark");
}

#[test]
fn deny_holds_against_the_public_marks_too() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Deny);
    let far = listen(&bed.world, APP);
    for family in FAMILIES {
        for mark in [FWMARK, 0x539, 0x111] {
            let socket = raw_socket(&bed.pod, family);
            socket.set_mark(mark).unwrap();
            socket.bind(&SockAddr::from(SocketAddr::new(pod(family), 0))).unwrap();
            let refused = connect(socket, SocketAddr::new(world(family), APP)).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{mark:#x}");
        }
    }
    assert_untouched(&far, "a marked socket");
}

/// A bare ACK out of nowhere. Conntrack takes it for the middle of a connection that it missed and makes an entry without
/// translation; a SYN with the same addresses then finds that entry, and the nat chains are not asked.
fn stray_ack(netns: &Netns, from: SocketAddr, to: SocketAddr) {
    let domain = if to.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = netns.run(|| Socket::new(domain, Type::RAW, Some(Protocol::TCP))).unwrap().unwrap();
    socket.bind(&SockAddr::from(SocketAddr::new(from.ip(), 0))).unwrap();
    let mut header = Vec::from(from.port().to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header.extend([0, 0, 1, 0, 0, 0, 1, 0]); // sequence and acknowledged numbers
    header.extend([5 << 4, 0x10, 0x20, 0, 0, 0, 0, 0]); // length, ACK, window, checksum, urgent
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let summed = [octets(from.ip()), octets(to.ip()), vec![0, 6, 0, 20], header.clone()].concat();
    let mut sum: u32 = summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[16..18].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    socket.send_to(&header, &SockAddr::from(SocketAddr::new(to.ip(), 0))).unwrap();
}

fn dial_after_stray_ack(
    from: &Netns,
    from_ip: IpAddr,
    port: u16,
    to: SocketAddr,
) -> std::io::Result<std::net::TcpStream> {
    let source = SocketAddr::new(from_ip, port);
    stray_ack(from, source, to);
    let socket = raw_socket(from, usize::from(to.is_ipv6()));
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SockAddr::from(source)).unwrap();
    connect(socket, to)
}

#[test]
fn a_stray_packet_before_the_syn_opens_no_way() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let (app, far) = (listen(&bed.pod, APP), listen(&bed.world, APP));
    let _proxy = [15001, 15006].map(|port| listen(&bed.pod, port));
    for family in FAMILIES {
        let _ = dial_after_stray_ack(&bed.world, world(family), 40_001, SocketAddr::new(pod(family), APP));
        let _ = dial_after_stray_ack(&bed.pod, pod(family), 40_001, SocketAddr::new(world(family), APP));
    }
    assert_untouched(&app, "behind a stray ACK");
    assert_untouched(&far, "behind a stray ACK");
}

/// Leaves a conntrack entry without translation: a connection from before the redirect, which its server reset. A SYN with the
/// same addresses finds that entry for ten seconds, and the nat chains are not asked.
fn leave_behind(from: &Netns, source: SocketAddr, to: SocketAddr, server: &std::net::TcpListener) {
    let mut dialled = connect(bound(from, source), to).unwrap();
    let (mut served, _) = accept(server);
    assert_talks(&mut dialled, &mut served);
    socket::reset_on_close(&served).unwrap();
    drop(served);
    assert!(std::io::Read::read(&mut dialled, &mut [0]).is_err(), "the reset has arrived");
}

fn bound(netns: &Netns, source: SocketAddr) -> Socket {
    let socket = raw_socket(netns, usize::from(source.is_ipv6()));
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SockAddr::from(source)).unwrap();
    socket
}

#[test]
fn addresses_of_a_connection_from_before_open_no_way() {
    let bed = Bed::new();
    let mut session = bed.session(Mode::Plain);
    let (app, far) = (listen(&bed.pod, APP), listen(&bed.world, APP));
    let _proxy = [15001, 15006].map(|port| listen(&bed.pod, port));
    let ways: Vec<_> = FAMILIES
        .into_iter()
        .flat_map(|family| {
            [(&bed.world, world(family), pod(family), &app), (&bed.pod, pod(family), world(family), &far)]
        })
        .collect();
    session.apply(&spec(Stage::Drain)).unwrap();
    for (from, source, to, server) in &ways {
        leave_behind(from, SocketAddr::new(*source, 40_001), SocketAddr::new(*to, APP), server);
    }
    session.apply(&spec(Stage::Redirect)).unwrap();
    for (from, source, to, server) in &ways {
        // Captured or refused: what conntrack remembers of the earlier connection decides nothing.
        let _dialled = connect(bound(from, SocketAddr::new(*source, 40_001)), SocketAddr::new(*to, APP));
        assert_untouched(server, "with addresses of a connection from before");
    }
}

#[test]
fn a_connection_half_open_at_the_swap_is_refused_or_captured() {
    let bed = Bed::new();
    // Conntrack knows the SYN without translation: it left while nothing was redirected, and nobody answered.
    let mut session = bed.applied(Mode::Plain, Stage::Drain);
    sh(
        &bed.world,
        "nft add table inet t; nft add chain inet t i '{ type filter hook input priority 0; }'; nft add rule inet t i tcp dport 8080 drop",
    );
    let far = listen(&bed.world, APP);
    let _outbound = listen(&bed.pod, 15001);
    let socket = raw_socket(&bed.pod, 0);
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&SockAddr::from(SocketAddr::new(world(0), APP)));
    session.apply(&spec(Stage::Redirect)).unwrap();
    sh(&bed.world, "nft delete table inet t");
    // The retransmission comes after a second.
    assert!(accept_within(&far, std::time::Duration::from_millis(2500)).is_none());
    assert_untouched(&far, "a retransmitted SYN");
}

#[test]
fn a_process_of_the_pod_reads_only_the_public_marks() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let app = listen(&bed.pod, APP);
    let _flows: Vec<_> = FAMILIES
        .into_iter()
        .map(|family| {
            let minted =
                crate::spoof::towards_app(&bed, family, SocketAddr::new(crate::bed::client(family), 41_000), APP)
                    .unwrap();
            (minted, accept(&app))
        })
        .collect();
    // As an ordinary uid of the pod: what needs no capability there.
    let readable = "cat /proc/thread-self/net/nf_conntrack; ip rule; ip -6 rule; ip route show table all; \
                    ip -6 route show table all; ss -tnaieO; cat /proc/thread-self/net/tcp /proc/thread-self/net/tcp6; \
                    setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all ss -tnaieO";
    let seen = sh(&bed.pod, &readable.replace("ss -tnaieO; cat", "cat"));
    let conntrack = sh(&bed.pod, "cat /proc/thread-self/net/nf_conntrack");
    assert!(
        !conntrack.contains("mark=") || conntrack.matches("mark=0").count() == conntrack.matches("mark=").count(),
        "{conntrack}"
    );
    assert_eq!(seen.matches(&format!("{FWMARK:#x}")).count(), 2, "{seen}");
    for spelling in [format!("{}", mark().value()), format!("{:x}", mark().value())] {
        assert!(!seen.to_lowercase().contains(&spelling), "{spelling} in {seen}");
    }
    let (allowed, said) = crate::bed::try_sh(
        &bed.pod,
        "setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all nft list ruleset",
    );
    assert!(!allowed, "{said}");
    let _ = (bed.pod.as_fd(), dial(&bed.pod, SocketAddr::new(pod(0), APP)));
}

/// Hears what passes a filter: packets with this mark.
fn hears(socket: &Socket, mark: u32) {
    // linux/filter.h: load the packet's mark (SKF_AD_OFF + SKF_AD_MARK), mask it, and keep the packet if that is the one.
    const LOAD: u16 = 0x20;
    const AND: u16 = 0x54;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let at_mark = (-0x1000_i32 + 20).cast_unsigned();
    let filter = [
        SockFilter::new(LOAD, 0, 0, at_mark),
        SockFilter::new(AND, 0, 0, Mark::MASK),
        SockFilter::new(EQUAL, 0, 1, mark),
        SockFilter::new(RETURN, 0, 0, 0xffff),
        SockFilter::new(RETURN, 0, 0, 0),
    ];
    socket.attach_filter(&filter).unwrap();
}

#[test]
fn a_process_that_sees_packets_reads_no_mark_that_exempts() {
    let bed = Bed::new();
    // All packets, of every interface and both ways; and those that are delivered here.
    let every = Protocol::from(i32::from(0x0003_u16.to_be())); // ETH_P_ALL
    let kinds = [
        (Domain::PACKET, Type::DGRAM, every),
        (Domain::IPV4, Type::RAW, Protocol::TCP),
        (Domain::IPV6, Type::RAW, Protocol::TCP),
    ];
    let open = |(domain, kind, protocol)| {
        let socket = bed.pod.run(|| Socket::new(domain, kind, Some(protocol))).unwrap().unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let secret: Vec<Socket> = kinds.into_iter().map(open).collect();
    secret.iter().for_each(|socket| hears(socket, mark().value()));
    // What counts is heard, or nothing would be proved.
    let public = open(kinds[0]);
    hears(&public, mesh_net::capture::ON_LO);

    let mut session = bed.session(Mode::Owned);
    let (outbound, inbound, tunnel) = (listen(&bed.pod, 15001), listen(&bed.pod, 15006), listen(&bed.pod, 15008));
    let (app, far) = (listen(&bed.pod, APP), listen(&bed.world, APP));
    for stage in [Stage::Redirect, Stage::Part, Stage::Drain] {
        session.apply(&spec(stage)).unwrap();
        for family in FAMILIES {
            let port = 42_000 + u16::from(stage == Stage::Drain);
            let source = SocketAddr::new(crate::bed::client(family), port);
            let mut proxied = crate::spoof::towards_app(&bed, family, source, APP).unwrap();
            assert_talks(&mut proxied, &mut accept(&app).0);
            let kind = [socket::Family::V4, socket::Family::V6][family];
            let minted = bed.pod.run(|| socket::mint(kind, socket::Purpose::TowardsPeer, mark())).unwrap().unwrap();
            let mut outward = connect(Socket::from(minted), SocketAddr::new(world(family), APP)).unwrap();
            assert_talks(&mut outward, &mut accept(&far).0);
            let mut inward = dial(&bed.world, SocketAddr::new(pod(family), 15008)).unwrap();
            assert_talks(&mut inward, &mut accept(&tunnel).0);
            if stage == Stage::Redirect {
                let mut captured = dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap();
                assert_talks(&mut captured, &mut accept(&inbound).0);
                let mut captured = dial(&bed.pod, SocketAddr::new(world(family), APP)).unwrap();
                assert_talks(&mut captured, &mut accept(&outbound).0);
            }
            // An end without a word, and what the kernel answers to it.
            socket::reset_on_close(&proxied).unwrap();
        }
        let heard = |socket: &Socket| rustix::net::recv(socket, &mut [0; 64][..], rustix::net::RecvFlags::DONTWAIT);
        assert!(heard(&public).is_ok(), "{stage:?}: nothing was heard on lo");
        for (socket, (domain, ..)) in secret.iter().zip(kinds) {
            assert!(heard(socket).is_err(), "{stage:?}: the secret mark is seen by {domain:?}");
        }
    }
}

//! What a process of the pod, or a peer, can try in order not to be captured.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use mesh_model::Mark;
use mesh_net::capture::{CONNMARK, FWMARK, Mode, Stage};
use mesh_net::{Netns, socket};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::bed::{
    Bed, FAMILIES, accept, assert_talks, assert_untouched, connect, dial, listen, mark, pod, raw_socket, sh, spec,
    world,
};

const APP: u16 = 8080;

#[test]
fn no_mark_but_the_enrolments_own_escapes() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let (outbound, far) = (listen(&bed.pod, 15001), listen(&bed.world, APP));
    let mut marks = vec![0x539, 0x111, 0x8000_0539, 1, u32::MAX, mark().value() ^ 1];
    for public in [CONNMARK, FWMARK] {
        marks.extend([public, public | !Mark::MASK]);
    }
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
            assert_eq!(socket::original_dst(&captured).map(mesh_model::OrigDst::addr), Some(to));
            socket::reset_on_close(&dialled).unwrap();
        }
    }
    assert_untouched(&far, "a marked socket");
}

#[test]
fn the_reply_mark_without_a_source_reaches_nobody() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let (_outbound, far, app) = (listen(&bed.pod, 15001), listen(&bed.world, APP), listen(&bed.pod, APP));
    for family in FAMILIES {
        for mark in [FWMARK, CONNMARK] {
            let socket = raw_socket(&bed.pod, family);
            socket.set_mark(mark).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&SockAddr::from(SocketAddr::new(world(family), APP)));
            assert!(crate::bed::accept_within(&far, std::time::Duration::from_millis(200)).is_none());
            assert_untouched(&app, "an address that is not the pod's");
        }
    }
}

#[test]
fn deny_holds_against_the_public_marks_too() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Deny);
    let far = listen(&bed.world, APP);
    for family in FAMILIES {
        for mark in [FWMARK, CONNMARK, 0x539, 0x111] {
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
fn a_stray_packet_before_the_syn_does_not_open_a_way_in() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Plain, Stage::Redirect);
    let (app, _inbound) = (listen(&bed.pod, APP), listen(&bed.pod, 15006));
    for family in FAMILIES {
        let to = SocketAddr::new(pod(family), APP);
        let _ = dial_after_stray_ack(&bed.world, world(family), 40_001, to);
        assert_untouched(&app, "behind a stray ACK");
    }
    assert!(session.counters().unwrap()["uncaptured-in"].0 >= 2, "{:?}", session.counters());

    // Without the second line of rules it does: this is what that line is for.
    sh(&bed.pod, "nft flush chain inet culvert input_filter");
    for family in FAMILIES {
        let to = SocketAddr::new(pod(family), APP);
        let mut dialled = dial_after_stray_ack(&bed.world, world(family), 40_002, to).unwrap();
        assert_talks(&mut dialled, &mut accept(&app).0);
    }
}

#[test]
fn a_stray_packet_before_the_syn_does_not_open_a_way_out() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Plain, Stage::Redirect);
    let (far, _outbound) = (listen(&bed.world, APP), listen(&bed.pod, 15001));
    for family in FAMILIES {
        let to = SocketAddr::new(world(family), APP);
        let _ = dial_after_stray_ack(&bed.pod, pod(family), 40_001, to);
        assert_untouched(&far, "behind a stray ACK");
    }
    println!("{:?}", session.counters().unwrap());
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
    assert!(crate::bed::accept_within(&far, std::time::Duration::from_millis(2500)).is_none());
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
    assert_eq!(conntrack.matches(&format!("mark={CONNMARK}")).count(), 2, "{conntrack}");
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

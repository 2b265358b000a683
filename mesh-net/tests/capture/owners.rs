//! Every TCP packet has an owner: what nobody owns is refused by a reset, and what is beside the mesh goes on.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mesh_model::Exclusions;
use mesh_net::capture::{Error, Mode, Stage};
use mesh_net::socket::{self, Family, Purpose};
use mesh_net::{Netns, diag::Diag};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::bed::{
    Bed, FAMILIES, accept, accept_within, assert_talks, assert_untouched, client, connect, dial, dial_from, listen,
    listen_as_app, mark, pod, raw_socket, spec, try_sh, world,
};

const APP: u16 = 8080;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Sends one TCP segment by hand and says which flags come back to its port soon.
fn segment(netns: &Netns, from: SocketAddr, to: SocketAddr, flags: u8, data: &[u8]) -> Option<u8> {
    let domain = if to.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let open = || netns.run(|| Socket::new(domain, Type::RAW, Some(Protocol::TCP))).unwrap().unwrap();
    let (socket, heard) = (open(), open());
    for socket in [&socket, &heard] {
        socket.bind(&SockAddr::from(SocketAddr::new(from.ip(), 0))).unwrap();
    }
    let mut header = Vec::from(from.port().to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header.extend([0, 0, 1, 0, 0, 0, 1, 0]); // sequence and acknowledged numbers
    header.extend([5 << 4, flags, 0x20, 0, 0, 0, 0, 0]); // length, flags, window, checksum, urgent
    header.extend(data);
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u16::try_from(header.len()).unwrap().to_be_bytes();
    let summed = [octets(from.ip()), octets(to.ip()), vec![0, 6], length.to_vec(), header.clone()].concat();
    let words = summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[16..18].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    socket.send_to(&header, &SockAddr::from(SocketAddr::new(to.ip(), 0))).unwrap();
    let until = Instant::now() + Duration::from_millis(500);
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        heard.set_read_timeout(Some(left)).unwrap();
        let mut packet = [0; 200];
        let Ok(length) = (&heard).read(&mut packet) else { break };
        // The header of IPv4 is read along, that of IPv6 is not.
        let tcp = if to.is_ipv4() { packet.get(20..length) } else { packet.get(..length) }.unwrap_or_default();
        let port = |at: usize| tcp.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
        if (port(0), port(2)) == (Some(to.port()), Some(from.port())) {
            return tcp.get(13).copied();
        }
    }
    None
}

fn is_reset(flags: Option<u8>) -> bool {
    flags.is_some_and(|flags| flags & RST != 0)
}

#[test]
fn what_nobody_owns_is_refused_by_reset_the_same_for_used_and_unused_ports() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let _proxy = [15001, 15006, 15008].map(|port| listen(&bed.pod, port));
    let app = listen_as_app(&bed.pod, APP);
    for family in FAMILIES {
        for (tried, port) in [APP, 9, 15001, 15006, 15008].into_iter().enumerate() {
            let from = SocketAddr::new(world(family), 41_000 + u16::try_from(tried).unwrap());
            let answer = segment(&bed.world, from, SocketAddr::new(pod(family), port), ACK, b"EVIL");
            assert!(is_reset(answer), "{port}: {answer:?}");
        }
    }
    assert_untouched(&app, "a bare ACK");
}

#[test]
fn a_forged_end_with_data_is_refused_and_the_connection_lives() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let (inbound, app) = (listen(&bed.pod, 15006), listen_as_app(&bed.pod, APP));
    for family in FAMILIES {
        let source = SocketAddr::new(world(family), 42_000);
        let to = SocketAddr::new(pod(family), APP);
        let mut dialled = dial_from(&bed.world, source, to).unwrap();
        let (mut captured, _) = accept(&inbound);
        let mut proxied = crate::spoof::towards_app(&bed, family, source, APP).unwrap();
        let (mut served, _) = accept(&app);
        for flags in [FIN_ACK, RST, ACK] {
            segment(&bed.world, source, to, flags, b"INJECT");
        }
        assert_talks(&mut dialled, &mut captured);
        assert_talks(&mut proxied, &mut served);
    }
}

#[test]
fn where_nobody_listens_the_proxy_is_told_at_once_whatever_marks_the_pod_has_reflected() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    for reflect in ["0", "1"] {
        for sysctl in ["ipv4/fwmark_reflect", "ipv6/fwmark_reflect", "ipv4/tcp_fwmark_accept"] {
            bed.pod_sh(&format!("echo {reflect} > /proc/sys/net/{sysctl}"));
        }
        for family in FAMILIES {
            let source = SocketAddr::new(client(family), 43_000);
            let refused = crate::spoof::towards_app(&bed, family, source, 9).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{reflect} {family}");
            let app = listen_as_app(&bed.pod, APP);
            let mut proxied = crate::spoof::towards_app(&bed, family, source, APP).unwrap();
            assert_talks(&mut proxied, &mut accept(&app).0);
        }
    }
}

#[test]
fn an_application_that_has_gone_resets_the_proxy_and_not_the_world() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let app = listen_as_app(&bed.pod, APP);
    for family in FAMILIES {
        let mut proxied =
            crate::spoof::towards_app(&bed, family, SocketAddr::new(client(family), 43_100), APP).unwrap();
        drop(accept(&app).0);
        // The kernel answers the first of them by itself: no socket is left.
        let until = Instant::now() + Duration::from_secs(2);
        let reset =
            std::iter::repeat_with(|| proxied.write(b"more")).any(|wrote| wrote.is_err() || Instant::now() > until);
        assert!(reset && Instant::now() < until, "{family}: nobody told the proxy");
    }
}

#[test]
fn sockets_bound_to_an_interface_are_captured_too() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    let (outbound, far) = (listen(&bed.pod, 15001), listen(&bed.world, APP));
    // An interface that comes later, as a second network does.
    bed.pod_sh("ip link add net1 type veth peer name far1 && ip link set far1 up && ip link set net1 up && ip addr add 10.55.0.2/24 dev net1 && ip addr add fd55::2/64 dev net1 nodad && \
         ip -6 route add fd77:0:0:9::/64 dev net1 metric 5000");
    assert_eq!(session.read().unwrap().unwrap().drift, vec![]);
    for family in FAMILIES {
        let second = ["10.55.0.2", "fd55::2"][family].parse().unwrap();
        for (device, own) in [("eth0", pod(family)), ("net1", second)] {
            let socket = raw_socket(&bed.pod, family);
            socket.bind_device(Some(device.as_bytes())).unwrap();
            socket.bind(&SockAddr::from(SocketAddr::new(own, 0))).unwrap();
            let mut dialled = connect(socket, SocketAddr::new(world(family), APP)).unwrap();
            let (mut captured, _) = accept(&outbound);
            assert_talks(&mut dialled, &mut captured);
        }
    }
    assert_untouched(&far, "a bound socket");
}

/// The address that a namespace has on its link, as the other one calls it.
fn on_link(of: &Netns, from: &Netns) -> SocketAddr {
    let ip = crate::bed::sh(of, "ip -6 -o addr show dev eth0 scope link | grep -o 'fe80[^/]*'");
    let interface = crate::bed::sh(from, "ip -o link show eth0 | cut -d: -f1");
    SocketAddrV6::new(ip.trim().parse().unwrap(), APP, 0, interface.trim().parse().unwrap()).into()
}

#[test]
fn link_local_destinations_are_captured_and_reached_both_ways() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let [outbound, inbound] = [15001, 15006].map(|port| listen(&bed.pod, port));
    let (app, far) = (listen_as_app(&bed.pod, APP), listen(&bed.world, APP));
    // IPv4's are routed like others: a metadata service, a name server of the node.
    bed.pod_sh("ip route add 169.254.0.0/16 dev eth0");
    crate::bed::sh(&bed.world, "ip addr add 169.254.20.10/32 dev eth0");
    for to in [SocketAddr::new([169, 254, 20, 10].into(), APP), on_link(&bed.world, &bed.pod)] {
        let mut dialled = dial(&bed.pod, to).unwrap();
        let (mut captured, _) = accept(&outbound);
        assert_talks(&mut dialled, &mut captured);
        let wanted = socket::steered_dst(&captured).unwrap().addr();
        assert_eq!(wanted, to);
        let mint = || socket::mint(Family::of(to.ip()), Purpose::TowardsPeer, mark());
        let mut onward = connect(Socket::from(bed.pod.run(mint).unwrap().unwrap()), wanted).unwrap();
        assert_talks(&mut onward, &mut accept(&far).0);
    }
    assert!(accept_within(&far, Duration::ZERO).is_none(), "past the proxy");
    let to = on_link(&bed.pod, &bed.world);
    let mut dialled = dial(&bed.world, to).unwrap();
    let (mut captured, _) = accept(&inbound);
    assert_talks(&mut dialled, &mut captured);
    let minted = bed.pod.run(|| socket::mint(Family::V6, Purpose::TowardsApp, mark())).unwrap().unwrap();
    let source = dialled.local_addr().unwrap();
    socket::bind_source(&minted, SocketAddr::new(source.ip(), source.port())).unwrap();
    let mut onward = connect(Socket::from(minted), SocketAddr::new(to.ip(), APP)).unwrap();
    let (mut served, from) = accept(&app);
    assert_eq!(from.ip(), source.ip());
    assert_talks(&mut onward, &mut served);
    assert_untouched(&app, "past the proxy");
}

#[test]
fn the_proxy_calls_a_pod_from_its_own_address_and_reaches_a_listener_of_an_interface() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let app = listen_as_app(&bed.pod, APP);
    let on_device = raw_socket(&bed.pod, 1);
    on_device.set_only_v6(false).unwrap();
    on_device.bind_device(Some(b"eth0")).unwrap();
    on_device.bind(&SockAddr::from(SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), 8090))).unwrap();
    on_device.listen(8).unwrap();
    let on_device = std::net::TcpListener::from(OwnedFd::from(on_device));
    for family in FAMILIES {
        for (source, port, listener) in [(pod(family), APP, &app), (client(family), 8090, &on_device)] {
            let kind = [Family::V4, Family::V6][family];
            let minted = bed.pod.run(|| socket::mint(kind, Purpose::TowardsPeer, mark())).unwrap().unwrap();
            socket::bind_source(&minted, SocketAddr::new(source, 0)).unwrap();
            let mut proxied = connect(Socket::from(minted), SocketAddr::new(pod(family), port)).unwrap();
            let (mut served, from) = accept(listener);
            assert_eq!(from.ip(), source);
            assert_talks(&mut proxied, &mut served);
        }
    }
}

#[test]
fn a_marked_socket_bears_no_foreign_address_out_of_the_pod_and_does_not_reach_the_proxy() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    let proxy = [15001, 15006, 15008].map(|port| listen(&bed.pod, port));
    let far = listen(&bed.world, APP);
    for family in FAMILIES {
        let kind = [Family::V4, Family::V6][family];
        let mint = || Socket::from(bed.pod.run(|| socket::mint(kind, Purpose::TowardsPeer, mark())).unwrap().unwrap());
        let spoofing = mint();
        socket::bind_source(&spoofing, SocketAddr::new(client(family), 0)).unwrap();
        spoofing.set_nonblocking(true).unwrap();
        let _ = spoofing.connect(&SockAddr::from(SocketAddr::new(world(family), APP)));
        assert!(accept_within(&far, Duration::from_millis(100)).is_none());
        for port in [15001, 15006, 15008] {
            let refused = connect(mint(), SocketAddr::new(pod(family), port)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{port}");
        }
    }
    proxy.iter().for_each(|listener| assert_untouched(listener, "the proxy itself"));
    assert!(session.counters().unwrap()["leave-spoofed"].0 >= 2);
}

#[test]
fn half_closed_connections_are_remembered_and_what_conntrack_forgets_ends_by_reset() {
    let bed = Bed::new();
    // The kernel's own 60 and 120 s in short.
    bed.pod_sh(
        "cd /proc/sys/net/netfilter; for t in fin_wait close_wait; do echo 1 > nf_conntrack_tcp_timeout_$t; done",
    );
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let (inbound, outbound) = (listen(&bed.pod, 15006), listen(&bed.pod, 15001));
    for family in FAMILIES {
        let to = SocketAddr::new(pod(family), APP);
        let mut dialled = dial(&bed.world, to).unwrap();
        let (mut captured, _) = accept(&inbound);
        dialled.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(captured.read(&mut [0; 9]).unwrap(), 0);
        let mut out = dial(&bed.pod, SocketAddr::new(world(family), APP)).unwrap();
        let (mut steered, _) = accept(&outbound);
        out.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(steered.read(&mut [0; 9]).unwrap(), 0);
        // Longer than what the kernel would remember; nothing tells when it has forgotten, and nobody comes meanwhile.
        assert!(accept_within(&inbound, Duration::from_secs(3)).is_none());
        for (from, to) in [(&mut captured, &mut dialled), (&mut steered, &mut out)] {
            from.write_all(b"late").unwrap();
            let mut heard = [0; 4];
            to.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"late");
        }
    }
}

#[test]
fn a_pod_that_is_too_busy_is_left_as_it_was() {
    let bed = Bed::new();
    let (app, far) = (listen_as_app(&bed.pod, APP), listen(&bed.world, APP));
    let mut flows: Vec<(TcpStream, TcpStream)> = Vec::new();
    for family in FAMILIES {
        for _ in 0..3 {
            flows.push((dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap(), accept(&app).0));
            flows.push((dial(&bed.pod, SocketAddr::new(world(family), APP)).unwrap(), accept(&far).0));
        }
    }
    let mut session = bed.session(Mode::Owned);
    session.limit(5);
    let refused = session.apply(&spec(Stage::Redirect)).unwrap_err();
    assert!(matches!(refused, Error::TooManyFlows { found: 6, limit: 5 }), "{refused}");
    assert_eq!(session.read().unwrap(), None);
    assert!(!try_sh(&bed.pod, "nft list table inet culvert").0);
    session.limit(6);
    session.apply(&spec(Stage::Redirect)).unwrap();
    flows.iter_mut().for_each(|(left, right)| assert_talks(left, right));
}

#[test]
fn flows_leave_the_sets_with_their_sockets_and_a_lost_set_is_not_learned_again() {
    let bed = Bed::new();
    let app = listen_as_app(&bed.pod, APP);
    let _proxy = [15001, 15006].map(|port| listen(&bed.pod, port));
    for family in FAMILIES {
        let flow = || (dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap(), accept(&app).0);
        let (mut lives, ends) = (flow(), flow());
        let mut session = bed.applied(Mode::Plain, Stage::Redirect);
        assert_eq!((session.sweep().unwrap(), session.sweep().unwrap()), (2, 2));
        socket::reset_on_close(&ends.0).unwrap();
        drop(ends);
        session.sweep().unwrap();
        assert_eq!(session.sweep().unwrap(), 1);
        assert_talks(&mut lives.0, &mut lives.1);
        drop(session);
        // Nobody is there to repair; whoever comes knows by the ip rule that there was a table.
        bed.pod_sh("nft delete table inet culvert");
        let mut session = bed.session(Mode::Plain);
        session.apply(&spec(Stage::Redirect)).unwrap();
        assert_eq!(session.sweep().unwrap(), 0);
        let (left, right) = &mut lives;
        left.write_all(b"ping").unwrap();
        assert!(left.read(&mut [0; 4]).is_err(), "it ends by a reset");
        assert!(right.read(&mut [0; 4]).is_err(), "nothing comes to the application");
        session.remove().unwrap();
    }
}

#[test]
fn an_excluded_port_passes_both_ways_and_lends_nothing_to_whoever_binds_it() {
    let bed = Bed::new();
    let mut exclusions = Exclusions::default();
    // Nobody listens on the second.
    exclusions.inbound_ports.extend([9090, 9091]);
    exclusions.outbound_ports.insert(5432);
    let mut session = bed.session(Mode::Owned);
    session.exclude(exclusions);
    session.apply(&spec(Stage::Redirect)).unwrap();
    let outbound = listen(&bed.pod, 15001);
    let (excluded, far, other) = (listen_as_app(&bed.pod, 9090), listen(&bed.world, 5432), listen(&bed.world, APP));
    for family in FAMILIES {
        let mut inward = dial(&bed.world, SocketAddr::new(pod(family), 9090)).unwrap();
        assert_talks(&mut inward, &mut accept(&excluded).0);
        let mut outward = dial(&bed.pod, SocketAddr::new(world(family), 5432)).unwrap();
        assert_talks(&mut outward, &mut accept(&far).0);
        // From an excluded port to elsewhere: captured, and so are its later packets.
        let own = dial_from(&bed.pod, SocketAddr::new(pod(family), 9091), SocketAddr::new(world(family), APP));
        assert_talks(&mut own.unwrap(), &mut accept(&outbound).0);
        // From a port that is excluded on the way out, towards the application.
        let from = SocketAddr::new(world(family), 5432);
        assert!(is_reset(segment(&bed.world, from, SocketAddr::new(pod(family), APP), ACK, b"EVIL")));
    }
    assert_untouched(&other, "what binds an excluded port");
}

#[test]
fn what_comes_to_an_excluded_port_by_the_proxy_stays_the_proxys_whoever_knows_its_numbers() {
    const SYN: u8 = 0x02;
    let bed = Bed::new();
    let mut exclusions = Exclusions::default();
    exclusions.inbound_ports.insert(9090);
    let mut session = bed.session(Mode::Owned);
    session.exclude(exclusions);
    for stage in [Stage::Redirect, Stage::Part] {
        session.apply(&spec(stage)).unwrap();
        let excluded = listen_as_app(&bed.pod, 9090);
        for family in FAMILIES {
            let caller = SocketAddr::new(world(family), 46_000 + u16::from(stage == Stage::Part));
            let mut proxied = crate::spoof::towards_app(&bed, family, caller, 9090).unwrap();
            let (mut served, from) = accept(&excluded);
            assert_eq!(from, caller);
            segment(&bed.world, caller, SocketAddr::new(pod(family), 9090), SYN, b"");
            assert_talks(&mut served, &mut proxied);
            // One that nobody proxies passes as before.
            let mut plain = dial(&bed.world, SocketAddr::new(pod(family), 9090)).unwrap();
            assert_talks(&mut plain, &mut accept(&excluded).0);
        }
        // Nothing of it is remembered for longer than it lives.
        drop(excluded);
        session.sweep().unwrap();
    }
}

#[test]
fn a_pod_that_could_not_be_captured_at_first_keeps_its_connections_when_it_can_be() {
    let bed = Bed::new();
    let app = listen_as_app(&bed.pod, APP);
    let mut open: Vec<_> =
        FAMILIES.map(|family| (dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap(), accept(&app).0)).into();
    let mut session = bed.session(Mode::Plain);
    // Somebody else has every number for a routing table.
    let tables = |verb: &str| {
        bed.pod_sh(&format!(
            "for n in $(seq 15001100 15001115); do ip route {verb} unreachable 192.0.2.1 table $n; done"
        ));
    };
    tables("add");
    let refused = session.apply(&spec(Stage::Redirect));
    assert!(matches!(refused, Err(Error::NoRouteTable)), "{refused:?}");
    let left = bed.pod_sh("nft list tables; ip rule; ip -6 rule");
    assert!(!left.contains("culvert") && !left.contains("150011"), "{left}");
    tables("del");
    session.apply(&spec(Stage::Redirect)).unwrap();
    open.iter_mut().for_each(|(left, right)| assert_talks(left, right));
}

#[allow(unsafe_code)]
/// tcp(7), TCP_DEFER_ACCEPT: connections come when their client has said something.
fn defer_accept(listener: &std::net::TcpListener, seconds: libc::c_int) {
    let size = libc::socklen_t::try_from(size_of_val(&seconds)).unwrap();
    let (fd, value) = (std::os::fd::AsRawFd::as_raw_fd(listener), (&raw const seconds).cast());
    // SAFETY: the listener is open for the whole call, and `value` is valid for reads of `size` bytes.
    let done = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, size) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// As Apache and nginx (`deferred`) do: the kernel says once more that it has heard the client, in the middle of the swap or after it.
#[test]
fn a_handshake_that_waits_for_the_clients_first_word_lives_through_the_swap() {
    let bed = Bed::new();
    let app = listen_as_app(&bed.pod, APP);
    defer_accept(&app, 1);
    let _proxy = [15001, 15006].map(|port| listen(&bed.pod, port));
    let mut open: Vec<_> = FAMILIES.map(|family| dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap()).into();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    // After a second the kernel says once more that it has heard the client, who says so too: then the connection is there.
    for _ in FAMILIES {
        let (mut right, from) = accept_within(&app, Duration::from_secs(4)).expect("the handshake comes to its end");
        let left = open.iter_mut().find(|left| left.local_addr().unwrap() == from).expect("one of ours");
        assert_talks(left, &mut right);
    }
}

#[test]
fn a_removal_that_does_not_come_to_its_end_leaves_no_ip_rule_without_a_table() {
    let bed = Bed::new();
    let _owner = bed.applied(Mode::Owned, Stage::Redirect);
    let rules = || bed.pod_sh("ip rule; ip -6 rule");
    assert!(rules().contains("15001100"));
    // It may not delete what another owns. (Rules without a table say that its flows were lost: the next enrolment would cut them.)
    bed.session(Mode::Plain).remove().unwrap_err();
    assert!(!rules().contains("15001100"), "{}", rules());
}

#[test]
fn routing_tables_and_rules_of_others_are_left_alone() {
    let bed = Bed::new();
    bed.pod_sh(
        "ip link add net1 type veth peer name far1 && ip link set far1 up && ip link set net1 up && ip addr add 10.55.0.2/24 dev net1 && \
         ip rule add from 10.55.0.2/32 lookup 100 && ip route add default via 10.55.0.9 dev net1 table 100 && \
         ip rule add oif lo lookup 100 pref 90 && ip route add default via 10.55.0.9 dev net1 table 15001100",
    );
    let theirs = |bed: &Bed| {
        bed.pod_sh(
            "ip rule | grep -v 0xc71002 | grep -v '^101:'; ip route show table 100; ip route show table 15001100",
        )
    };
    let before = theirs(&bed);
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    assert_eq!(theirs(&bed), before);
    assert!(bed.pod_sh("ip rule").contains("lookup 15001101"), "the next number");
    session.remove().unwrap();
    assert_eq!(theirs(&bed), before);
}

#[test]
fn forwarded_traffic_passes() {
    let bed = Bed::new();
    let inner = Netns::create().unwrap();
    let path = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        std::os::fd::AsRawFd::as_raw_fd(&rustix::fd::AsFd::as_fd(&inner))
    );
    bed.pod_sh(&format!(
        "ip link add in0 type veth peer name eth0 netns {path} && ip link set in0 up && ip addr add 10.66.0.1/24 dev in0 && \
         echo 1 > /proc/sys/net/ipv4/ip_forward && nft add table ip theirs && \
         nft add chain ip theirs post '{{ type nat hook postrouting priority 100; }}' && \
         nft add rule ip theirs post ip saddr 10.66.0.0/24 oif eth0 masquerade"
    ));
    crate::bed::sh(
        &inner,
        "ip link set eth0 up && ip addr add 10.66.0.2/24 dev eth0 && ip route add default via 10.66.0.1",
    );
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    let (far, _proxy) = (listen(&bed.world, APP), listen(&bed.pod, 15001));
    let mut dialled = dial(&inner, SocketAddr::new(world(0), APP)).unwrap();
    let (mut served, from) = accept(&far);
    assert_eq!(from.ip(), pod(0));
    assert_talks(&mut dialled, &mut served);
    let counters = session.counters().unwrap();
    assert!(counters["leave-forwarded"].0 > 0 && counters["input-forwarded"].0 > 0, "{counters:?}");
}

#[test]
fn a_socket_whose_far_end_has_not_answered_proves_nothing() {
    let bed = Bed::new();
    let far = listen(&bed.world, APP);
    let mut diag = bed.pod.run(Diag::open).unwrap().unwrap();
    for family in FAMILIES {
        let to = SocketAddr::new(world(family), APP);
        let dialled = dial(&bed.pod, to).unwrap();
        assert!(diag.has_socket(dialled.local_addr().unwrap(), to).unwrap());
        let nobody = SocketAddr::new(["198.18.9.77", "fd77:0:0:9::77"][family].parse().unwrap(), APP);
        let socket = raw_socket(&bed.pod, family);
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&SockAddr::from(nobody));
        let local = socket.local_addr().unwrap().as_socket().unwrap();
        assert!(!diag.has_socket(local, nobody).unwrap(), "it is still asking");
        drop(accept(&far));
    }
}

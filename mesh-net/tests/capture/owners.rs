//! Every TCP packet has an owner: what nobody owns is refused by a reset, and what is beside the mesh goes on.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV6, TcpListener};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mesh_net::capture::{Mode, Stage};
use mesh_net::socket::{self, Family, Purpose, Reach};
use mesh_net::{Netns, diag::Diag};
use socket2::{SockAddr, Socket};

use crate::bed::{
    Bed, FAMILIES, accept, accept_within, assert_talks, assert_untouched, client, connect, dial, dial_from, listen,
    listen_as_app, mark, pod, raw_socket, world,
};
use crate::segments::{ACK, FIN_ACK, Heard, RST, is_reset, segment, send};

const APP: u16 = 8080;
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
    let (outbound, inbound) = (listen(&bed.pod, 15001), listen(&bed.pod, 15006));
    let inject = |from, to, numbers| {
        for flags in [ACK, FIN_ACK, RST] {
            send(&bed.world, from, to, flags, numbers, b"INJECT");
        }
    };
    // An application's sockets may be transparent as well as the proxy's. With a client conntrack knows these numbers and may translate
    // what is forged; without one nothing but the rules for owners is left.
    for (app, transparent, has_client) in
        [(APP, false, true), (APP + 1, false, false), (APP + 2, true, true), (APP + 3, true, false)]
    {
        let reach = if transparent { Reach::Steered } else { Reach::OwnPort };
        let server = TcpListener::from(bed.pod.run(|| socket::listen(app, reach, 64)).unwrap().unwrap());
        for family in FAMILIES {
            let far = SocketAddr::new(world(family), 42_000);
            let near = SocketAddr::new(pod(family), app);
            let client = has_client.then(|| (dial_from(&bed.world, far, near).unwrap(), accept(&inbound).0));
            let mut proxied = crate::spoof::towards_app(&bed, family, far, app).unwrap();
            let (mut served, _) = accept(&server);
            let heard = Heard::in_netns(&bed.pod, family);
            assert_talks(&mut proxied, &mut served);
            let next = heard.next(far, near);
            inject(far, near, next);
            if let Some((mut dialled, mut captured)) = client {
                assert_talks(&mut dialled, &mut captured);
            }
            assert_talks(&mut proxied, &mut served);

            let far = SocketAddr::new(world(family), app);
            let client = raw_socket(&bed.pod, family);
            if transparent {
                [Socket::set_ip_transparent_v4, Socket::set_ip_transparent_v6][family](&client, true).unwrap();
            }
            let mut client = connect(client, far).unwrap();
            let (mut taken, _) = accept(&outbound);
            let heard = Heard::in_netns(&bed.pod, family);
            assert_talks(&mut taken, &mut client);
            let near = client.local_addr().unwrap();
            let next = heard.next(far, near);
            inject(far, near, next);
            assert_talks(&mut taken, &mut client);
        }
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
    let on_device = TcpListener::from(OwnedFd::from(on_device));
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

//! What the rules do to connections, new and old.

use std::sync::atomic::{AtomicBool, Ordering};

use mesh_model::ports::LANDING;
use mesh_net::capture::{Mode, Stage};
use mesh_net::socket::{self, Family, Purpose};
use std::io::ErrorKind;
use std::net::SocketAddr;

use crate::bed::{
    Bed, FAMILIES, accept, assert_talks, assert_untouched, dial, dial_from, listen, listen_as_app, loopback, mark, pod,
    spec, world,
};

const APP: u16 = 8080;

#[test]
fn new_connections_are_captured_with_their_original_destination() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    let [outbound, inbound, tunnel] = [15001, 15006, 15008].map(|port| listen(&bed.pod, port));
    let (app, far) = (listen(&bed.pod, APP), listen(&bed.world, APP));
    for family in FAMILIES {
        let to_app = SocketAddr::new(pod(family), APP);
        let mut dialled = dial(&bed.world, to_app).unwrap();
        let (mut captured, from) = accept(&inbound);
        assert_eq!((captured_for(&captured), from), (Some(to_app), dialled.local_addr().unwrap()));
        assert_talks(&mut dialled, &mut captured);

        let to_far = SocketAddr::new(world(family), APP);
        let mut dialled = dial(&bed.pod, to_far).unwrap();
        let (mut captured, from) = accept(&outbound);
        assert_eq!((steered_to(&captured), from), (Some(to_far), dialled.local_addr().unwrap()));
        assert_talks(&mut dialled, &mut captured);

        // The proxy's inner ports are no way in.
        for port in [15001, 15006] {
            let refused = dial(&bed.world, SocketAddr::new(pod(family), port)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{port}");
        }
        let mut dialled = dial(&bed.world, SocketAddr::new(pod(family), 15008)).unwrap();
        assert_talks(&mut dialled, &mut accept(&tunnel).0);

        // Within the pod nothing is captured.
        for address in [pod(family), loopback(family)] {
            let mut dialled = dial(&bed.pod, SocketAddr::new(address, APP)).unwrap();
            assert_talks(&mut dialled, &mut accept(&app).0);
        }
    }
    for listener in [&app, &far, &outbound, &inbound, &tunnel] {
        assert_untouched(listener, "more connections than were made");
    }
}

#[test]
fn a_source_port_stays_what_it_is_with_connections_to_many_ports_of_a_pod() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    let inbound = listen(&bed.pod, 15006);
    let app = listen(&bed.pod, APP);
    let mut flows = Vec::new();
    for family in FAMILIES {
        for port in APP..APP + u16::try_from(LANDING.len()).unwrap() {
            let to = SocketAddr::new(pod(family), port);
            let dialled = dial_from(&bed.world, SocketAddr::new(world(family), 41234), to).unwrap();
            let (captured, from) = accept(&inbound);
            assert_eq!((captured_for(&captured), from), (Some(to), dialled.local_addr().unwrap()), "{port}");
            flows.push((dialled, captured));
        }
    }
    // All of them live, also when the rules are no longer asked.
    for stage in [Stage::Redirect, Stage::Drain] {
        session.apply(&spec(stage)).unwrap();
        flows.iter_mut().for_each(|(left, right)| assert_talks(left, right));
    }
    assert_untouched(&app, "a captured connection");
}

#[test]
fn a_landing_port_is_no_way_to_a_listener_of_the_application() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    let landing = *LANDING.start();
    let apps = [APP, landing].map(|port| listen_as_app(&bed.pod, port));
    for family in FAMILIES {
        // The proxy is away: refused, whatever else listens where it would have come by.
        for port in [APP, landing, 15006] {
            assert!(dial(&bed.world, SocketAddr::new(pod(family), port)).is_err(), "{port}");
        }
        let inbound = listen(&bed.pod, 15006);
        let to = SocketAddr::new(pod(family), landing);
        let _dialled = dial(&bed.world, to).unwrap();
        assert_eq!(captured_for(&accept(&inbound).0), Some(to));
    }
    apps.iter().for_each(|app| assert_untouched(app, "a connection that passed the proxy by"));
    let counters = session.counters().unwrap();
    assert_eq!((counters["uncaptured-in"].0, counters["inner-15006"].0), (4, 2), "{counters:?}");
}

#[test]
fn a_handshake_by_syn_cookie_ends_at_the_proxy_too() {
    let bed = Bed::new();
    let _session = bed.applied(Mode::Owned, Stage::Redirect);
    // 2: every handshake. So the kernel does of itself when a listener's queue of half-open connections is full.
    bed.pod_sh("echo 2 > /proc/sys/net/ipv4/tcp_syncookies");
    let (inbound, app) = (listen(&bed.pod, 15006), listen(&bed.pod, APP));
    for family in FAMILIES {
        let to = SocketAddr::new(pod(family), APP);
        let mut dialled = dial(&bed.world, to).unwrap();
        let (mut captured, from) = accept(&inbound);
        assert_eq!((captured_for(&captured), from), (Some(to), dialled.local_addr().unwrap()));
        assert_talks(&mut dialled, &mut captured);
    }
    assert_untouched(&app, "a connection that passed the proxy by");
}

fn steered_to(stream: &std::net::TcpStream) -> Option<SocketAddr> {
    socket::steered_dst(stream).map(mesh_model::OrigDst::addr)
}

fn captured_for(stream: &std::net::TcpStream) -> Option<SocketAddr> {
    socket::original_dst(stream).map(mesh_model::OrigDst::addr)
}

#[test]
fn the_marked_socket_alone_goes_out_directly() {
    let bed = Bed::new();
    for stage in [Stage::Deny, Stage::Redirect] {
        let mut session = bed.applied(Mode::Owned, stage);
        let far = listen(&bed.world, APP);
        for family in FAMILIES {
            let kind = [Family::V4, Family::V6][family];
            let minted = bed.pod.run(|| socket::mint(kind, Purpose::TowardsPeer, mark())).unwrap().unwrap();
            let to = SocketAddr::new(world(family), APP);
            let mut dialled = crate::bed::connect(socket2::Socket::from(minted), to).unwrap();
            let (mut accepted, from) = accept(&far);
            assert_eq!(from.ip(), pod(family));
            assert_talks(&mut dialled, &mut accepted);
        }
        session.remove().unwrap();
    }
}

#[test]
fn connections_from_before_live_through_every_stage() {
    let bed = Bed::new();
    let (app, far) = (listen(&bed.pod, APP), listen(&bed.world, APP));
    let mut flows = Vec::new();
    for family in FAMILIES {
        let inward = dial(&bed.world, SocketAddr::new(pod(family), APP)).unwrap();
        flows.push((inward, accept(&app).0));
        let outward = dial(&bed.pod, SocketAddr::new(world(family), APP)).unwrap();
        flows.push((outward, accept(&far).0));
    }
    // The last two stay silent until the end: conntrack first meets them in mid-stream, under the redirect.
    let mut idle = flows.split_off(2);
    let mut session = bed.session(Mode::Owned);
    let mut talk = || flows.iter_mut().for_each(|(left, right)| assert_talks(left, right));
    talk();
    for stage in [Stage::Redirect, Stage::Drain, Stage::Redirect] {
        session.apply(&spec(stage)).unwrap();
        talk();
    }
    for (left, right) in &mut idle {
        assert_talks(left, right);
    }
    session.apply(&spec(Stage::Drain)).unwrap();
    talk();
    session.remove().unwrap();
    talk();
    for (left, right) in &mut idle {
        assert_talks(left, right);
    }
}

#[test]
fn captured_connections_live_on_while_draining_and_new_ones_pass() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    let (outbound, inbound) = (listen(&bed.pod, 15001), listen(&bed.pod, 15006));
    let (app, far) = (listen(&bed.pod, APP), listen(&bed.world, APP));
    for family in FAMILIES {
        session.apply(&spec(Stage::Redirect)).unwrap();
        let (inward, outward) = (SocketAddr::new(pod(family), APP), SocketAddr::new(world(family), APP));
        let mut flows = [
            (dial(&bed.world, inward).unwrap(), accept(&inbound).0),
            (dial(&bed.pod, outward).unwrap(), accept(&outbound).0),
        ];
        session.apply(&spec(Stage::Drain)).unwrap();
        for (left, right) in &mut flows {
            assert_talks(left, right);
        }
        assert_talks(&mut dial(&bed.world, inward).unwrap(), &mut accept(&app).0);
        assert_talks(&mut dial(&bed.pod, outward).unwrap(), &mut accept(&far).0);
    }
}

#[test]
fn deny_refuses_new_connections_both_ways_at_once() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Owned, Stage::Deny);
    let listeners: Vec<_> = [APP, 15001, 15006, 15008].map(|port| listen(&bed.pod, port)).into();
    let far = listen(&bed.world, APP);
    for family in FAMILIES {
        for port in [APP, 15001, 15006, 15008, 9] {
            let refused = dial(&bed.world, SocketAddr::new(pod(family), port)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "inbound {port}");
        }
        let refused = dial(&bed.pod, SocketAddr::new(world(family), APP)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "outbound");
        let mut local = dial(&bed.pod, SocketAddr::new(pod(family), APP)).unwrap();
        assert_talks(&mut local, &mut accept(&listeners[0]).0);
    }
    for listener in listeners.iter().chain([&far]) {
        assert_untouched(listener, "deny stage");
    }
    let counters = session.counters().unwrap();
    assert_eq!((counters["deny-in"].0, counters["deny-out"].0), (10, 2));
}

#[test]
fn no_connection_slips_through_while_stages_change() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Owned, Stage::Deny);
    let (app, far) = (listen(&bed.pod, APP), listen(&bed.world, APP));
    let _proxy = [15001, 15006, 15008].map(|port| listen(&bed.pod, port));
    let stop = AtomicBool::new(false);
    let attempts: usize = std::thread::scope(|scope| {
        let (bed, stop) = (&bed, &stop);
        let probers: Vec<_> = FAMILIES
            .into_iter()
            .flat_map(|family| [(&bed.world, pod(family)), (&bed.pod, world(family))])
            .map(|(from, to)| {
                scope.spawn(move || {
                    let mut attempts = 0;
                    while !stop.load(Ordering::Relaxed) {
                        attempts += 1;
                        // Full backlogs of the listeners that nobody serves end as a timeout; so do not wait for them.
                        let socket = crate::bed::raw_socket(from, usize::from(to.is_ipv6()));
                        socket.set_nonblocking(true).unwrap();
                        let _ = socket.connect(&SocketAddr::new(to, APP).into());
                    }
                    attempts
                })
            })
            .collect();
        for _ in 0..500 {
            session.apply(&spec(Stage::Redirect)).unwrap();
            session.apply(&spec(Stage::Deny)).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        probers.into_iter().map(|prober| prober.join().unwrap()).sum()
    });
    assert_untouched(&app, "inbound");
    assert_untouched(&far, "outbound");
    let counters = session.counters().unwrap();
    eprintln!("{attempts} attempts during 1,000 changes of stage; counters: {counters:?}");
    // They did meet rules of both stages.
    assert!(attempts > 0 && counters["captured-out"].0 > 0 && counters["refused"].0 > 0, "{counters:?}");
}

#[test]
fn datagrams_pass_and_are_counted() {
    let bed = Bed::new();
    let mut session = bed.applied(Mode::Owned, Stage::Redirect);
    for family in FAMILIES {
        let bind = |netns: &mesh_net::Netns, ip| netns.run(|| std::net::UdpSocket::bind((ip, 0))).unwrap().unwrap();
        let (here, there) = (bind(&bed.pod, pod(family)), bind(&bed.world, world(family)));
        let mut heard = [0; 4];
        here.send_to(b"ping", there.local_addr().unwrap()).unwrap();
        assert_eq!(there.recv_from(&mut heard).unwrap(), (4, here.local_addr().unwrap()));
        there.send_to(b"pong", here.local_addr().unwrap()).unwrap();
        assert_eq!(here.recv_from(&mut heard).unwrap(), (4, there.local_addr().unwrap()));
        // An echo request by hand: `ping` is a package of its own. Nobody needs to answer, what leaves is counted.
        let (domain, protocol, kind) = match world(family) {
            std::net::IpAddr::V4(_) => (socket2::Domain::IPV4, socket2::Protocol::ICMPV4, 8),
            std::net::IpAddr::V6(_) => (socket2::Domain::IPV6, socket2::Protocol::ICMPV6, 128),
        };
        let raw = bed.pod.run(|| socket2::Socket::new(domain, socket2::Type::RAW, Some(protocol))).unwrap().unwrap();
        let before = session.counters().unwrap()["output-other"].0;
        raw.send_to(&[kind, 0, 0, 0, 0, 1, 0, 1], &std::net::SocketAddr::new(world(family), 0).into()).unwrap();
        assert!(session.counters().unwrap()["output-other"].0 > before, "{family:?}: an ICMP packet left uncounted");
    }
    let counters = session.counters().unwrap();
    assert_eq!((counters["output-udp"].0, counters["input-udp"].0), (2, 2), "{counters:?}");
}

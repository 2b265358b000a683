//! What comes by a bridge inside the pod: containers of a container, a machine beside it. Kubernetes has br_netfilter loaded, with which
//! such packets meet the pod's rules while they are in the bridge.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use mesh_net::Netns;
use mesh_net::capture::{Mode, Stage};
use mesh_net::socket::{self, Family, Purpose};

use crate::bed::{
    Bed, FAMILIES, accept, assert_talks, assert_untouched, connect, dial, dial_from, let_go, listen, listen_as_app,
    mark, pod, sh, world,
};
use crate::segments::{ACK, SYN, is_reset, segment};

const APP: u16 = 8080;
const INBOUND: u16 = 15006;

/// The bridge's own address.
fn gate(family: usize) -> IpAddr {
    ["10.66.0.1", "fd66::1"][family].parse().unwrap()
}

fn nested(family: usize) -> IpAddr {
    ["10.66.0.2", "fd66::2"][family].parse().unwrap()
}

/// A namespace behind a bridge of the pod, whose frames iptables and nftables see or not (`bridge-nf-call-*`).
fn behind_a_bridge(bed: &Bed, filtered: bool) -> Netns {
    let inner = Netns::create().unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), rustix::fd::AsFd::as_fd(&inner).as_raw_fd());
    let filtered = u8::from(filtered);
    bed.pod_sh(&format!(
        "ip link add br0 type bridge && echo 0 > /proc/sys/net/ipv6/conf/br0/accept_dad && ip link set br0 up && \
         ip addr add 10.66.0.1/24 dev br0 && ip addr add fd66::1/64 dev br0 nodad && \
         ip link add in0 type veth peer name eth0 netns {path} && ip link set in0 master br0 up && \
         for of in iptables ip6tables; do echo {filtered} > /proc/sys/net/bridge/bridge-nf-call-$of || exit 1; done"
    ));
    sh(
        &inner,
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set lo up && ip link set eth0 up && \
         ip addr add 10.66.0.2/24 dev eth0 && ip addr add fd66::2/64 dev eth0 nodad && \
         ip route add default via 10.66.0.1 && ip route add default via fd66::1",
    );
    inner
}

/// Another one behind the same bridge.
fn neighbour(family: usize) -> IpAddr {
    ["10.66.0.3", "fd66::3"][family].parse().unwrap()
}

fn beside(bed: &Bed) -> Netns {
    let beside = Netns::create().unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), rustix::fd::AsFd::as_fd(&beside).as_raw_fd());
    bed.pod_sh(&format!("ip link add in1 type veth peer name eth0 netns {path} && ip link set in1 master br0 up"));
    sh(
        &beside,
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set lo up && ip link set eth0 up && \
         ip addr add 10.66.0.3/24 dev eth0 && ip addr add fd66::3/64 dev eth0 nodad",
    );
    beside
}

#[test]
fn what_comes_by_a_bridge_ends_at_the_proxy_and_so_do_the_answers() {
    for filtered in [true, false] {
        let bed = Bed::new();
        let inner = behind_a_bridge(&bed, filtered);
        let mut session = bed.applied(Mode::Owned, Stage::Redirect);
        let (app, proxy) = (listen_as_app(&bed.pod, APP), listen(&bed.pod, INBOUND));
        for (family, own) in FAMILIES.into_iter().flat_map(|family| [(family, gate(family)), (family, pod(family))]) {
            let to = SocketAddr::new(own, APP);
            let mut caller = dial(&inner, to).unwrap_or_else(|error| panic!("{to}, filtered {filtered}: {error}"));
            let (mut taken, from) = accept(&proxy);
            assert_eq!((from, from.ip()), (caller.local_addr().unwrap(), nested(family)));
            assert_eq!(socket::original_dst(&taken).map(|to| to.addr()), Some(to));
            assert_untouched(&app, "what comes by a bridge");
            assert_talks(&mut caller, &mut taken);
            // On to the application, in the caller's name.
            let kind = [Family::V4, Family::V6][family];
            let minted = bed.pod.run(|| socket::mint(kind, Purpose::TowardsApp, mark())).unwrap().unwrap();
            socket::bind_source(&minted, from).unwrap();
            let mut onward = connect(minted.into(), to).unwrap();
            let (mut served, seen) = accept(&app);
            assert_eq!(seen, from);
            assert_talks(&mut onward, &mut served);
            assert_talks(&mut caller, &mut taken);
        }
        let counters = session.counters().unwrap();
        assert!(counters["capture-bridged"].0 >= 4 && counters["input-bridged"].0 > 0, "{counters:?}");
    }
}

#[test]
fn by_a_bridge_nobody_reaches_the_listener_itself_and_what_nobody_owns_is_refused() {
    for filtered in [true, false] {
        let bed = Bed::new();
        let inner = behind_a_bridge(&bed, filtered);
        let _session = bed.applied(Mode::Owned, Stage::Redirect);
        let (app, proxy) = (listen_as_app(&bed.pod, APP), listen(&bed.pod, INBOUND));
        let from = SocketAddr::new(nested(0), 40_001);
        for (port, flags, data) in [(INBOUND, SYN, &b""[..]), (INBOUND, ACK, b"EVIL"), (APP, ACK, b"EVIL")] {
            let answer = segment(&inner, from, SocketAddr::new(gate(0), port), flags, data);
            assert!(is_reset(answer), "port {port}, flags {flags:#x}, filtered {filtered}: {answer:?}");
        }
        assert_untouched(&proxy, "a SYN to the listener");
        assert_untouched(&app, "a bare ACK");
    }
}

/// The kernel has forgotten whose TIME_WAIT is, so a SYN with its numbers is nobody's.
#[test]
fn by_a_bridge_nobody_reaches_the_listener_by_what_is_left_of_a_connection() {
    for filtered in [true, false] {
        let bed = Bed::new();
        let inner = behind_a_bridge(&bed, filtered);
        let _session = bed.applied(Mode::Owned, Stage::Redirect);
        let (_app, proxy) = (listen_as_app(&bed.pod, APP), listen(&bed.pod, INBOUND));
        for family in FAMILIES {
            let from = SocketAddr::new(nested(family), 40_002);
            let mut caller = dial_from(&inner, from, SocketAddr::new(gate(family), APP)).unwrap();
            drop(accept(&proxy));
            assert_eq!(caller.read(&mut [0]).unwrap(), 0);
            drop(caller);
            let_go(|| {
                let left = bed.pod_sh("ss -Htan state time-wait 'sport = :15006'");
                if left.contains(&from.ip().to_string()) { Ok(()) } else { Err("no TIME_WAIT") }
            });
            let again = dial_from(&inner, from, SocketAddr::new(gate(family), INBOUND));
            let refused = again.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
            assert!(refused, "family {family}, filtered {filtered}: {again:?}");
            assert_untouched(&proxy, "a SYN with the numbers of TIME_WAIT");
        }
    }
}

#[test]
fn the_pod_reaches_what_is_behind_its_bridge_by_the_proxy() {
    for filtered in [true, false] {
        let bed = Bed::new();
        let inner = behind_a_bridge(&bed, filtered);
        let _session = bed.applied(Mode::Owned, Stage::Redirect);
        let (far, proxy) = (listen(&inner, APP), listen(&bed.pod, 15001));
        for family in FAMILIES {
            let to = SocketAddr::new(nested(family), APP);
            let mut caller = dial(&bed.pod, to).unwrap();
            assert_talks(&mut caller, &mut accept(&proxy).0);
            let kind = [Family::V4, Family::V6][family];
            let minted = bed.pod.run(|| socket::mint(kind, Purpose::TowardsPeer, mark())).unwrap().unwrap();
            let mut onward = connect(minted.into(), to).unwrap();
            assert_talks(&mut onward, &mut accept(&far).0);
        }
    }
}

/// A listener on all addresses is found for foreign ones as well (`nft_socket`): that is no packet of the proxy's.
#[test]
fn what_is_forwarded_reaches_others_on_the_ports_of_our_listeners() {
    let bed = Bed::new();
    let inner = behind_a_bridge(&bed, false);
    bed.pod_sh("echo 1 > /proc/sys/net/ipv4/ip_forward && echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
    sh(&bed.world, "ip route add 10.66.0.0/24 via 198.18.9.2 && ip route add fd66::/64 via fd77:0:0:9::2");
    for stage in [Stage::Learn, Stage::Redirect, Stage::Part, Stage::Drain] {
        let mut session = bed.applied(Mode::Owned, stage);
        let ours = [15001, INBOUND, 15008].map(|port| listen(&bed.pod, port));
        for port in [15001, INBOUND, 15008] {
            let far = listen_as_app(&bed.world, port);
            for family in FAMILIES {
                let to = SocketAddr::new(world(family), port);
                let mut caller = dial(&inner, to).unwrap_or_else(|error| panic!("{to} in {stage:?}: {error}"));
                assert_talks(&mut caller, &mut accept(&far).0);
            }
        }
        drop(ours);
        session.remove().unwrap();
    }
}

#[test]
fn what_is_behind_one_bridge_of_the_pod_reaches_its_like() {
    for filtered in [true, false] {
        let bed = Bed::new();
        let inner = behind_a_bridge(&bed, filtered);
        let beside = beside(&bed);
        for stage in Stage::ALL {
            let mut session = bed.applied(Mode::Owned, stage);
            let ports = [APP, INBOUND];
            let far = ports.map(|port| listen_as_app(&beside, port));
            for (family, (port, far)) in
                FAMILIES.into_iter().flat_map(|of| ports.into_iter().zip(&far).map(move |to| (of, to)))
            {
                let to = SocketAddr::new(neighbour(family), port);
                let called = dial(&inner, to);
                let mut caller =
                    called.unwrap_or_else(|error| panic!("{to} in {stage:?}, filtered {filtered}: {error}"));
                assert_talks(&mut caller, &mut accept(far).0);
            }
            session.remove().unwrap();
        }
    }
}

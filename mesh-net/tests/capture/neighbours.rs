//! A neighbour on the pod's bridge that says that it is the node is believed by a pod of its own kind, and not by a captured one.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mesh_net::Netns;
use mesh_net::capture::{Mode, Session, Stage};

use crate::bed::{FAMILIES, sh, spec, try_sh};

const NODE: [&str; 2] = ["198.18.9.1", "fd77:0:0:9::1"];
/// What the node's bridge has, and what the liar has.
const TRUE: &str = "02:00:00:00:00:01";
const LIAR: &str = "02:00:00:00:00:6";

/// A node with a bridge, two pods and a liar on it.
struct Bridge {
    node: Netns,
    pod: Netns,
    other: Netns,
    liar: Netns,
}

impl Bridge {
    fn new() -> Self {
        let [node, pod, other, liar] = [(); 4].map(|()| Netns::create().unwrap());
        sh(&node, &format!("ip link set lo up && ip link add cni0 address {TRUE} type bridge"));
        sh(&node, "echo 0 > /proc/sys/net/ipv6/conf/cni0/accept_dad; ip link set cni0 up");
        sh(&node, "ip addr add 198.18.9.1/24 dev cni0 && ip addr add fd77:0:0:9::1/64 dev cni0 nodad");
        for (last, netns) in [(2, &pod), (3, &other), (66, &liar)] {
            let inside = format!("/proc/{}/fd/{}", std::process::id(), rustix::fd::AsFd::as_fd(netns).as_raw_fd());
            sh(
                &node,
                &format!(
                    "ip link add veth{last} type veth peer name eth0 netns {inside} && ip link set veth{last} master cni0 up"
                ),
            );
            sh(netns, "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set lo up");
            let address = if last == 66 { format!("address {LIAR}6") } else { String::new() };
            sh(netns, &format!("ip link set eth0 {address} up; ip addr add 198.18.9.{last}/24 dev eth0"));
            sh(netns, &format!("ip addr add fd77:0:0:9::{last}/64 dev eth0 nodad"));
        }
        Self { node, pod, other, liar }
    }

    fn session(&self) -> Session {
        self.node.run(|| Session::open(&self.pod, Mode::Plain)).unwrap().unwrap()
    }

    /// Has the pods know their node, then the liar say that the node's addresses are its own, until the pod that nobody protects
    /// believes it.
    fn lie(&self) {
        for family in FAMILIES {
            [&self.pod, &self.other].iter().for_each(|pod| speak(pod, NODE[family]));
        }
        sh(
            &self.liar,
            "echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_notify; echo 1 > /proc/sys/net/ipv6/conf/eth0/ndisc_notify",
        );
        sh(&self.liar, "ip addr replace 198.18.9.1/24 dev eth0; ip -6 addr replace fd77:0:0:9::1/64 dev eth0 nodad");
        let begun = Instant::now();
        // Each time its hardware address changes it tells everybody what it has; what was just learned holds for a second.
        for last in ["7", "6"].iter().cycle() {
            if FAMILIES.iter().all(|family| believed(&self.other, *family).contains(LIAR)) {
                return;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "nobody believes the liar: {}",
                believed(&self.other, 0)
            );
            sh(&self.liar, &format!("ip link set eth0 address {LIAR}{last}"));
            // Whoever is asked for its address learns that of who asks (RFC 4861, 7.2.3).
            speak(&self.liar, "fd77:0:0:9::3");
        }
    }
}

/// A datagram, for which the address is asked for. What becomes of it does not matter.
fn speak(from: &Netns, to: &str) {
    let to: SocketAddr = (to.parse::<IpAddr>().unwrap(), 9).into();
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = from.run(|| UdpSocket::bind(any)).unwrap().unwrap();
    let _ = socket.send_to(b"x", to);
}

/// The pod's entry of its node.
fn believed(pod: &Netns, family: usize) -> String {
    try_sh(pod, &format!("ip neigh show to {} dev eth0", NODE[family])).1
}

#[test]
fn a_captured_pod_does_not_believe_a_neighbour_that_says_it_is_the_node() {
    let bridge = Bridge::new();
    let mut session = bridge.session();
    session.apply(&spec(Stage::Redirect)).unwrap();
    session.hold_neighbours();
    bridge.lie();
    for family in FAMILIES {
        let entry = believed(&bridge.pod, family);
        assert!(entry.contains(TRUE) && entry.contains("PERMANENT"), "{entry}");
    }
    // Taken away or changed by somebody: the next audit mends it.
    sh(
        &bridge.pod,
        &format!("ip neigh del {} dev eth0; ip neigh replace {} lladdr {LIAR}6 dev eth0", NODE[0], NODE[1]),
    );
    session.hold_neighbours();
    for family in FAMILIES {
        let entry = believed(&bridge.pod, family);
        assert!(entry.contains(TRUE) && entry.contains("PERMANENT"), "{entry}");
    }
    session.remove().unwrap();
    for family in FAMILIES {
        assert!(!believed(&bridge.pod, family).contains("PERMANENT"), "given back: {}", believed(&bridge.pod, family));
    }
}

#[test]
fn a_bridge_that_changes_its_address_is_followed_and_what_others_fixed_is_left_alone() {
    let bridge = Bridge::new();
    sh(&bridge.pod, &format!("ip neigh add {} lladdr 02:00:00:00:00:07 dev eth0 nud permanent", NODE[1]));
    let mut session = bridge.session();
    session.apply(&spec(Stage::Redirect)).unwrap();
    session.hold_neighbours();
    assert!(believed(&bridge.pod, 0).contains(TRUE), "{}", believed(&bridge.pod, 0));
    sh(&bridge.node, "ip link set cni0 address 02:00:00:00:00:99");
    session.hold_neighbours();
    assert!(believed(&bridge.pod, 0).contains("02:00:00:00:00:99"), "{}", believed(&bridge.pod, 0));
    session.remove().unwrap();
    assert!(believed(&bridge.pod, 1).contains("02:00:00:00:00:07"), "{}", believed(&bridge.pod, 1));
}

#[test]
fn a_gateway_that_is_another_machine_is_left_alone() {
    let bridge = Bridge::new();
    // The node's own address is one more hop away, by a router that is not the node.
    sh(
        &bridge.node,
        "ip addr del 198.18.9.1/24 dev cni0; ip addr add 203.0.113.1/32 dev cni0; ip route add 198.18.9.0/24 dev cni0",
    );
    sh(&bridge.pod, "ip route add default via 198.18.9.66");
    let mut session = bridge.session();
    session.apply(&spec(Stage::Redirect)).unwrap();
    session.hold_neighbours();
    let entries = sh(&bridge.pod, "ip -4 neigh show nud permanent");
    assert!(entries.is_empty(), "{entries}");
}

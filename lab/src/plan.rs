//! The lab's numbers: addresses, MACs and paths, as pure functions of a node's index.
//!
//! Everything lies in ranges set aside for benchmarks (198.18.0.0/15) and local use (fd00::/8), so that nothing of the
//! machine's own network can collide. Kept apart from the code that makes things, so that tests can name an address
//! without a lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Which IP families the lab's pods and nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both; the default.
    Dual,
}

impl Families {
    /// Whether pods have an IPv4 address.
    pub fn v4(self) -> bool {
        self != Families::V6
    }

    /// Whether pods have an IPv6 address.
    pub fn v6(self) -> bool {
        self != Families::V4
    }

    /// Keeps the addresses of these families.
    pub fn filter(self, ips: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
        ips.into_iter().filter(|ip| if ip.is_ipv4() { self.v4() } else { self.v6() }).collect()
    }
}

/// Most nodes a lab can have: the IPv6 pod ranges of seven fill fd77:0:0:0::/61.
pub const MAX_NODES: usize = 7;

/// The control plane's addresses, on the fabric.
pub const CONTROL_PLANE_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
/// The control plane's IPv6 address.
pub const CONTROL_PLANE_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0xffff, 0, 0, 0, 0, 0, 1);
/// An address outside of every range of the cluster, served on the fabric: "the internet".
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The same over IPv6.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The gateway every node's default IPv6 route names; the fabric has it on each port.
pub const FABRIC_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Port of the control plane: xDS and certificates.
pub const CONTROL_PLANE_PORT: u16 = 15012;
/// The ranges of pods and services: what node-proxy counts as inside the cluster.
pub const CLUSTER_RANGES: [&str; 4] = ["198.18.0.0/17", "198.18.128.0/17", "fd77:0:0:0::/61", "fd77:0:0:80::/112"];

/// `node-1`, `node-2`…; index 0 is the fabric.
pub fn node_name(index: usize) -> String {
    if index == 0 { "fabric".into() } else { format!("node-{index}") }
}

/// A node's own address.
pub fn node_v4(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 19, 255, 10 + index as u8)
}

/// A node's own IPv6 address.
pub fn node_v6(index: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0xffff, 0, 0, 0, 0, 0, 0x10 + index as u16)
}

/// The addresses of a node.
pub fn node_ips(index: usize, families: Families) -> Vec<IpAddr> {
    families.filter([node_v4(index).into(), node_v6(index).into()])
}

/// The IPv4 range of a node's pods.
pub fn pod_range_v4(index: usize) -> String {
    format!("198.18.{index}.0/24")
}

/// The IPv6 range of a node's pods.
pub fn pod_range_v6(index: usize) -> String {
    format!("fd77:0:0:{index}::/64")
}

/// The `n`th service's virtual IPv4 address, from 198.18.128.0/17.
pub fn service_v4(n: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 128, 0)) + 10 + u32::from(n))
}

/// The `n`th service's virtual IPv6 address, from fd77:0:0:80::/112.
pub fn service_v6(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0x80, 0, 0, 0, 10 + n)
}

/// The fabric's port towards a node.
pub fn port_name(index: usize) -> String {
    format!("n{index}")
}

/// The MAC of the fabric's port towards a node. Fixed, so that the capture tells arriving frames from leaving ones.
pub fn port_mac(index: usize) -> [u8; 6] {
    [0x02, 0xc5, 0, 0, 0xfa, index as u8]
}

/// Lines for `ip -batch` in the fabric's netns, before any node is there.
pub fn fabric_base(families: Families) -> String {
    let mut text = "link set lo up\n".to_owned();
    if families.v4() {
        text += &format!("addr add {CONTROL_PLANE_V4}/32 dev lo\naddr add {OUTSIDE_V4}/32 dev lo\n");
    }
    if families.v6() {
        text += &format!("addr add {CONTROL_PLANE_V6}/128 dev lo nodad\naddr add {OUTSIDE_V6}/128 dev lo nodad\n");
    }
    text
}

/// Lines for `ip -batch` in the fabric's netns that plug in a node, whose pid 1 is `init`.
pub fn fabric_port(index: usize, init: u32, families: Families) -> String {
    let mac = port_mac(index).map(|b| format!("{b:02x}")).join(":");
    let mut text =
        format!("link add n{index} address {mac} type veth peer name eth0 netns {init}\nlink set n{index} up\n");
    if families.v4() {
        let (node, pods) = (node_v4(index), pod_range_v4(index));
        text += &format!("route add {node}/32 dev n{index} src {CONTROL_PLANE_V4}\n");
        text += &format!("route add {pods} via {node} dev n{index} src {CONTROL_PLANE_V4}\n");
    }
    if families.v6() {
        let (node, pods) = (node_v6(index), pod_range_v6(index));
        text += &format!("addr add {FABRIC_LINK_LOCAL}/64 dev n{index} nodad\n");
        text += &format!("route add {node}/128 dev n{index} src {CONTROL_PLANE_V6}\n");
        text += &format!("route add {pods} via {node} dev n{index} src {CONTROL_PLANE_V6}\n");
    }
    text
}

/// Lines for `ip -batch` in a node's netns.
pub fn node_side(index: usize, families: Families) -> String {
    let mut text = "link set lo up\nlink set eth0 up\n".to_owned();
    if families.v4() {
        let node = node_v4(index);
        text +=
            &format!("addr add {node}/32 dev eth0\nroute add {CONTROL_PLANE_V4}/32 dev eth0 scope link src {node}\n");
        text += &format!("route add default via {CONTROL_PLANE_V4} dev eth0 src {node}\n");
    }
    if families.v6() {
        text += &format!("addr add {}/128 dev eth0 nodad\n", node_v6(index));
        text += &format!("route add ::/0 via {FABRIC_LINK_LOCAL} dev eth0\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_the_plan_lies_in_a_cluster_range_or_outside_of_all_as_meant() {
        let ranges: Vec<ipnetwork::IpNetwork> =
            CLUSTER_RANGES.iter().map(|r| r.parse().expect("a constant range")).collect();
        let inside = |ip: IpAddr| ranges.iter().any(|r| r.contains(ip));
        for index in 1..=7 {
            assert!(inside(format!("198.18.{index}.2").parse().expect("an address")));
            assert!(inside(format!("fd77:0:0:{index}::2").parse().expect("an address")));
            assert!(node_ips(index, Families::Dual).into_iter().all(|ip| !inside(ip)));
        }
        assert!(inside(service_v4(0).into()) && inside(service_v6(0).into()) && inside(service_v4(5000).into()));
        assert!(!inside(OUTSIDE_V4.into()) && !inside(OUTSIDE_V6.into()));
    }

    #[test]
    fn an_ipv4_lab_has_no_ipv6_line() {
        for text in [fabric_base(Families::V4), fabric_port(1, 7, Families::V4), node_side(1, Families::V4)] {
            assert!(!text.contains("fd77") && !text.contains("-6"), "{text}");
        }
    }
}

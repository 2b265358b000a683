//! Addresses: of the node (those of the netns that this process runs in, where kubelet's probes may come from), and of a running pod
//! whose record names none, by procfs.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Once;

use mesh_api::link::NodeFacts;
use mesh_net::addresses;

/// Where kube-proxy in IPVS mode, and kube-router, put the address of every Service: thousands, and no probe comes from one.
const SERVICES: [&str; 2] = ["kube-ipvs0", "kube-dummy-if"];
/// Most addresses that are told of a node or of a pod, so that none can make a message that no link takes. In JSON one has at most 42
/// bytes with its comma: all of them take two thirds of [`mesh_api::link::MAX_PACKET`]. Guessed to be far more than a node has.
pub const MOST: usize = 1024;

/// The node's; that they cannot be read is an error, since a missing address would make a probe look like a stranger.
pub fn read(node: &str) -> io::Result<NodeFacts> {
    Ok(NodeFacts { name: node.to_owned(), addresses: told(addresses::held(&SERVICES)?) })
}

/// Those that others see, and no more than [`MOST`]: a probe from one beyond is judged by policy, as a stranger's.
fn told(held: BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let mut seen: Vec<IpAddr> = held.into_iter().filter(is_seen_by_others).collect();
    if seen.len() > MOST {
        static SAID: Once = Once::new();
        let (all, told) = (seen.len(), MOST);
        SAID.call_once(|| {
            tracing::warn!(
                all,
                told,
                "more addresses of the node than keepers are told: a probe from another is judged by policy"
            )
        });
        seen.truncate(MOST);
    }
    seen
}

fn is_seen_by_others(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

/// Every address of the netns that a process is in. By procfs: no thread has to go there.
pub fn of_process(pid: u32) -> io::Result<BTreeSet<IpAddr>> {
    let mut found = v4(&std::fs::read_to_string(format!("/proc/{pid}/net/fib_trie"))?);
    // Absent where the kernel has no IPv6.
    match std::fs::read_to_string(format!("/proc/{pid}/net/if_inet6")) {
        Ok(text) => found.extend(v6(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    found.retain(is_seen_by_others);
    Ok(found)
}

/// Leaves of the local table: an address line `|-- 198.18.1.1` and below it `/32 host LOCAL`.
fn v4(text: &str) -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    let mut leaf: Option<Ipv4Addr> = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(leaf.map(IpAddr::from));
        }
    }
    found
}

/// `fd770000000000000000000000000001 02 40 00 80 eth0`: address, index, prefix, scope, flags, name.
fn v6(text: &str) -> BTreeSet<IpAddr> {
    let read = |line: &str| u128::from_str_radix(line.split_ascii_whitespace().next()?, 16).ok();
    text.lines().filter_map(read).map(|bits| Ipv6Addr::from(bits).into()).collect()
}

#[cfg(test)]
mod tests {
    use mesh_api::link::proxy::ToKeeper;
    use mesh_api::link::{MAX_PACKET, encode};

    use super::*;

    #[test]
    fn a_node_with_any_number_of_addresses_is_told_of_in_one_packet() {
        // The longest that there are, of a node with the longest name.
        let held = (0..20_000_u16)
            .map(|last| Ipv6Addr::new(0xfd77, 0x1111, 0x2222, 0x3333, 0x4444, 0x5555, 0x6666, 0x8000 + last));
        let facts = NodeFacts { name: "n".repeat(253), addresses: told(held.map(IpAddr::from).collect()) };
        assert_eq!(facts.addresses.len(), MOST);
        let size = encode(&ToKeeper::Node(facts)).len();
        assert!(size < MAX_PACKET * 3 / 4, "{size}");
    }

    #[test]
    fn loopback_and_link_local_addresses_are_nobodys_source() {
        let held = ["127.0.0.53", "169.254.1.1", "198.18.1.1", "::1", "fe80::1", "fd77::1"];
        let told = told(held.into_iter().map(|text| text.parse().expect("address")).collect());
        assert_eq!(told, ["198.18.1.1", "fd77::1"].map(|text| text.parse::<IpAddr>().expect("address")));
    }

    #[test]
    fn addresses_of_procfs_are_those_that_are_local() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\nLocal:\n  +-- 127.0.0.0/8 2 0 2\n        \
                    |-- 127.0.0.1\n           /32 host LOCAL\n     |-- 198.18.1.1\n        /32 host LOCAL\n     |-- 198.18.1.255\n        \
                    /32 link BROADCAST\n     |-- 169.254.1.1\n        /32 host LOCAL\n";
        let texts = |found: BTreeSet<IpAddr>| found.into_iter().map(|ip| ip.to_string()).collect::<Vec<_>>();
        assert_eq!(texts(v4(trie)), ["127.0.0.1", "169.254.1.1", "198.18.1.1"]);
        let inet6 = "fd770000000000010000000000000001 02 40 00 80     cni0\nfe80000000000000001122fffe334455 02 40 20 80     cni0\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(texts(v6(inet6)), ["::1", "fd77:0:0:1::1", "fe80::11:22ff:fe33:4455"]);
    }

    #[test]
    fn the_live_addresses_are_readable() {
        read("n").expect("rtnetlink of any Linux machine");
        of_process(std::process::id()).expect("procfs of any Linux machine");
    }
}

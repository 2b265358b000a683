//! Addresses by procfs: of the node (every address of the netns that this process runs in, where kubelet's probes may come from), and
//! of a running pod whose record names none.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_api::link::NodeFacts;

/// Every address of the netns that this process is in.
pub fn of_process(pid: u32) -> std::io::Result<Vec<IpAddr>> {
    Ok(addresses(&format!("/proc/{pid}/net"))?.into_iter().collect())
}

/// Reads them; an unreadable file is an error, since a missing address would make a probe look like a stranger.
pub fn read(node: &str) -> std::io::Result<NodeFacts> {
    Ok(NodeFacts { name: node.to_owned(), addresses: addresses("/proc/thread-self/net")?.into_iter().collect() })
}

fn addresses(dir: &str) -> std::io::Result<BTreeSet<IpAddr>> {
    let mut found = v4(&std::fs::read_to_string(format!("{dir}/fib_trie"))?);
    // Absent where the kernel has no IPv6.
    match std::fs::read_to_string(format!("{dir}/if_inet6")) {
        Ok(text) => found.extend(v6(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(found)
}

/// Leaves of the local table: an address line `|-- 198.18.1.1` and below it `/32 host LOCAL`.
fn v4(text: &str) -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    let mut leaf: Option<Ipv4Addr> = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = leaf.filter(|address| !address.is_loopback() && !address.is_link_local())
        {
            found.insert(address.into());
        }
    }
    found
}

/// `fd770000000000000000000000000001 02 40 00 80 eth0`: address, index, prefix, scope (0x20 link, 0x10 host), flags, name.
fn v6(text: &str) -> BTreeSet<IpAddr> {
    let read = |line: &str| -> Option<IpAddr> {
        let mut fields = line.split_ascii_whitespace();
        let address = Ipv6Addr::from(u128::from_str_radix(fields.next()?, 16).ok()?);
        let scope = fields.nth(2)?;
        (!matches!(scope, "10" | "20")).then_some(address.into())
    };
    text.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_without_loopback_link_local_and_broadcast() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\nLocal:\n  +-- 127.0.0.0/8 2 0 2\n        \
                    |-- 127.0.0.1\n           /32 host LOCAL\n     |-- 198.18.1.1\n        /32 host LOCAL\n     |-- 198.18.1.255\n        \
                    /32 link BROADCAST\n     |-- 169.254.1.1\n        /32 host LOCAL\n";
        assert_eq!(v4(trie).into_iter().collect::<Vec<_>>(), [IpAddr::from([198, 18, 1, 1])]);
        let inet6 = "fd770000000000010000000000000001 02 40 00 80     cni0\nfe80000000000000001122fffe334455 02 40 20 80     cni0\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(v6(inet6).into_iter().collect::<Vec<_>>(), ["fd77:0:0:1::1".parse::<IpAddr>().expect("address")]);
    }

    #[test]
    fn the_live_files_are_readable() {
        read("n").expect("procfs of any Linux machine");
    }
}

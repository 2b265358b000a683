//! Memory: of processes by PSS (each shared page divided among its users), of the kernel by the slab caches and buffers of sockets
//! or by what a control group was charged with.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use lab::Pid;

/// Slab caches of open connections. Directory entries are left out: the rest of the machine makes and drops them by the thousand.
const SOCKETS: [&str; 8] =
    ["TCP", "TCPv6", "sock_inode_cache", "filp", "eventpoll_epi", "eventpoll_pwq", "nf_conntrack", "request_sock_TCP"];
/// Bytes of a page on every machine this runs on.
const PAGE: u64 = 4096;

/// Proportional memory of these processes, bytes (`smaps_rollup`).
pub fn pss(pids: &[Pid]) -> Result<u64> {
    pids.iter().map(|pid| pid.pss().with_context(|| format!("memory of process {}", pid.pid))).sum()
}

/// Bytes the whole machine's kernel holds for TCP connections: objects in the socket caches (/proc/slabinfo), and buffers
/// (`mem` of /proc/net/sockstat).
pub fn sockets() -> Result<u64> {
    let slabs = fs::read_to_string("/proc/slabinfo").context("read /proc/slabinfo")?;
    let buffers = fs::read_to_string("/proc/net/sockstat").context("read /proc/net/sockstat")?;
    let objects: u64 = parse_slabs(&slabs).into_iter().filter(|(name, _)| SOCKETS.contains(name)).map(|(_, n)| n).sum();
    Ok(objects + parse_buffers(&buffers).context("TCP memory in /proc/net/sockstat")? * PAGE)
}

/// Cache → bytes of objects in use.
fn parse_slabs(text: &str) -> BTreeMap<&str, u64> {
    let line = |line: &'_ str| -> Option<(usize, u64)> {
        let mut fields = line.split_whitespace();
        let name = fields.next()?.len();
        let active: u64 = fields.next()?.parse().ok()?;
        let size: u64 = fields.nth(1)?.parse().ok()?;
        Some((name, active * size))
    };
    text.lines().filter_map(|text| line(text).map(|(name, bytes)| (&text[..name], bytes))).collect()
}

/// Pages of TCP buffers.
fn parse_buffers(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: "))?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "mem");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_in_use_times_their_size() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables\n\
                    TCPv6 91 104 2496 13 8 : tunables 0 0 0 : slabdata 8 8 0\nfilp 1974 2100 192 21 1 : tunables\n";
        let parsed = parse_slabs(text);
        assert_eq!((parsed["TCPv6"], parsed["filp"], parsed.len()), (91 * 2496, 1974 * 192, 2));
    }

    #[test]
    fn buffers_are_the_memory_of_the_tcp_line() {
        let text = "sockets: used 37\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 365\nUDP: inuse 0 mem 7\n";
        assert_eq!(parse_buffers(text), Some(365));
        assert_eq!(parse_buffers("UDP: inuse 0 mem 7\n"), None);
    }
}

//! Which addresses the interfaces of a network namespace hold, by rtnetlink: procfs lists IPv4's without saying whose each one is.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;

use crate::netlink::{Message, Protocol, Socket};

const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
/// `struct ifaddrmsg`: family, length of the prefix, flags, scope, index of the interface.
const FIXED: usize = 8;
/// `IFA_ADDRESS`: of the peer where the link has one, and then the own one is `IFA_LOCAL`. IPv4 always says both.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;

/// An address and the index of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) interface: u32,
    pub(crate) address: IpAddr,
}

/// Every address in the netns that the calling thread is in, but for those that only interfaces of these names hold.
///
/// A change meanwhile does not make it start again: a node that is given thousands of addresses would never be read. The kernel may
/// then leave out or repeat addresses of the interface that changed; who calls this looks again.
pub fn held(except: &[&str]) -> io::Result<BTreeSet<IpAddr>> {
    let mut socket = Socket::open(Protocol::Route)?;
    let mut left_out = Vec::new();
    for name in except {
        match name_to_index(&socket, name) {
            Ok(index) => left_out.push(index),
            Err(Errno::NODEV) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let found = each(&mut socket)?;
    Ok(found.into_iter().filter(|held| !left_out.contains(&held.interface)).map(|held| held.address).collect())
}

/// Every address in the netns of this socket, with the same reserve.
pub(crate) fn each(socket: &mut Socket) -> io::Result<Vec<Held>> {
    let mut each = |message: &Message<'_>, found: &mut Vec<Held>| found.extend(read(message));
    socket.dump_once(GET_ADDRESS, &[0; FIXED], &|_| {}, &mut each).map(|(found, _)| found)
}

/// `None` for what is no IP address.
fn read(message: &Message<'_>) -> Option<Held> {
    if message.kind != NEW_ADDRESS {
        return None;
    }
    let interface = u32::from_ne_bytes(message.payload.get(4..FIXED)?.try_into().ok()?);
    let attributes = message.attributes(FIXED);
    let bytes = attributes.find(LOCAL).or_else(|| attributes.find(ADDRESS))?;
    let address = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some(Held { interface, address })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::Netns;
    use crate::netlink::{Writer, messages};

    fn ip(args: &str) {
        let output = Command::new("ip").args(args.split(' ')).output().expect("ip is installed");
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn addresses_of_an_interface_that_is_left_out_are_not_among_them_unless_another_has_them() {
        let netns = Netns::create().expect("netns");
        let found = netns.run(|| {
            ip("link set lo up");
            // Down, as kube-proxy leaves its own.
            ip("link add services type bridge");
            ip("link add node0 type bridge");
            for address in ["198.18.1.1/24", "198.18.1.7/32", "fd77::1/64"] {
                ip(&format!("address add {address} dev node0 nodad"));
            }
            for address in ["198.18.1.7/32", "198.19.0.1/32", "fd77:1::1/128"] {
                ip(&format!("address add {address} dev services nodad"));
            }
            // A link with a peer: only its own end is held here.
            ip("address add 198.18.2.1 peer 198.18.2.2 dev node0");
            (held(&["services", "absent"]).expect("read"), held(&[]).expect("read"))
        });
        let (without, all) = found.expect("entered");
        let texts = |found: BTreeSet<IpAddr>| found.into_iter().map(|ip| ip.to_string()).collect::<Vec<_>>();
        assert_eq!(texts(without), ["127.0.0.1", "198.18.1.1", "198.18.1.7", "198.18.2.1", "::1", "fd77::1"]);
        assert_eq!(
            texts(all),
            ["127.0.0.1", "198.18.1.1", "198.18.1.7", "198.18.2.1", "198.19.0.1", "::1", "fd77::1", "fd77:1::1"]
        );
    }

    #[test]
    fn what_is_no_address_or_cut_short_is_none() {
        let mut writer = Writer::default();
        writer.message(NEW_ADDRESS, 0, 1, &[0; FIXED], |writer| writer.put(ADDRESS, &[1; 6]));
        writer.message(NEW_ADDRESS, 0, 1, &[0; FIXED], |_| {});
        writer.message(NEW_ADDRESS, 0, 1, &[0; 4], |_| {});
        writer.message(16, 0, 1, &[0; FIXED], |writer| writer.put(ADDRESS, &[1; 4]));
        let bytes = writer.into_bytes();
        assert_eq!(messages(&bytes).map(|message| read(&message)).collect::<Vec<_>>(), [None; 4]);
    }
}

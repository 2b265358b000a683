//! The kernel's way to an address, by rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use super::routes::{FIXED, GET_ROUTE, NEW_ROUTE, RTN_LOCAL, route_attribute};
use crate::netlink::Socket;

/// Where what is sent to an address goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Towards {
    pub(super) interface: u32,
    /// The next hop, where that is not the address itself.
    pub(super) gateway: Option<IpAddr>,
    /// The address that a socket which is not bound has then.
    pub(super) source: Option<IpAddr>,
    /// The address is one of this netns.
    pub(super) is_local: bool,
}

/// Asks the kernel for its way to an address. `None`: there is none, or one with a next hop of the other family.
pub(super) fn towards(socket: &mut Socket, to: IpAddr) -> io::Result<Option<Towards>> {
    use route_attribute::{GATEWAY, INTERFACE, SOURCE, TO, VIA};
    const RTN_UNICAST: u8 = 1;
    let (family, bytes) = octets(to);
    let mut header = [0; FIXED];
    (header[0], header[1]) = (family, u8::try_from(bytes.len() * 8).unwrap_or_default());
    let mut found = None;
    let asked = socket.request(
        GET_ROUTE,
        0,
        &header,
        |w| w.put(TO, &bytes),
        |message| {
            let attributes = message.attributes(FIXED);
            let kind = message.payload.get(7).copied().unwrap_or_default();
            let known = message.kind == NEW_ROUTE && matches!(kind, RTN_UNICAST | RTN_LOCAL);
            found = known
                .then(|| {
                    Some(Towards {
                        interface: attributes.ne32(INTERFACE)?,
                        gateway: attributes.find(GATEWAY).and_then(address),
                        source: attributes.find(SOURCE).and_then(address),
                        is_local: kind == RTN_LOCAL,
                    })
                })
                .flatten()
                .filter(|_| attributes.find(VIA).is_none());
        },
    );
    match asked {
        Ok(()) => Ok(found),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL | Errno::AFNOSUPPORT) => {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}

/// An address as netlink has it.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// The same the other way: its family (`AF_INET`, `AF_INET6`) and its bytes.
pub(super) fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(ip) => (2, ip.octets().to_vec()),
        IpAddr::V6(ip) => (10, ip.octets().to_vec()),
    }
}

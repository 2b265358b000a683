//! The interfaces of a pod, as far as our routes depend on them.

use std::io;

use super::rules::Family;
use crate::netlink::{Attributes, Socket};

/// `lo` has this number in every netns, whatever it is renamed to.
pub(super) const LOOPBACK: u32 = 1;

pub(super) const NEW_LINK: u16 = 16;
#[cfg_attr(not(feature = "tokio"), allow(dead_code))] // Only the monitor asks.
pub(super) const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
/// `struct ifinfomsg`.
const FIXED: usize = 16;
/// `IFF_UP`.
const UP: u32 = 1;

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) is_up: bool,
    pub(super) has_ipv6: bool,
}

impl Link {
    pub(super) const fn is_loopback(&self) -> bool {
        self.index == LOOPBACK
    }

    /// Whether a route of this family can lead by it.
    pub(super) fn can_route(&self, family: Family) -> bool {
        self.is_up && !self.is_loopback() && (family == Family::V4 || self.has_ipv6)
    }
}

/// All of them.
pub(super) fn read(socket: &mut Socket) -> io::Result<Vec<Link>> {
    /// `IFLA_IFNAME`.
    const NAME: u16 = 3;
    socket.dump(
        GET_LINK,
        &[0; FIXED],
        |_| {},
        |message, found| {
            let Some(header) = message.payload.get(..FIXED) else { return };
            let number =
                |at: usize| header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
            let (Some(index), Some(flags)) = (number(4), number(8)) else { return };
            if message.kind != NEW_LINK {
                return;
            }
            let attributes = message.attributes(FIXED);
            found.push(Link {
                index,
                name: attributes.text(NAME).unwrap_or_default(),
                is_up: flags & UP != 0,
                has_ipv6: has_ipv6(&attributes),
            });
        },
    )
}

fn has_ipv6(attributes: &Attributes<'_>) -> bool {
    /// `IFLA_AF_SPEC`, `AF_INET6`, `IFLA_INET6_CONF`, `DEVCONF_DISABLE_IPV6`.
    const AF_SPEC: u16 = 26;
    const INET6: u16 = 10;
    const CONF: u16 = 2;
    const DISABLED: usize = 26;
    let families = Attributes::nested(attributes.find(AF_SPEC).unwrap_or_default()).find(INET6);
    let conf = families.and_then(|v6| Attributes::nested(v6).find(CONF));
    conf.and_then(|conf| conf.get(DISABLED * 4..DISABLED * 4 + 4)) == Some(&[0; 4])
}

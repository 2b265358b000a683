//! The interfaces of a netns, as far as our routes and neighbour entries depend on them.

use std::io;

use rustix::io::Errno;

use super::rules::Family;
use crate::netlink::{Attributes, Message, Socket};

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
    pub(super) is_veth: bool,
    /// Its other end, in the netns that has it.
    pub(super) peer: Option<u32>,
    /// The bridge that it is a port of.
    pub(super) master: Option<u32>,
    pub(super) hardware: Vec<u8>,
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
    socket.dump(GET_LINK, &[0; FIXED], |_| {}, |message, found| found.extend(link(message)))
}

/// One; `None` when there is none of this number.
pub(super) fn one(socket: &mut Socket, index: u32) -> io::Result<Option<Link>> {
    let mut header = [0; FIXED];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut found = None;
    match socket.request(GET_LINK, 0, &header, |_| {}, |message| found = link(message)) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(None),
        other => other.map(|()| found),
    }
}

fn link(message: &Message<'_>) -> Option<Link> {
    /// `IFLA_ADDRESS`, `IFLA_IFNAME`, `IFLA_LINK`, `IFLA_MASTER`, `IFLA_LINKINFO` and in it `IFLA_INFO_KIND`.
    const HARDWARE: u16 = 1;
    const NAME: u16 = 3;
    const PEER: u16 = 5;
    const MASTER: u16 = 10;
    const INFO: u16 = 18;
    const KIND: u16 = 1;
    let header = message.payload.get(..FIXED)?;
    let number = |at: usize| header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let (index, flags) = (number(4)?, number(8)?);
    let attributes = message.attributes(FIXED);
    let info = Attributes::nested(attributes.find(INFO).unwrap_or_default());
    (message.kind == NEW_LINK).then(|| Link {
        index,
        name: attributes.text(NAME).unwrap_or_default(),
        is_up: flags & UP != 0,
        has_ipv6: has_ipv6(&attributes),
        is_veth: info.text(KIND).as_deref() == Some("veth"),
        peer: attributes.ne32(PEER),
        master: attributes.ne32(MASTER),
        hardware: attributes.find(HARDWARE).unwrap_or_default().to_vec(),
    })
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

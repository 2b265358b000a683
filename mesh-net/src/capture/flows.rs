//! The sets of flows by netlink: what is in them, what is put in and taken out.
//!
//! A flow stands in a set as its socket in the pod has it. Rules put some in and take some out by themselves; the rest is done here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;

use super::Error;
use super::rules::{Family, Set, TABLE};
use super::transaction::{DELETE_ELEMENT, FIXED, GET_ELEMENT, INET, NEW_ELEMENT, transaction};
use crate::diag::Connection;
use crate::netlink::{Attributes, CREATE, Socket, Writer};

/// `NFT_SET_EVAL`: rules change it.
pub(super) const DYNAMIC: u32 = 0x20;
/// Elements in one message: an attribute holds 64 KiB, an element of IPv6 less than 64 bytes.
const CHUNK: usize = 500;

/// A TCP connection as its socket in the pod has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// The pod's own end.
    pub local: SocketAddr,
    /// The far end, of the same family.
    pub remote: SocketAddr,
}

impl Flow {
    pub(super) const fn of(connection: &Connection) -> Self {
        Self { local: connection.local, remote: connection.remote }
    }

    pub(super) fn family(&self) -> Family {
        if self.local.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Own address, own port, far address, far port, each in words of four bytes (`struct nft_data`).
    fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(40);
        for end in [self.local, self.remote] {
            match end.ip() {
                IpAddr::V4(ip) => key.extend(ip.octets()),
                IpAddr::V6(ip) => key.extend(ip.octets()),
            }
            key.extend(end.port().to_be_bytes());
            key.extend([0, 0]);
        }
        key
    }

    fn of_key(family: Family, key: &[u8]) -> Option<Self> {
        let (local, remote) = key.split_at_checked(key_len(family) as usize / 2)?;
        Some(Self { local: end(family, local)?, remote: end(family, remote)? })
    }
}

fn end(family: Family, bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port): (IpAddr, _) = match family {
        Family::V4 => {
            let (ip, port) = bytes.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*ip).into(), port)
        }
        Family::V6 => {
            let (ip, port) = bytes.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*ip).into(), port)
        }
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port.first_chunk()?)))
}

/// Bytes of a key.
pub(super) const fn key_len(family: Family) -> u32 {
    match family {
        Family::V4 => 16,
        Family::V6 => 40,
    }
}

/// How `nft` shows a key: `ipv4_addr . inet_service . ipv4_addr . inet_service` (`TYPE_BITS` is 6).
pub(super) const fn key_type(family: Family) -> u32 {
    const PORT: u32 = 13;
    let address = match family {
        Family::V4 => 7,
        Family::V6 => 8,
    };
    (((address << 6 | PORT) << 6 | address) << 6) | PORT
}

/// Writes the attributes of a new set.
pub(super) fn put_set(w: &mut Writer, set: &Set, id: u32) {
    w.put_str(1, TABLE);
    w.put_str(2, set.name);
    w.put_be32(3, DYNAMIC);
    w.put_be32(4, key_type(set.family));
    w.put_be32(5, key_len(set.family));
    w.nest(9, |w| w.put_be32(1, set.size));
    w.put_be32(10, id);
}

/// What is in a set; nothing if there is no such set.
pub(super) fn read(socket: &mut Socket, set: &'static str, family: Family) -> Result<Vec<Flow>, Error> {
    let listed = socket.dump(
        GET_ELEMENT,
        &INET,
        |w| {
            w.put_str(1, TABLE);
            w.put_str(2, set);
        },
        |message, found| {
            if message.kind != NEW_ELEMENT {
                return;
            }
            let elements = message.attributes(FIXED);
            for (_, element) in Attributes::nested(elements.find(3).unwrap_or_default()) {
                let key = Attributes::nested(element).find(1).map(Attributes::nested);
                let key = key.as_ref().and_then(|key| key.find(1));
                found.extend(key.and_then(|key| Flow::of_key(family, key)));
            }
        },
    );
    match listed {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(Vec::new()),
        listed => listed.map_err(Error::kernel(format!("list set {set} of table inet culvert"))),
    }
}

/// Puts flows into a set.
pub(super) fn put(socket: &mut Socket, set: &'static str, flows: &[Flow]) -> Result<(), Error> {
    change(socket, NEW_ELEMENT, CREATE, "add flows to set", set, flows)
}

/// Takes flows out of a set; one that has gone by itself fails the others of its chunk, which the next try gets.
pub(super) fn take(socket: &mut Socket, set: &'static str, flows: &[Flow]) -> Result<(), Error> {
    flows.chunks(CHUNK).try_for_each(|flows| {
        match change(socket, DELETE_ELEMENT, 0, "take flows out of set", set, flows) {
            Err(Error::Kernel { source, .. }) if Errno::from_io_error(&source) == Some(Errno::NOENT) => Ok(()),
            other => other,
        }
    })
}

fn change(
    socket: &mut Socket,
    kind: u16,
    flags: u16,
    what: &str,
    set: &'static str,
    flows: &[Flow],
) -> Result<(), Error> {
    for flows in flows.chunks(CHUNK) {
        transaction(socket, |batch| {
            batch.add(format!("{what} {set}"), kind, flags, |w| {
                w.put_str(1, TABLE);
                w.put_str(2, set);
                w.nest(3, |w| {
                    for flow in flows {
                        w.nest(1, |w| w.nest(1, |w| w.put(1, &flow.key())));
                    }
                });
            });
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_as_the_flow_that_it_was_made_of() {
        for (local, remote) in [("198.18.1.5:80", "203.0.113.7:40000"), ("[fd77::5]:80", "[fd77::9]:40000")] {
            let parse = |text: &str| text.parse().expect("an address");
            let flow = Flow { local: parse(local), remote: parse(remote) };
            let key = flow.key();
            assert_eq!(u32::try_from(key.len()), Ok(key_len(flow.family())));
            assert_eq!(Flow::of_key(flow.family(), &key), Some(flow));
            assert_eq!(Flow::of_key(flow.family(), &key[..key.len() - 4]), None);
        }
    }
}

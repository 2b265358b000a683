//! What a captured pod believes of its node's hardware address, made permanent.
//!
//! A probe of kubelet passes the pod's policies because the node has a socket of this very connection. A neighbour on the same bridge
//! that lies about the node's address (ARP, NDP) would be sent the pod's answers, and could go on in the probe's place. An entry that
//! is permanent is not changed by what others say (`neigh_update` in the kernel's net/core/neighbour.c).
//!
//! Fixed is only what is sure: the pod's interface is a veth whose other end the node has, the node reaches the pod's address by that
//! end or by the bridge that it is a port of, and the pod reaches the node's address of that route the same way back. Elsewhere
//! (macvlan, a data path of eBPF, a gateway that is another machine) nothing is touched. Entries of others that are permanent already
//! are left alone.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use rustix::io::Errno;

use super::links::{self, Link};
use super::towards::{address, octets, towards};
use crate::addresses;
use crate::netlink::{CREATE, Message, REPLACE, Socket};

const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;
const GET_NEIGHBOUR: u16 = 30;
/// `struct ndmsg`: family, padding, interface, state, flags, type.
const FIXED: usize = 12;
/// `NDA_DST`, `NDA_LLADDR`, `NDA_PROTOCOL`.
const ADDRESS: u16 = 1;
const HARDWARE: u16 = 2;
const MADE_BY: u16 = 12;
/// `NUD_PERMANENT`.
const PERMANENT: u16 = 0x80;
/// Who made an entry, as the kernel keeps it for whoever asks: a number that no routing daemon has (`rt_protos` of iproute2).
const US: u8 = 150;
/// Of Ethernet, which a veth is.
const HARDWARE_LENGTH: usize = 6;

/// Interface and address of a neighbour.
type Key = (u32, IpAddr);

/// An entry as it is.
#[derive(Debug)]
struct Seen {
    key: Key,
    hardware: Vec<u8>,
    is_permanent: bool,
    is_ours: bool,
}

/// Makes the entries what they should be. Answers how many had to be written or taken away.
pub(super) fn ensure(pod: &mut Socket, node: &mut Socket) -> io::Result<usize> {
    let wanted = wanted(pod, node)?;
    let seen = read(pod)?;
    let mut changed = 0;
    for entry in seen.iter().filter(|entry| entry.is_ours && !wanted.contains_key(&entry.key)) {
        delete(pod, entry.key)?;
        changed += 1;
    }
    for (key, hardware) in wanted {
        let found = seen.iter().find(|entry| entry.key == key);
        let is_fixed = found.is_some_and(|entry| entry.is_permanent && (!entry.is_ours || entry.hardware == hardware));
        if !is_fixed {
            put(pod, key, &hardware)?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// Takes away what is ours; the kernel learns again by itself.
pub(super) fn remove(pod: &mut Socket) -> io::Result<()> {
    let ours: Vec<Key> = read(pod)?.into_iter().filter(|entry| entry.is_ours).map(|entry| entry.key).collect();
    ours.into_iter().try_for_each(|key| delete(pod, key))
}

/// The node's hardware address, by the address that the pod asks for when it wants to reach the node.
fn wanted(pod: &mut Socket, node: &mut Socket) -> io::Result<BTreeMap<Key, Vec<u8>>> {
    let mut wanted = BTreeMap::new();
    let links = links::read(pod)?;
    for held in addresses::each(pod)? {
        let Some(inside) = links.iter().find(|link| link.index == held.interface && link.is_up) else { continue };
        if let Some((next, outside)) = hop(pod, node, inside, held.address)?
            && outside.hardware.len() == HARDWARE_LENGTH
        {
            wanted.insert((inside.index, next), outside.hardware);
        }
    }
    Ok(wanted)
}

/// The next hop of the pod towards its node, and the node's interface that it is, for the pod's address `own` on `inside`.
fn hop(pod: &mut Socket, node: &mut Socket, inside: &Link, own: IpAddr) -> io::Result<Option<(IpAddr, Link)>> {
    let Some(peer) = inside.peer.filter(|_| inside.is_veth) else { return Ok(None) };
    let Some(end) = links::one(node, peer)?.filter(|end| end.is_veth && end.peer == Some(inside.index)) else {
        return Ok(None);
    };
    let Some(there) = towards(node, own)?.filter(|route| !route.is_local && route.gateway.is_none()) else {
        return Ok(None);
    };
    let by_bridge = end.master == Some(there.interface);
    if there.interface != end.index && !by_bridge {
        return Ok(None);
    }
    let Some(source) = there.source else { return Ok(None) };
    let Some(back) = towards(pod, source)?.filter(|route| route.interface == inside.index) else {
        return Ok(None);
    };
    // On a bridge the gateway may be another machine; by the veth itself nobody else can be.
    if let Some(gateway) = back.gateway.filter(|_| by_bridge)
        && !towards(node, gateway)?.is_some_and(|route| route.is_local)
    {
        return Ok(None);
    }
    let outside = if by_bridge { links::one(node, there.interface)? } else { Some(end) };
    Ok(outside.map(|outside| (back.gateway.unwrap_or(source), outside)))
}

fn read(pod: &mut Socket) -> io::Result<Vec<Seen>> {
    pod.dump(GET_NEIGHBOUR, &[0; FIXED], |_| {}, |message, found| found.extend(seen(message)))
}

fn seen(message: &Message<'_>) -> Option<Seen> {
    let header: &[u8; FIXED] = message.payload.get(..FIXED)?.try_into().ok()?;
    let attributes = message.attributes(FIXED);
    let interface = u32::from_ne_bytes(header[4..8].try_into().ok()?);
    let state = u16::from_ne_bytes(header[8..10].try_into().ok()?);
    let address = address(attributes.find(ADDRESS)?)?;
    (message.kind == NEW_NEIGHBOUR).then(|| Seen {
        key: (interface, address),
        hardware: attributes.find(HARDWARE).unwrap_or_default().to_vec(),
        is_permanent: state & PERMANENT != 0,
        is_ours: attributes.find(MADE_BY) == Some(&[US]),
    })
}

fn header((interface, to): Key, state: u16) -> ([u8; FIXED], Vec<u8>) {
    let (family, bytes) = octets(to);
    let mut header = [0; FIXED];
    header[0] = family;
    header[4..8].copy_from_slice(&interface.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    (header, bytes)
}

fn put(pod: &mut Socket, key: Key, hardware: &[u8]) -> io::Result<()> {
    let (header, to) = header(key, PERMANENT);
    let attributes = [(ADDRESS, &to[..]), (HARDWARE, hardware), (MADE_BY, &[US])];
    let body = |w: &mut crate::netlink::Writer| attributes.iter().for_each(|(kind, value)| w.put(*kind, value));
    pod.request(NEW_NEIGHBOUR, CREATE | REPLACE, &header, body, |_| {})
}

fn delete(pod: &mut Socket, key: Key) -> io::Result<()> {
    let (header, to) = header(key, 0);
    match pod.request(DELETE_NEIGHBOUR, 0, &header, |w| w.put(ADDRESS, &to), |_| {}) {
        // It went with its interface.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NODEV | Errno::NXIO)) => Ok(()),
        other => other,
    }
}

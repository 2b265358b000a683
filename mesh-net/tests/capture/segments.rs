//! TCP segments by hand, with numbers of the sender's choice: RFC 9293, 3.1.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_net::Netns;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;
pub const FIN_ACK: u8 = 0x11;
/// Longer than a packet needs on one machine that is busy.
const SOON: Duration = Duration::from_secs(2);

/// The sequence number and the acknowledged one.
pub type Numbers = (u32, u32);

/// Sends one segment whose numbers belong to nothing, and says which flags come back to its port soon.
pub fn segment(netns: &Netns, from: SocketAddr, to: SocketAddr, flags: u8, data: &[u8]) -> Option<u8> {
    let heard = Heard(raw(netns, to.is_ipv6()));
    send(netns, from, to, flags, (256, 256), data);
    heard.until(to, from, |tcp| tcp.get(13).copied())
}

/// Sends one segment with these numbers.
pub fn send(
    netns: &Netns,
    from: SocketAddr,
    to: SocketAddr,
    flags: u8,
    (sequence, acknowledged): Numbers,
    data: &[u8],
) {
    let socket = raw(netns, to.is_ipv6());
    socket.bind(&SockAddr::from(SocketAddr::new(from.ip(), 0))).unwrap();
    let mut header = Vec::from(from.port().to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header.extend(sequence.to_be_bytes());
    header.extend(acknowledged.to_be_bytes());
    header.extend([5 << 4, flags, 0x20, 0, 0, 0, 0, 0]); // length, flags, window, checksum, urgent
    header.extend(data);
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u16::try_from(header.len()).unwrap().to_be_bytes();
    let summed = [octets(from.ip()), octets(to.ip()), vec![0, 6], length.to_vec(), header.clone()].concat();
    let words = summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[16..18].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    socket.send_to(&header, &SockAddr::from(SocketAddr::new(to.ip(), 0))).unwrap();
}

pub fn is_reset(flags: Option<u8>) -> bool {
    flags.is_some_and(|flags| flags & RST != 0)
}

fn raw(netns: &Netns, v6: bool) -> Socket {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    netns.run(|| Socket::new(domain, Type::RAW, Some(Protocol::TCP))).unwrap().unwrap()
}

/// Copies of all segments of a family that come into a namespace.
pub struct Heard(Socket);

impl Heard {
    pub fn in_netns(netns: &Netns, family: usize) -> Self {
        Self(raw(netns, family == crate::bed::V6))
    }

    /// The numbers that the next segment of this way has, after the first one with data that was heard.
    pub fn next(&self, from: SocketAddr, to: SocketAddr) -> Numbers {
        let numbers = self.until(from, to, |tcp| {
            let number = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
            let data = tcp.len().checked_sub(usize::from(tcp.get(12)? >> 4) * 4).filter(|data| *data > 0)?;
            Some((number(4)?.wrapping_add(u32::try_from(data).ok()?), number(8)?))
        });
        numbers.expect("a segment with data")
    }

    /// What is wanted of the first segment of this way that has it.
    fn until<T>(&self, from: SocketAddr, to: SocketAddr, wanted: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let until = Instant::now() + SOON;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.0.set_read_timeout(Some(left)).unwrap();
            let mut packet = [0; 2048];
            let Ok(length) = (&self.0).read(&mut packet) else { break };
            // The header of IPv4 is read along, that of IPv6 is not.
            let tcp = if to.is_ipv4() { packet.get(20..length) } else { packet.get(..length) }.unwrap_or_default();
            let port = |at: usize| tcp.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
            let is_of_this_way = (port(0), port(2)) == (Some(from.port()), Some(to.port()));
            if let Some(found) = is_of_this_way.then(|| wanted(tcp)).flatten() {
                return Some(found);
            }
        }
        None
    }
}

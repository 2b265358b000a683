//! Netlink, as little of it as we use: framing, attributes, and a blocking socket that asks and waits.
//!
//! Written out instead of taken from the typed netlink crates: of the expressions that our rules are made of, most are unknown
//! to those and would be raw attributes there as well, so a rule would be built half in one language and half in another.
//! What the kernel sends is read without trust all the same: a message cut short ends the reading, it never panics.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`: what is dumped changed under the dump.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// `NLA_TYPE_MASK`: without the "nested" and "network byte order" bits.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// The kernel answers within the send call, so this only bounds a wait for something that will never come.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// The kernel fills dumps up to 32 KiB at a time for a reader that offers as much (`netlink_dump`).
const RECEIVE: usize = 32 * 1024;
/// A dump that keeps being overtaken by changes is started again this often (guess: changes come in bursts of a few).
const DUMP_TRIES: u32 = 8;

/// Messages and their attributes, written one after the other into one buffer.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// One message: header, the family's own fixed header, attributes.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, seq: u32, fixed: &[u8], body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        body(self);
        let length =
            u32::try_from(self.bytes.len() - start).expect("messages are built here and are a few hundred bytes");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// One attribute, padded to four bytes.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("attributes are built here and are far below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// A 32-bit number in network order, as nf_tables wants them.
    pub(crate) fn put_be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A NUL-terminated string.
    pub(crate) fn put_str(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.put(kind, &bytes);
    }

    /// An attribute made of attributes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(self);
        let length =
            u16::try_from(self.bytes.len() - start).expect("attributes are built here and are far below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// What was written.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A received message.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    seq: u32,
    /// Whose request caused it; in a notification, the port of the socket that made the change.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))] // Only the monitor asks.
    pub(crate) port: u32,
    /// After the netlink header: the family's fixed header, then attributes.
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// The attributes behind a fixed header of this size.
    pub(crate) fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes { rest: self.payload.get(fixed..).unwrap_or_default() }
    }

    /// `Some` if it says how a request ended: zero or an errno.
    fn outcome(&self) -> Option<Result<(), Errno>> {
        (self.kind == ERROR || self.kind == DONE).then(|| match self.payload.get(..4).map(be_or_ne_i32) {
            Some(0) => Ok(()),
            Some(code) => Err(Errno::from_raw_os_error(code.saturating_neg())),
            // A DONE without a code is how old kernels end a dump.
            None if self.kind == DONE => Ok(()),
            None => Err(Errno::BADMSG),
        })
    }
}

fn be_or_ne_i32(bytes: &[u8]) -> i32 {
    bytes.try_into().map(i32::from_ne_bytes).unwrap_or_default()
}

/// The messages of one datagram.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.get(..HEADER)?;
        let field32 = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let field16 = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = field32(0) as usize;
        let payload = datagram.get(HEADER..length)?;
        let message = Message { kind: field16(4), flags: field16(6), seq: field32(8), port: field32(12), payload };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Attributes, read one after the other: (type, value).
#[derive(Clone)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes inside an attribute.
    pub(crate) const fn nested(value: &'a [u8]) -> Self {
        Self { rest: value }
    }

    /// The value of the first attribute of this type.
    pub(crate) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The same as a number in network order.
    pub(crate) fn be32(&self, kind: u16) -> Option<u32> {
        self.find(kind).and_then(|value| value.try_into().ok()).map(u32::from_be_bytes)
    }

    /// The same as a number in host order.
    pub(crate) fn ne32(&self, kind: u16) -> Option<u32> {
        self.find(kind).and_then(|value| value.try_into().ok()).map(u32::from_ne_bytes)
    }

    /// The same as a 64-bit number in network order.
    pub(crate) fn be64(&self, kind: u16) -> Option<u64> {
        self.find(kind).and_then(|value| value.try_into().ok()).map(u64::from_be_bytes)
    }

    /// The same as text, without the closing NUL.
    pub(crate) fn text(&self, kind: u16) -> Option<String> {
        self.find(kind).map(text)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.rest.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & ATTRIBUTE_TYPE;
        let value = self.rest.get(4..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Bytes up to the first NUL as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// One blocking netlink socket, living in the netns in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    port: u32,
    seq: u32,
}

/// Whether what was dumped changed under the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overtaken {
    Yes,
    No,
}

/// Which netlink family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// `NETLINK_NETFILTER`.
    Netfilter,
    /// `NETLINK_ROUTE`.
    Route,
}

/// Opens a netlink socket in the current netns, joined to these multicast groups (a bit set, group n is bit n-1).
pub(crate) fn open(protocol: Protocol, groups: u32, flags: SocketFlags) -> io::Result<(OwnedFd, u32)> {
    let protocol = match protocol {
        Protocol::Netfilter => Some(rustix::net::netlink::NETFILTER),
        // NETLINK_ROUTE is number 0, which rustix spells as no protocol.
        Protocol::Route => None,
    };
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags | SocketFlags::CLOEXEC, protocol)?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    let port = SocketAddrNetlink::try_from(rustix::net::getsockname(&fd)?)?.pid();
    Ok((fd, port))
}

impl Socket {
    /// Opens a socket in the current netns.
    pub(crate) fn open(protocol: Protocol) -> io::Result<Self> {
        let (fd, port) = open(protocol, 0, SocketFlags::empty())?;
        rustix::net::sockopt::set_socket_timeout(&fd, rustix::net::sockopt::Timeout::Recv, Some(ANSWER_DEADLINE))?;
        Ok(Self { fd, port, seq: 0 })
    }

    /// The kernel's name for this socket; the owner of an owned table, and the author of a change.
    pub(crate) const fn port(&self) -> u32 {
        self.port
    }

    /// The next free sequence number of `count`.
    pub(crate) const fn sequence(&mut self, count: u32) -> u32 {
        let first = self.seq.wrapping_add(1);
        self.seq = self.seq.wrapping_add(count);
        first
    }

    /// Asks for everything of a kind; `each` sees every object. A dump that was overtaken by a change starts again: `each` is
    /// told so by `restart`.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        fixed: &[u8],
        body: impl Fn(&mut Writer),
        mut each: impl FnMut(&Message<'_>, &mut Vec<T>),
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            match self.dump_once(kind, fixed, &body, &mut each) {
                Ok((found, Overtaken::No)) => return Ok(found),
                Ok((_, Overtaken::Yes)) => {}
                Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::INTR.into())
    }

    /// The same without starting again: for whoever looks again soon, or can do with a part.
    pub(crate) fn dump_once<T>(
        &mut self,
        kind: u16,
        fixed: &[u8],
        body: &impl Fn(&mut Writer),
        each: &mut impl FnMut(&Message<'_>, &mut Vec<T>),
    ) -> io::Result<(Vec<T>, Overtaken)> {
        let (mut found, mut overtaken) = (Vec::new(), Overtaken::No);
        let seq = self.send(kind, DUMP, fixed, body)?;
        self.answers(seq, |message| {
            if message.flags & DUMP_INTERRUPTED != 0 {
                overtaken = Overtaken::Yes;
            }
            each(message, &mut found);
        })?;
        Ok((found, overtaken))
    }

    /// One request, acknowledged; `each` sees what came before the acknowledgement.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        body: impl Fn(&mut Writer),
        each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        let seq = self.send(kind, flags | ACK, fixed, &body)?;
        self.answers(seq, each)
    }

    /// Sends a batch of which one message asks for an acknowledgement; the kernel gives it after the commit. On failure: which
    /// message the kernel refused (its sequence number), and why.
    pub(crate) fn batch(&mut self, bytes: &[u8], first: u32, acked: u32, last: u32) -> Result<(), (u32, io::Error)> {
        self.send_bytes(bytes).map_err(|error| (first, error))?;
        let mut failed: Option<(u32, Errno)> = None;
        let mut buffer = vec![0; RECEIVE];
        let mut flags = RecvFlags::empty();
        let mut done = false;
        loop {
            // The kernel has queued everything it has to say before the send returned: wait for the first answer only.
            let length = match rustix::net::recv(&self.fd, &mut buffer[..], flags) {
                Ok((_, length)) => length,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) if flags.contains(RecvFlags::DONTWAIT) => break,
                Err(error) => return Err((first, error.into())),
            };
            for message in messages(buffer.get(..length).unwrap_or_default()) {
                // Answers to an earlier request that was given up.
                if message.seq.wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                match message.outcome() {
                    Some(Ok(())) => done |= message.seq == acked,
                    Some(Err(error)) if failed.is_none() => failed = Some((message.seq, error)),
                    _ => {}
                }
                flags = RecvFlags::DONTWAIT;
            }
        }
        match failed {
            Some((seq, error)) => Err((seq, error.into())),
            None if done => Ok(()),
            None => {
                Err((acked, io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel did not acknowledge the batch")))
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, fixed: &[u8], body: &impl Fn(&mut Writer)) -> io::Result<u32> {
        let seq = self.sequence(1);
        let mut writer = Writer::default();
        writer.message(kind, flags, seq, fixed, |writer| body(writer));
        self.send_bytes(&writer.into_bytes())?;
        Ok(seq)
    }

    fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::io::retry_on_intr(|| rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &kernel))?;
        Ok(())
    }

    fn answers(&self, seq: u32, mut each: impl FnMut(&Message<'_>)) -> io::Result<()> {
        let mut buffer = vec![0; RECEIVE];
        loop {
            let (_, length) =
                rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::TRUNC))?;
            let datagram = buffer.get(..length).ok_or(Errno::MSGSIZE)?;
            for message in messages(datagram).filter(|message| message.seq == seq) {
                match message.outcome() {
                    Some(outcome) => return Ok(outcome?),
                    None => each(&message),
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::default();
        writer.message(7, ACK, 42, &[1, 2, 3, 4], |writer| {
            writer.put_str(1, "abc");
            writer.nest(2, |writer| writer.put_be32(3, 0x0102_0304));
        });
        let bytes = writer.into_bytes();
        let found: Vec<_> = messages(&bytes).collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].kind, found[0].seq, found[0].flags), (7, 42, ACK | REQUEST));
        let attributes = found[0].attributes(4);
        assert_eq!(attributes.text(1).as_deref(), Some("abc"));
        let inner = Attributes::nested(attributes.find(2).expect("written above"));
        assert_eq!(inner.be32(3), Some(0x0102_0304));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = message.outcome();
                for (_, value) in message.attributes(4) {
                    prop_assert!(Attributes::nested(value).count() <= value.len());
                }
            }
        }
    }
}

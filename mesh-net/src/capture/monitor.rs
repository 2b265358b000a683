//! Tells when rules, ip rules or routes of a pod's netns change, and who did it.
//!
//! Multicast notifications of the kernel. nf_tables names the process that changed it. For ip rules and routes there is only the
//! netlink port of the author, which is its pid in its own pid namespace: it is believed if a process with that pid runs in this
//! netns, else nobody is named (short-lived programs such as `ip` are often gone by then). Only what can concern capture is passed on: our
//! table, rules and routes of our routing table. What it says is a reason to look, never a fact to act on.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::links;
use super::routes::{self, ROUTE_TABLES, route_attribute, rule_attribute};
use super::rules::{FWMARK, TABLE};
use super::{Error, Session, transaction};
use crate::netlink::{self, Message, Protocol, messages};
use crate::netns::{Netns, NetnsId};

/// Bits of `NFNLGRP_NFTABLES` (7).
const NFTABLES: u32 = 1 << 6;
/// Bits of `RTNLGRP_LINK` (1), `_IPV4_ROUTE` (7), `_IPV4_RULE` (8), `_IPV6_ROUTE` (11), `_IPV6_RULE` (19).
const ROUTES: u32 = 1 | (1 << 6) | (1 << 7) | (1 << 10) | (1 << 18);
const NEW_GENERATION: u16 = (10 << 8) | 15;
/// Between the first notification of a transaction and the one that names its author. They are sent in one go; this bounds the
/// wait if the author's is lost.
const AUTHOR_WAIT: Duration = Duration::from_millis(20);
/// Packets of one kind that are read in a row; the largest of our own writes makes some 300.
const SHARE: u32 = 1_024;

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Changed {
    /// Table `inet culvert` or something in it.
    Table,
    /// An ip rule.
    IpRule,
    /// A route of our table.
    Route,
    /// An interface.
    Interface,
    /// Notifications were lost: anything.
    Unknown,
}

/// Who changed it, as far as the kernel tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changer {
    /// Its thread id as the node sees it.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// One change, or several by the same author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Who.
    pub by: Option<Changer>,
    /// What, in the order seen and without repetition.
    pub what: Vec<Changed>,
    /// It was the session itself that [`Monitor::known`] was told of.
    pub own: bool,
}

/// Watches one netns.
#[derive(Debug)]
pub struct Monitor {
    netns: NetnsId,
    netfilter: AsyncFd<OwnedFd>,
    route: AsyncFd<OwnedFd>,
    known: Option<(u32, u32)>,
    /// nf_tables changes whose author has not been named yet, by the author's netlink port.
    unnamed: BTreeMap<u32, Vec<Changed>>,
    ready: VecDeque<Change>,
}

impl Monitor {
    /// Starts watching. What changed before is not told: read after opening. Needs a tokio runtime.
    pub fn open(netns: &Netns) -> Result<Self, Error> {
        let open =
            |protocol, groups| netlink::open(protocol, groups, SocketFlags::NONBLOCK).and_then(|(fd, _)| register(fd));
        let (netfilter, route) = netns.run(|| (open(Protocol::Netfilter, NFTABLES), open(Protocol::Route, ROUTES)))?;
        let netfilter = netfilter.map_err(|source| Error::Open { family: "nf_tables", source })?;
        let route = route.map_err(|source| Error::Open { family: "route", source })?;
        Ok(Self { netns: netns.id(), netfilter, route, known: None, unnamed: BTreeMap::new(), ready: VecDeque::new() })
    }

    /// Changes by this session are marked as our own.
    pub const fn known(&mut self, session: &Session) {
        self.known = Some(session.ports());
    }

    /// The next change; changes of one author that are there at once are one. May be dropped at any await: nothing is lost.
    pub async fn changed(&mut self) -> Result<Change, Error> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            // Either branch only waits for readiness; what is read lands in `self`.
            let waited = tokio::select! {
                ready = self.netfilter.readable() => ready.map(|mut guard| guard.clear_ready()),
                ready = self.route.readable() => ready.map(|mut guard| guard.clear_ready()),
                () = tokio::time::sleep(AUTHOR_WAIT), if !self.unnamed.is_empty() => {
                    self.give_up_on_authors();
                    Ok(())
                }
            };
            waited.map_err(Error::kernel("wait for netlink notifications"))?;
            self.drain().map_err(Error::kernel("read netlink notifications"))?;
        }
    }

    /// Reads what is there. Of more than a round's share nobody needs to know who and what: that something changed is enough to look, and
    /// a pod that makes changes without end takes no more of this thread than that.
    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 32 * 1024];
        let mut lost = false;
        for protocol in [Protocol::Netfilter, Protocol::Route] {
            for packets in 0.. {
                // What is left is read with what comes next.
                if packets == SHARE {
                    lost = true;
                    break;
                }
                let fd = match protocol {
                    Protocol::Netfilter => self.netfilter.get_ref(),
                    Protocol::Route => self.route.get_ref(),
                };
                match rustix::net::recv(fd, &mut buffer[..], RecvFlags::DONTWAIT) {
                    Ok((_, length)) => {
                        for message in messages(buffer.get(..length).unwrap_or_default()) {
                            match protocol {
                                Protocol::Netfilter => self.nf_tables(&message),
                                Protocol::Route => self.routing(&message),
                            }
                        }
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    // More happened than the socket's queue holds.
                    Err(Errno::NOBUFS) => lost = true,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if lost {
            self.push(Change { by: None, what: vec![Changed::Unknown], own: false });
        }
        Ok(())
    }

    fn nf_tables(&mut self, message: &Message<'_>) {
        if message.kind == NEW_GENERATION {
            // Names the author of everything before it from the same port.
            let Some(what) = self.unnamed.remove(&message.port) else { return };
            let attributes = message.attributes(transaction::FIXED);
            let by = attributes.be32(2).map(|pid| Changer { pid, name: attributes.text(3).unwrap_or_default() });
            let own = self.known.is_some_and(|(port, _)| port == message.port);
            self.push(Change { by, what, own });
            return;
        }
        let concerns_a_table = (transaction::NEW_TABLE..=transaction::DELETE_SET).contains(&message.kind);
        // The table's name is attribute 1 of tables, chains, rules and sets alike.
        if concerns_a_table && message.attributes(transaction::FIXED).text(1).as_deref() == Some(TABLE) {
            self.unnamed.insert(message.port, vec![Changed::Table]);
        }
    }

    fn routing(&mut self, message: &Message<'_>) {
        let attributes = message.attributes(routes::FIXED);
        let what = match message.kind {
            routes::NEW_RULE | routes::DELETE_RULE
                if attributes.ne32(rule_attribute::MARK) == Some(FWMARK)
                    || attributes
                        .ne32(rule_attribute::PRIORITY)
                        .is_none_or(|priority| priority <= routes::RULE_PRIORITY + 1) =>
            {
                Changed::IpRule
            }
            routes::NEW_ROUTE | routes::DELETE_ROUTE
                if attributes.ne32(route_attribute::TABLE).is_some_and(|table| ROUTE_TABLES.contains(&table)) =>
            {
                Changed::Route
            }
            // Its attributes stand behind another header; that something happened is enough.
            links::NEW_LINK | links::DELETE_LINK => Changed::Interface,
            _ => return,
        };
        let own = self.known.is_some_and(|(_, port)| port == message.port);
        self.push(Change { by: self.process(message.port), what: vec![what], own });
    }

    fn give_up_on_authors(&mut self) {
        for (port, what) in std::mem::take(&mut self.unnamed) {
            let own = self.known.is_some_and(|(known, _)| known == port);
            self.push(Change { by: self.process(port), what, own });
        }
    }

    /// Adds to the last change if that is by the same author.
    fn push(&mut self, change: Change) {
        match self.ready.back_mut() {
            Some(last) if last.by == change.by && last.own == change.own => {
                for what in change.what {
                    if !last.what.contains(&what) {
                        last.what.push(what);
                    }
                }
            }
            _ => self.ready.push_back(change),
        }
    }

    /// The process behind a netlink port: the kernel gives the first netlink socket of a process its pid as port.
    fn process(&self, port: u32) -> Option<Changer> {
        // `0` is the kernel itself; the upper half is where ports go that are no pids.
        if port == 0 || i32::try_from(port).is_err() {
            return None;
        }
        let name = std::fs::read_to_string(format!("/proc/{port}/comm")).ok()?;
        let netns = NetnsId::of_path(Path::new(&format!("/proc/{port}/ns/net"))).ok()?;
        (netns == self.netns).then(|| Changer { pid: port, name: name.trim_end().to_owned() })
    }
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the value that `AsyncFd` takes, which closes it only after deregistering.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

//! What callers hold per pod: two blocking netlink sockets that live in the pod's netns.
//!
//! While a [`Session`] lives it owns the pod's table ([`Mode::Owned`]); when it is dropped, table, routes and rules stay as they
//! are. All calls are short (well below a millisecond each) and block.

use std::collections::BTreeMap;

use mesh_model::Exclusions;
use rustix::io::Errno;

use super::rules::{self, CONNMARK, FWMARK};
use super::{Drift, Error, Mode, Spec, drift, routes, table, text};
use crate::netlink::{Protocol, Socket};
use crate::netns::{Netns, NetnsId};
use crate::procfs;

/// A change by somebody else between our reading and our writing makes the transaction fail; then it is done again. More often
/// than this means a fight with another program (guess).
const WRITE_TRIES: u32 = 4;

/// The rules of one pod, to be read and changed.
#[derive(Debug)]
pub struct Session {
    mode: Mode,
    netfilter: Socket,
    route: Socket,
    /// What was last applied by, or first read by, this session.
    spec: Option<Spec>,
    /// What the pod excludes, as its owner says.
    exclusions: Exclusions,
}

/// What [`Session::apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Everything was as it should be; nothing was written.
    Unchanged,
    /// Something was written.
    Written,
}

/// What [`Session::read`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What the table should be: as this session last applied it, else as the table itself says. `None`: a table is there that
    /// cannot be understood.
    pub spec: Option<Spec>,
    /// What differs from that.
    pub drift: Vec<Drift>,
    /// What each rule counted, as [`Session::counters`] says.
    pub counts: BTreeMap<String, (u64, u64)>,
}

impl Session {
    /// Opens a pod's netns; refuses the node's own (that of pid 1, and the caller's). In [`Mode::Owned`] a table that its owner
    /// left behind is taken over at once, with its rules, flows and counters.
    pub fn open(netns: &Netns, mode: Mode) -> Result<Self, Error> {
        let here = Netns::current()?.id();
        if netns.id() == here {
            return Err(Error::HostNetns(here));
        }
        // Without a readable /proc/1/ns/net the caller's own has to do.
        Self::open_in(netns, mode, procfs::host_netns().unwrap_or(here))
    }

    /// The same where the caller knows the node's netns.
    pub fn open_in(netns: &Netns, mode: Mode, host: NetnsId) -> Result<Self, Error> {
        if netns.id() == host {
            return Err(Error::HostNetns(host));
        }
        let (netfilter, route) = netns.run(|| (Socket::open(Protocol::Netfilter), Socket::open(Protocol::Route)))?;
        let mut netfilter = netfilter.map_err(|source| Error::Open { family: "nf_tables", source })?;
        let route = route.map_err(|source| Error::Open { family: "route", source })?;
        if mode == Mode::Owned {
            match table::read(&mut netfilter)? {
                Some(seen) if seen.owner.is_some_and(|owner| owner != netfilter.port()) => {
                    return Err(Error::OwnedByOther { port: seen.owner.unwrap_or(0) });
                }
                Some(seen) if table::orphaned(&seen) => table::adopt(&mut netfilter).map_err(unsupported)?,
                _ => {}
            }
        }
        Ok(Self { mode, netfilter, route, spec: None, exclusions: Exclusions::default() })
    }

    /// Says what the pod excludes. Nothing is written by this: what is in force differs from now on, until [`Session::apply`].
    pub fn exclude(&mut self, exclusions: Exclusions) {
        self.exclusions = exclusions;
    }

    /// What this session last applied or first read, if anything.
    #[must_use]
    pub const fn spec(&self) -> Option<Spec> {
        self.spec
    }

    /// How the table is protected.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// The netlink ports of this session, (nf_tables, route): the authors that a [`super::Monitor`] must not take for strangers.
    #[must_use]
    pub const fn ports(&self) -> (u32, u32) {
        (self.netfilter.port(), self.route.port())
    }

    /// Makes routes, rules and table what the spec says, the table in one transaction. Writes nothing where all is well, keeps
    /// counters, and touches no flow that exists.
    pub fn apply(&mut self, spec: &Spec) -> Result<Applied, Error> {
        if [CONNMARK, FWMARK].contains(&spec.mark.value()) {
            return Err(Error::ReservedMark);
        }
        // Before the table: what is captured needs the way back.
        let routed = routes::ensure(&mut self.route)?;
        let chains = rules::prescribe(spec, &self.exclusions);
        for _ in 0..WRITE_TRIES {
            let seen = table::read(&mut self.netfilter)?;
            if drift::compare(seen.as_ref(), &chains, self.mode, self.netfilter.port()).is_empty() {
                self.spec = Some(*spec);
                return Ok(if routed { Applied::Written } else { Applied::Unchanged });
            }
            if let Some(owner) =
                seen.as_ref().and_then(|seen| seen.owner).filter(|owner| *owner != self.netfilter.port())
            {
                return Err(Error::OwnedByOther { port: owner });
            }
            match table::write(&mut self.netfilter, self.mode, &chains, seen.as_ref()) {
                Ok(()) => {
                    self.spec = Some(*spec);
                    return Ok(Applied::Written);
                }
                Err(error) if overtaken(&error) => {}
                Err(error) => return Err(unsupported(error)),
            }
        }
        Err(Error::Contended { tries: WRITE_TRIES })
    }

    /// Reads everything back and compares. `None`: no table, and this session never made one.
    pub fn read(&mut self) -> Result<Option<Found>, Error> {
        let seen = table::read(&mut self.netfilter)?;
        if self.spec.is_none() {
            self.spec = seen.as_ref().and_then(drift::learn);
        }
        let Some(spec) = self.spec else {
            return Ok(seen.map(|seen| Found { spec: None, drift: vec![Drift::Unrecognised], counts: counts(&seen) }));
        };
        let chains = rules::prescribe(&spec, &self.exclusions);
        let mut drift = drift::compare(seen.as_ref(), &chains, self.mode, self.netfilter.port());
        drift.extend(routes::drift(&mut self.route)?);
        Ok(Some(Found { spec: Some(spec), drift, counts: seen.as_ref().map(counts).unwrap_or_default() }))
    }

    /// Whether nothing differs but what the pod excludes.
    pub fn only_exclusions_differ(&mut self) -> Result<bool, Error> {
        let (Some(spec), Some(mut seen)) = (self.spec, table::read(&mut self.netfilter)?) else { return Ok(false) };
        for chain in &mut seen.chains {
            chain.rules.retain(|rule| !rules::is_exclusion(&rule.name));
        }
        let chains = rules::prescribe(&spec, &Exclusions::default());
        let drift = drift::compare(Some(&seen), &chains, self.mode, self.netfilter.port());
        Ok(drift.is_empty() && routes::drift(&mut self.route)?.is_empty())
    }

    /// Removes the table, then rules and routes. Fine if they are gone already. Captured connections end with it: their address
    /// translation goes; see [`super::Stage::Drain`].
    pub fn remove(&mut self) -> Result<(), Error> {
        self.spec = None;
        table::delete(&mut self.netfilter)?;
        routes::remove(&mut self.route)
    }

    /// What is there, read back and as stable text: chains in the order in which a packet meets them, no counter values, the
    /// enrolment's mark as `$mark`.
    pub fn render(&mut self) -> Result<String, Error> {
        let seen = table::read(&mut self.netfilter)?;
        let mark = self.spec.or_else(|| seen.as_ref().and_then(drift::learn)).map(|spec| spec.mark);
        let mut out = seen.map(|seen| text::table(&seen, mark)).unwrap_or_default();
        out.push_str(&routes::text(&mut self.route)?);
        Ok(out)
    }

    /// What each rule counted, by its name: (packets, bytes). The nat chains see the first packet of a connection only, so
    /// `capture-in`, `capture-out` and the rules beside them count connections.
    pub fn counters(&mut self) -> Result<BTreeMap<String, (u64, u64)>, Error> {
        Ok(table::read(&mut self.netfilter)?.as_ref().map(counts).unwrap_or_default())
    }
}

fn counts(seen: &table::Seen) -> BTreeMap<String, (u64, u64)> {
    seen.counts().into_iter().map(|(name, count)| (name, (count.packets, count.bytes))).collect()
}

/// The kernel refuses flags that it does not know.
fn unsupported(error: Error) -> Error {
    match &error {
        Error::Kernel { what, source }
            if what.ends_with("create the table")
                && matches!(Errno::from_io_error(source), Some(Errno::OPNOTSUPP | Errno::INVAL)) =>
        {
            Error::OwnedUnsupported
        }
        _ => error,
    }
}

/// Somebody else changed the table between our reading and our writing.
fn overtaken(error: &Error) -> bool {
    let retry = |errno| matches!(errno, Errno::NOENT | Errno::EXIST | Errno::BUSY | Errno::AGAIN | Errno::INTR);
    matches!(error, Error::Kernel { source, .. } if Errno::from_io_error(source).is_some_and(retry))
}

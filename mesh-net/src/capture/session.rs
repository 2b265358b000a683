//! What callers hold per pod: blocking netlink sockets that live in the pod's netns, and one in the node's that only asks.
//!
//! While a [`Session`] lives it owns the pod's table ([`Mode::Owned`]); when it is dropped, table, routes and rules stay as they
//! are. All calls are short (well below a millisecond each) and block.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use mesh_model::{Exclusions, Mark};
use rustix::io::Errno;

use super::flows::{self, Flow};
use super::rules::{self, Family};
use super::{Drift, Error, Mode, Spec, Stage, change, drift, neighbours, routes, table, text};
use crate::diag::{Connection, Diag};
use crate::netlink::{Protocol, Socket};
use crate::netns::{Netns, NetnsId};
use crate::procfs;

/// A change by somebody else between our reading and our writing makes the transaction fail; then it is done again. More often
/// than this means a fight with another program (guess).
const WRITE_TRIES: u32 = 4;
/// Flows that may go on beside the mesh, where nobody says otherwise. A flow costs some 200 bytes of the kernel's memory.
pub const FLOWS: u32 = 65_536;

/// The rules of one pod, to be read and changed.
#[derive(Debug)]
pub struct Session {
    mode: Mode,
    netfilter: Socket,
    route: Socket,
    sockets: Diag,
    /// In the netns that it was opened from: the node's.
    node: Socket,
    /// Most flows of a set.
    limit: u32,
    /// Interfaces that were there when it last looked.
    links: BTreeSet<u32>,
    /// Flows whose socket was not there when it last looked.
    ended: HashSet<Flow>,
    /// What it last read is a table of the release before.
    former: bool,
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
        let (netfilter, route, sockets) =
            netns.run(|| (Socket::open(Protocol::Netfilter), Socket::open(Protocol::Route), Diag::open()))?;
        let sockets = sockets.map_err(Error::Sockets)?;
        let node = Socket::open(Protocol::Route).map_err(|source| Error::Open { family: "route", source })?;
        let mut netfilter = netfilter.map_err(|source| Error::Open { family: "nf_tables", source })?;
        let route = route.map_err(|source| Error::Open { family: "route", source })?;
        if mode == Mode::Owned {
            match table::read(&mut netfilter)? {
                Some(seen) if seen.owner.is_some_and(|owner| owner != netfilter.port()) => {
                    return Err(Error::OwnedByOther { port: seen.owner.unwrap_or(0) });
                }
                Some(seen) if table::orphaned(&seen) => change::adopt(&mut netfilter).map_err(unsupported)?,
                _ => {}
            }
        }
        Ok(Self {
            mode,
            netfilter,
            route,
            sockets,
            node,
            limit: FLOWS,
            links: BTreeSet::new(),
            ended: HashSet::new(),
            former: false,
            spec: None,
            exclusions: Exclusions::default(),
        })
    }

    /// Says how many flows may go on beside the mesh; a table that is there keeps the limit that it was made with.
    pub fn limit(&mut self, flows: u32) {
        self.limit = flows.max(1);
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

    /// Whether what it last read is a table of the release before: its rules know nothing of marked listeners.
    #[must_use]
    pub const fn is_former(&self) -> bool {
        self.former
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

    /// Makes routes, rules and table what the spec says, each change of the table in one transaction. Writes nothing where all is well,
    /// keeps counters, and touches no flow that exists: on the way into a pod that is running, what is open is listed and lives on,
    /// on the way out what is captured. When that does not work, what was in force before still is, or nothing of ours.
    pub fn apply(&mut self, spec: &Spec) -> Result<Applied, Error> {
        if rules::is_public(spec.mark.value()) {
            return Err(Error::ReservedMark);
        }
        let seen = table::read(&mut self.netfilter)?;
        let before = self.stage(seen.as_ref())?;
        if self.former && spec.stage == Stage::Redirect && before == Some(Stage::Redirect) {
            return self.upgrade(spec);
        }
        match (before, spec.stage) {
            // Open until now: nothing of ours, or a pod that was leaving.
            (None | Some(Stage::Learn | Stage::Drain), Stage::Redirect) => self.enrol(spec, before),
            (Some(Stage::Redirect | Stage::Part), Stage::Drain) => self.let_go(spec),
            _ => self.write_over(spec, seen),
        }
    }

    /// What is in force. A table that is gone and was not given up stays what it was: flows that were beside the mesh are no longer known,
    /// and are not learned again.
    fn stage(&mut self, seen: Option<&table::Seen>) -> Result<Option<Stage>, Error> {
        self.former = seen.is_some_and(table::Seen::is_former);
        let learned = seen.and_then(drift::learn).map(|spec| spec.stage);
        let remembered = learned.or(self.spec.map(|spec| spec.stage));
        match remembered {
            None if seen.is_some() || routes::left_behind(&mut self.route)? => Ok(Some(Stage::Redirect)),
            other => Ok(other),
        }
    }

    fn enrol(&mut self, spec: &Spec, before: Option<Stage>) -> Result<Applied, Error> {
        let learned = self.begin(spec).and_then(|()| self.learn(spec.mark)).and_then(|()| self.write(spec));
        if learned.is_err() {
            let undone = match before {
                Some(Stage::Drain) => self.write(&Spec { stage: Stage::Drain, ..*spec }).map(drop),
                _ => self.remove(),
            };
            undone.inspect_err(|error| tracing::warn!(%error, "the rules of a pod that was not captured stay")).ok();
        }
        learned
    }

    /// Has the flows remembered that begin. By the table alone: ip rules without one say that a table was lost whose flows nobody knows
    /// any more. (A pod that was leaving has its rules and routes.)
    fn begin(&mut self, spec: &Spec) -> Result<(), Error> {
        let seen = table::read(&mut self.netfilter)?;
        self.write_table(&Spec { stage: Stage::Learn, ..*spec }, seen, false).map(drop)
    }

    /// Puts the flows that are open into the set of those from before; those that begin now, rules put there.
    fn learn(&mut self, mark: Mark) -> Result<(), Error> {
        let mut captured = HashSet::new();
        for family in Family::BOTH {
            captured.extend(flows::read(&mut self.netfilter, family.captured(), family)?);
        }
        let open: Vec<Flow> = self.open_flows(mark)?.into_iter().filter(|flow| !captured.contains(flow)).collect();
        self.put(&open, Family::before)
    }

    /// From rules of the release before, which translate what is captured: its connections, and those of the proxy's listeners from before
    /// they had a mark, keep their translation as flows from before. The application's end of a proxied connection is captured the new
    /// way at once.
    fn upgrade(&mut self, spec: &Spec) -> Result<Applied, Error> {
        change::learn(&mut self.netfilter, self.mode, &rules::learning(spec.mark), &rules::sets(self.limit))?;
        // One listing for both: an end that is in one and not yet in the other would pass for a flow of its own.
        let listed = self.going_out(|_| true)?;
        let all: HashSet<Flow> = listed.iter().map(Flow::of).collect();
        let proxied = |flow: &Flow| all.contains(&Flow { local: flow.remote, remote: flow.local });
        let own = listed.iter().filter(|one| is_of_others(one, spec.mark));
        let open: Vec<Flow> = own.map(Flow::of).filter(|flow| !proxied(flow)).collect();
        self.put(&open, Family::before)?;
        self.write(spec)
    }

    fn let_go(&mut self, spec: &Spec) -> Result<Applied, Error> {
        self.write(&Spec { stage: Stage::Part, ..*spec })?;
        let mut beside = HashSet::new();
        for family in Family::BOTH {
            for set in [family.before(), family.excluded()] {
                beside.extend(flows::read(&mut self.netfilter, set, family)?);
            }
        }
        let open = self.open_flows(spec.mark)?;
        let captured: Vec<Flow> = open.into_iter().filter(|flow| !beside.contains(flow)).collect();
        self.put(&captured, Family::captured)?;
        self.write(spec)
    }

    /// Flows of the pod's own sockets to other hosts that have not ended.
    fn open_flows(&mut self, mark: Mark) -> Result<HashSet<Flow>, Error> {
        Ok(self.going_out(|one| is_of_others(one, mark))?.iter().map(Flow::of).collect())
    }

    /// Those of these connections that have not ended. What has ended or stays in the pod is not kept: any process makes as many of them as
    /// it likes.
    fn going_out(&mut self, wanted: impl Fn(&Connection) -> bool) -> Result<Vec<Connection>, Error> {
        let goes_out = |ip: IpAddr| !ip.is_loopback() && !ip.is_unspecified();
        let counts = |one: &Connection| !one.has_ended && goes_out(one.remote.ip()) && wanted(one);
        self.sockets.connections(counts).map_err(Error::Sockets)
    }

    fn put(&mut self, open: &[Flow], set: fn(Family) -> &'static str) -> Result<(), Error> {
        for family in Family::BOTH {
            let flows: Vec<Flow> = open.iter().filter(|flow| flow.family() == family).copied().collect();
            let too_many = |found: usize| found > self.limit as usize;
            if too_many(flows.len()) {
                return Err(Error::TooManyFlows { found: flows.len(), limit: self.limit });
            }
            flows::put(&mut self.netfilter, set(family), &flows).map_err(|error| match error {
                // The set is full: with what rules have put there meanwhile.
                Error::Kernel { source, .. } if Errno::from_io_error(&source) == Some(Errno::NFILE) => {
                    Error::TooManyFlows { found: flows.len(), limit: self.limit }
                }
                other => other,
            })?;
            // A rule says nothing about a flow that found no room.
            let found = flows::read(&mut self.netfilter, set(family), family)?.len();
            if found >= self.limit as usize && found > flows.len() {
                return Err(Error::TooManyFlows { found, limit: self.limit });
            }
        }
        Ok(())
    }

    /// Takes the flows out of all sets whose sockets are gone, those that were gone the last time already. Answers how many are left.
    pub fn sweep(&mut self) -> Result<usize, Error> {
        let mut listed = Vec::new();
        for family in Family::BOTH {
            for set in [family.before(), family.excluded(), family.captured()] {
                let flows = flows::read(&mut self.netfilter, set, family)?;
                listed.extend((!flows.is_empty()).then_some((set, flows)));
            }
        }
        if listed.is_empty() {
            self.ended.clear();
            return Ok(0);
        }
        let wanted: HashSet<Flow> = listed.iter().flat_map(|(_, flows)| flows).copied().collect();
        let open: HashSet<Flow> = self.going_out(|one| wanted.contains(&Flow::of(one)))?.iter().map(Flow::of).collect();
        let (mut left, mut ended) = (0, HashSet::new());
        for (set, flows) in listed {
            let (there, gone): (Vec<Flow>, Vec<Flow>) = flows.into_iter().partition(|flow| open.contains(flow));
            let (over, doubted): (Vec<Flow>, Vec<Flow>) = gone.into_iter().partition(|flow| self.ended.contains(flow));
            flows::take(&mut self.netfilter, set, &over)?;
            left += there.len() + doubted.len();
            ended.extend(doubted);
        }
        self.ended = ended;
        Ok(left)
    }

    /// Writes what the spec says.
    fn write(&mut self, spec: &Spec) -> Result<Applied, Error> {
        let seen = table::read(&mut self.netfilter)?;
        self.write_over(spec, seen)
    }

    /// The same over what was just read.
    fn write_over(&mut self, spec: &Spec, seen: Option<table::Seen>) -> Result<Applied, Error> {
        // Before the table: what is captured needs the way back.
        let routed = routes::ensure(&mut self.route)?;
        self.write_table(spec, seen, routed)
    }

    /// The table alone. `routed`: something else was written.
    fn write_table(&mut self, spec: &Spec, mut seen: Option<table::Seen>, routed: bool) -> Result<Applied, Error> {
        let (chains, sets) = (rules::prescribe(spec, &self.exclusions), rules::sets(self.limit));
        for _ in 0..WRITE_TRIES {
            if drift::compare(seen.as_ref(), &chains, &sets, self.mode, self.netfilter.port()).is_empty() {
                self.spec = Some(*spec);
                return Ok(if routed { Applied::Written } else { Applied::Unchanged });
            }
            if let Some(owner) =
                seen.as_ref().and_then(|seen| seen.owner).filter(|owner| *owner != self.netfilter.port())
            {
                return Err(Error::OwnedByOther { port: owner });
            }
            match change::write(&mut self.netfilter, self.mode, &chains, &sets, seen.as_ref()) {
                Ok(()) => {
                    self.spec = Some(*spec);
                    return Ok(Applied::Written);
                }
                Err(error) if overtaken(&error) => seen = table::read(&mut self.netfilter)?,
                Err(error) => return Err(unsupported(error)),
            }
        }
        Err(Error::Contended { tries: WRITE_TRIES })
    }

    /// Holds a captured pod to what its node is, and repairs that. Where it does not work the pod is no worse off than without a mesh,
    /// and is captured all the same.
    pub fn hold_neighbours(&mut self) {
        if self.spec.is_none_or(|spec| spec.stage != Stage::Redirect) {
            return;
        }
        match neighbours::ensure(&mut self.route, &mut self.node) {
            Ok(0) => {}
            Ok(changed) => tracing::debug!(changed, "neighbour entries of the node made permanent"),
            Err(error) => tracing::warn!(%error, "neighbour entries of the node are not permanent"),
        }
    }

    /// Reads everything back and compares. `None`: no table, and this session never made one.
    pub fn read(&mut self) -> Result<Option<Found>, Error> {
        let seen = table::read(&mut self.netfilter)?;
        self.former = seen.as_ref().is_some_and(table::Seen::is_former);
        if self.spec.is_none() {
            self.spec = seen.as_ref().and_then(drift::learn);
        }
        let Some(spec) = self.spec else {
            return Ok(seen.map(|seen| Found { spec: None, drift: vec![Drift::Unrecognised], counts: counts(&seen) }));
        };
        let (chains, sets) = (rules::prescribe(&spec, &self.exclusions), rules::sets(self.limit));
        let mut drift = drift::compare(seen.as_ref(), &chains, &sets, self.mode, self.netfilter.port());
        drift.extend(routes::audit(&mut self.route, &mut self.links)?);
        Ok(Some(Found { spec: Some(spec), drift, counts: seen.as_ref().map(counts).unwrap_or_default() }))
    }

    /// Whether nothing differs but what the pod excludes.
    pub fn only_exclusions_differ(&mut self) -> Result<bool, Error> {
        let (Some(spec), Some(mut seen)) = (self.spec, table::read(&mut self.netfilter)?) else { return Ok(false) };
        for chain in &mut seen.chains {
            chain.rules.retain(|rule| !rules::is_exclusion(&rule.name));
        }
        let (chains, sets) = (rules::prescribe(&spec, &Exclusions::default()), rules::sets(self.limit));
        let drift = drift::compare(Some(&seen), &chains, &sets, self.mode, self.netfilter.port());
        Ok(drift.is_empty() && routes::drift(&mut self.route)?.is_empty())
    }

    /// Removes rules and routes, then the table: while there is one, it says what it is, and whoever comes back to half of this goes on.
    /// Fine if they are gone already. Captured connections end with it; see [`super::Stage::Drain`].
    pub fn remove(&mut self) -> Result<(), Error> {
        self.spec = None;
        neighbours::remove(&mut self.route).map_err(Error::kernel("take back the neighbour entries of the node"))?;
        routes::remove(&mut self.route)?;
        change::delete(&mut self.netfilter)
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

    /// What each rule counted, by its name: (packets, bytes). The nat chain sees the first packet of a connection only, so `capture-in`
    /// counts connections.
    pub fn counters(&mut self) -> Result<BTreeMap<String, (u64, u64)>, Error> {
        Ok(table::read(&mut self.netfilter)?.as_ref().map(counts).unwrap_or_default())
    }
}

fn counts(seen: &table::Seen) -> BTreeMap<String, (u64, u64)> {
    seen.counts().into_iter().map(|(name, count)| (name, (count.packets, count.bytes))).collect()
}

/// Whether a connection is not the proxy's.
const fn is_of_others(connection: &Connection, mark: Mark) -> bool {
    connection.mark & Mark::MASK != mark.value()
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

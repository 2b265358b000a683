//! Follows the world: records, keepers, answers, processes, what sandboxes report.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mesh_api::link::NodeFacts;
use mesh_api::link::proxy::{Refused, ToKeeper};
use mesh_model::{PodUid, Reason};
use mesh_net::capture;
use mesh_net::procfs::{self, PodProcess};
use mesh_net::seqpacket::Conn;
use mesh_net::{Netns, NetnsId};

use super::entry::{Entry, want};
use super::{Input, Node, Unanswered};
use crate::enrol::{Delivered, Event, Failure, InForce, KeeperId, Phase, Stage, Want};
use crate::facts;
use crate::keepers::{self, KeeperHandle};
use crate::metrics::labels::Cause;
use crate::sandbox::{Done, Job, Sandbox};
use crate::source::{PodRecord, Records};
use crate::status::EventType;
use crate::watch::Scan;

impl Node {
    pub(super) fn records(&mut self, records: Records) {
        for uid in records.unsettled.difference(&self.records.unsettled) {
            let Some(record) = records.pods.get(uid) else { continue };
            let message = "labels change too fast: the pod stays in the mesh until it has said otherwise for 2 s";
            tracing::warn!(pod = %record.name, %uid, message, "enrolment");
            self.status.event(EventType::Warning, "LabelsFlap", &record.name, uid, message);
        }
        self.tell_uncaptured(&records);
        self.unread.retain(|uid| records.pods.contains_key(uid));
        self.records = records;
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in uids {
            let record = self.records.pods.get(&uid).cloned();
            let now = want(record.as_ref());
            let Some(entry) = self.pods.get_mut(&uid) else { continue };
            let (mut changed, mut excludes) = (false, false);
            if let Some(record) = record {
                let before = entry.facts();
                excludes = entry.record.exclusions != record.exclusions;
                entry.record = record;
                changed = entry.facts() != before;
            }
            if entry.machine.want() != now {
                self.step(&uid, Event::Source(now));
            }
            if changed {
                self.step(&uid, Event::FactsChanged);
            }
            if excludes {
                self.exclude(&uid);
            }
        }
        self.admit_waiting();
        // A label may have come to a pod that runs.
        self.look.notify_one();
    }

    pub(super) fn keeper_up(&mut self, keeper: KeeperId, handle: KeeperHandle) {
        tracing::info!(keeper, pid = handle.pid, "keeper connected");
        self.keepers.insert(keeper, handle);
        self.mind_former_keepers();
        // Before it hears of a pod: it must have the listeners by then.
        if let Some(predecessor) = self.partner(keeper) {
            self.introduce(predecessor, keeper);
        }
        self.tell(keeper, ToKeeper::Node(self.facts.clone()), Vec::new());
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in uids {
            self.step(&uid, Event::KeeperUp(keeper));
        }
        let id = self.number();
        self.tell(keeper, ToKeeper::SnapshotEnd { id }, Vec::new());
    }

    /// The keeper drains: whoever else is there takes over its pods, and gets the new ones.
    pub(super) fn keeper_leaving(&mut self, keeper: KeeperId) {
        if !self.keepers.contains_key(&keeper) || !self.leaving.insert(keeper) {
            return;
        }
        self.mind_former_keepers();
        let heir = self.partner(keeper).filter(|heir| !self.leaving.contains(heir));
        tracing::info!(keeper, ?heir, "keeper leaves");
        if let Some(heir) = heir {
            self.introduce(keeper, heir);
        }
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in uids {
            self.step(&uid, Event::KeeperLeaving(keeper));
        }
        if let Some(heir) = heir {
            // What it was handed and not asked to serve, it closes.
            let id = self.number();
            self.tell(heir, ToKeeper::SnapshotEnd { id }, Vec::new());
        }
    }

    /// A keeper of the release before that stays has a worker that accepts; and while none is connected, nobody knows.
    fn mind_former_keepers(&self) {
        let stays = |keeper: &KeeperId| !self.leaving.contains(keeper);
        let serves = self.keepers.is_empty()
            || self.keepers.iter().any(|(keeper, handle)| !handle.owns_packets && stays(keeper));
        self.kernel.former_serves.store(serves, Ordering::Relaxed);
    }

    /// Those that a new pod may be given to.
    pub(super) fn lasting_keepers(&self) -> Vec<KeeperId> {
        self.keepers.keys().copied().filter(|keeper| !self.leaving.contains(keeper)).collect()
    }

    /// The keeper that shares with this one: the youngest that stays, else the youngest.
    fn partner(&self, keeper: KeeperId) -> Option<KeeperId> {
        let others = || self.keepers.keys().copied().filter(|other| *other != keeper);
        others().filter(|other| !self.leaving.contains(other)).max().or_else(|| others().max())
    }

    /// Has one keeper hand what it holds to another, on a socket of their own.
    fn introduce(&mut self, from: KeeperId, to: KeeperId) {
        let able = |keeper| self.keepers.get(&keeper).is_some_and(|handle| handle.hands_over);
        if !able(from) || !able(to) {
            return tracing::warn!(
                from,
                to,
                "one of two keepers does not know hand-over: pods follow when the older one ends"
            );
        }
        match Conn::pair() {
            Ok((giver, taker)) => {
                tracing::info!(from, to, "keepers introduced");
                self.tell(from, ToKeeper::Successor, vec![giver.into()]);
                self.tell(to, ToKeeper::Predecessor, vec![taker.into()]);
            }
            Err(error) => {
                tracing::warn!(%error, "no socket pair for a hand-over: pods follow when the older keeper ends")
            }
        }
    }

    pub(super) fn keeper_down(&mut self, keeper: KeeperId) {
        if self.keepers.remove(&keeper).is_none() {
            return;
        }
        self.leaving.remove(&keeper);
        self.mind_former_keepers();
        if self.keepers.is_empty() {
            tracing::warn!(keeper, "keeper gone: captured pods are refused new connections until one is back");
        } else {
            tracing::info!(keeper, "keeper gone; another one is there");
        }
        self.unanswered.retain(|_, one| one.keeper != keeper);
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in uids {
            self.step(&uid, Event::KeeperDown(keeper));
        }
    }

    pub(super) fn keeper_answer(&mut self, keeper: KeeperId, id: u64, refused: Option<Refused>) {
        // Not found: answered twice, too late, or the end of a snapshot.
        let Some(Unanswered { keeper: asked, uid, epoch, what }) = self.unanswered.remove(&id) else { return };
        if asked != keeper {
            return tracing::warn!(keeper, asked, "a keeper answered what another was told");
        }
        match (what, refused) {
            (Some(what), None) => self.step(&uid, Event::Ack { keeper, epoch, what }),
            (Some(what), Some(refused)) => {
                self.step(&uid, Event::Nack { keeper, epoch, what, failure: keepers::failure(refused) });
            }
            (None, None) => {}
            (None, Some(refused)) => {
                tracing::warn!(keeper, %uid, cause = refused.message, "new facts of a pod were refused")
            }
        }
    }

    pub(super) fn unanswered_in_time(&mut self, id: u64) {
        let Some(Unanswered { keeper, uid, epoch, what: Some(what) }) = self.unanswered.remove(&id) else { return };
        let message = match what {
            Delivered::Offer => "node-proxy did not take the pod within 5 s",
            Delivered::Withdraw => "node-proxy did not let go of the pod within 5 s",
        };
        tracing::warn!(keeper, %uid, message, "keeper");
        let next = "look at the node-proxy pod of this node (kubectl -n culvert-system get pods -o wide)";
        let failure = Failure { reason: Reason::NotReady, message: message.to_owned(), next };
        self.step(&uid, Event::Nack { keeper, epoch, what, failure });
    }

    pub(super) fn node_facts(&mut self, facts: NodeFacts) {
        if self.facts == facts {
            return;
        }
        self.facts = facts;
        let keepers: Vec<KeeperId> = self.keepers.keys().copied().collect();
        for keeper in keepers {
            self.tell(keeper, ToKeeper::Node(self.facts.clone()), Vec::new());
        }
    }

    /// The pod excludes something else than before.
    fn exclude(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get(uid) else { return };
        if let Some(sandbox) = &entry.sandbox {
            sandbox.exclude(entry.record.exclusions.clone().unwrap_or_default());
        }
        self.tell_exclusions(uid);
        self.settle(uid);
    }

    /// Whoever reads the Events of a captured pod learns what is left out, and what was not understood: once, until it is another.
    pub(super) fn tell_exclusions(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get_mut(uid).filter(|entry| want(Some(&entry.record)) == Want::Enrolled) else {
            return;
        };
        let (kind, reason, message) = match &entry.record.exclusions {
            Ok(none) if none.is_empty() && entry.excluded_told.is_empty() => return,
            Ok(none) if none.is_empty() => {
                (EventType::Normal, "Excluded", "nothing any more: all new connections are captured".to_owned())
            }
            Ok(some) => (EventType::Normal, "Excluded", format!("new connections are not captured: {some}")),
            Err(error) => (EventType::Warning, "BadExclusions", format!("{error}; nothing is excluded")),
        };
        if entry.excluded_told == message {
            return;
        }
        entry.excluded_told.clone_from(&message);
        let name = entry.record.name.clone();
        if entry.budget.take().is_some() {
            tracing::warn!(pod = %name, %uid, reason, message, "exclusions");
            self.status.event(kind, reason, &name, uid, &message);
        }
    }

    pub(super) fn open_sandbox(&mut self, record: &PodRecord, netns: Netns) -> std::io::Result<Sandbox> {
        let (uid, exclusions) = (&record.uid, record.exclusions.clone().unwrap_or_default());
        let serial = self.number();
        let (inputs, uid) = (self.inputs.clone(), uid.clone());
        let report = Arc::new(move |done| {
            let (inputs, uid) = (inputs.clone(), uid.clone());
            let sent: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> =
                Box::pin(async move { inputs.send(Input::Sandbox { uid, serial, done }).await });
            sent
        });
        Sandbox::open(netns, serial, self.kernel.clone(), exclusions, &self.group, report)
    }

    pub(super) fn sandbox(&mut self, uid: &PodUid, serial: u64, done: Done) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let Some(sandbox) = entry.sandbox.as_ref().filter(|sandbox| sandbox.serial == serial) else { return };
        match done {
            Done::Applied { epoch, spec, result: Ok(()) } => {
                entry.rules = Some(spec.stage);
                self.step(uid, Event::RulesApplied { epoch, stage: stage(spec.stage) });
            }
            Done::Applied { epoch, spec, result: Err(failure) } => {
                self.step(uid, Event::RulesFailed { epoch, stage: stage(spec.stage), failure });
            }
            Done::Removed { epoch, result: Ok(()) } => {
                entry.rules = None;
                self.step(uid, Event::RulesRemoved { epoch });
            }
            Done::Removed { epoch, result: Err(failure) } => self.step(uid, Event::RemoveFailed { epoch, failure }),
            Done::Listeners { epoch, all } => {
                entry.listeners = all;
                self.step(uid, Event::ListenersSeen { epoch, all });
            }
            Done::Read(found) => self.read_back(uid, found),
            Done::Audited { jobs, drift, listeners, by, counts } => {
                let cause = if by.is_some() { Cause::Notification } else { Cause::Timer };
                self.metrics.audit(cause);
                self.metrics.passed.read(uid, &entry.record.name, &counts);
                // Jobs sent since will change what it saw.
                if !sandbox.is_current(jobs) {
                    return;
                }
                let epoch = entry.machine.epoch();
                entry.listeners = listeners;
                if entry.machine.phase() == Phase::Captured {
                    self.step(uid, Event::ListenersSeen { epoch, all: listeners });
                }
                if let Some(kind) = drift.iter().map(|one| one.kind).min()
                    && let Some(entry) = self.pods.get_mut(uid)
                {
                    let by = by.map(|by| format!(" (changed by {by})")).unwrap_or_default();
                    let texts: Vec<&str> = drift.iter().map(|one| one.text.as_str()).collect();
                    entry.drift = format!("{}{by}", texts.join(", "));
                    entry.drifted = (kind, cause);
                    self.step(uid, Event::RulesDrift { epoch });
                }
            }
        }
    }

    /// What was in the netns of a pod that was there before us.
    fn read_back(&mut self, uid: &PodUid, found: Result<Option<capture::Found>, Failure>) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.reading = false;
        if found.is_ok() {
            self.unread.remove(uid);
        } else {
            self.unread.insert(uid.clone());
        }
        let in_force = match found {
            Ok(None) => Some(InForce::Nothing),
            Ok(Some(capture::Found { spec: Some(spec), .. })) => {
                // Sockets that live carry this mark: it stays the one that exempts.
                entry.mark = spec.mark;
                entry.generation = spec.generation;
                entry.rules = Some(spec.stage);
                Some(InForce::Table(stage(spec.stage)))
            }
            // A table of ours that nobody can read: no mark to keep. It is written anew once the pod is served.
            Ok(Some(capture::Found { spec: None, .. })) => Some(InForce::Nothing),
            Err(failure) => {
                tracing::warn!(pod = %entry.record.name, %uid, cause = failure.message, "rules of a running pod cannot be read; tried again");
                None
            }
        };
        match in_force {
            Some(in_force) => self.step(uid, Event::Found(in_force)),
            // Let go; the next scan finds it again.
            None => self.settle(uid),
        }
        if let Some(adopting) = &mut self.adopting {
            adopting.reading.remove(uid);
        }
        self.adopted();
    }

    fn adopted(&mut self) {
        if let Some(adopting) = self.adopting.take_if(|adopting| adopting.scanned && adopting.reading.is_empty()) {
            tracing::info!(pods = self.pods.len(), "pods of this node have been read back");
            adopting.adopted.release();
            // Whoever waited has been stopped meanwhile.
            let _ = adopting.adoption.send(());
        }
    }

    pub(super) fn scan(&mut self, scan: &Scan) {
        let mut alive: BTreeMap<&PodUid, Vec<&PodProcess>> = BTreeMap::new();
        for process in scan.processes.iter().filter(|process| !self.kernel.is_host(process.netns)) {
            alive.entry(&process.uid).or_default().push(process);
        }
        let successors = self.find_gone(&alive, &scan.mounted);
        let first = self.adopting.as_ref().is_some_and(|adopting| !adopting.scanned);
        for (named, processes) in alive {
            let Some(oldest) = processes.first() else { continue };
            // At the first look plain pods are read too: they may have opted out while we were away.
            let is_new = |record: &PodRecord| {
                let may_have_rules = first || successors.contains(&record.uid) || self.unread.contains(&record.uid);
                !self.pods.contains_key(&record.uid) && (may_have_rules || want(Some(record)) != Want::Plain)
            };
            let Some(PodRecord { uid, name, .. }) = self.owner(named, oldest, is_new).cloned() else { continue };
            if let Err(error) = self.found_running(&uid, oldest) {
                tracing::warn!(pod = %name, %uid, error, "running pod cannot be looked at; tried again");
            }
        }
        if first && let Some(adopting) = &mut self.adopting {
            adopting.scanned = true;
        }
        self.adopted();
    }

    /// The record of a pod whose processes run under this uid, if it is one that is to be looked at. A record's own uid wins: the API
    /// server gives no other pod the same. A static pod's processes run under kubelet's uid for it, and its mirror's claim to that is
    /// believed if their netns holds an address of the mirror's status, which kubelet writes and not whoever makes pods.
    fn owner(&self, named: &PodUid, process: &PodProcess, is_new: impl Fn(&PodRecord) -> bool) -> Option<&PodRecord> {
        if let Some(record) = self.records.pods.get(named) {
            return is_new(record).then_some(record);
        }
        let is_held = |entry: &Entry| entry.sandbox.as_ref().is_some_and(|sandbox| sandbox.id == process.netns);
        if !self.records.claims(named).any(&is_new) || self.pods.values().any(is_held) {
            return None;
        }
        let held = match facts::of_process(process.pid) {
            Ok(held) => held,
            Err(error) => {
                tracing::debug!(uid = %named, %error, "addresses of a static pod cannot be read; tried again");
                return None;
            }
        };
        let mut proven =
            self.records.claims(named).filter(|record| record.addresses.iter().any(|address| held.contains(address)));
        // Two would be kubelet's error: neither is believed.
        let one = proven.next()?;
        (proven.next().is_none() && is_new(one)).then_some(one)
    }

    fn found_running(&mut self, uid: &PodUid, process: &PodProcess) -> Result<(), String> {
        let netns = procfs::open_netns(process.pid).map_err(|error| mesh_daemon::causes(&error))?;
        if netns.id() != process.netns {
            return Err(format!("process {} has ended meanwhile", process.pid));
        }
        let Some(record) = self.records.pods.get(uid).cloned() else { return Ok(()) };
        let mut entry = Entry::new(record, self.lasting_keepers()).map_err(|error| error.to_string())?;
        let held_by_others = |address: &IpAddr| {
            self.records.pods.values().any(|other| other.uid != *uid && other.addresses.contains(address))
        };
        let found = facts::of_process(process.pid).map_err(|error| error.to_string())?;
        let found: BTreeSet<IpAddr> = found.into_iter().filter(|address| !held_by_others(address)).collect();
        if found.len() > facts::MOST {
            let (all, told) = (found.len(), facts::MOST);
            tracing::warn!(pod = %entry.record.name, %uid, all, told, "more addresses in a pod than keepers are told");
        }
        entry.found = found.into_iter().take(facts::MOST).collect();
        let mut sandbox = self.open_sandbox(&entry.record, netns).map_err(|error| error.to_string())?;
        sandbox.send(Job::Read);
        entry.sandbox = Some(sandbox);
        entry.reading = true;
        entry.seen_alive = true;
        self.pods.insert(uid.clone(), entry);
        if let Some(adopting) = &mut self.adopting {
            adopting.reading.insert(uid.clone());
        }
        Ok(())
    }

    /// A pod is gone when no process of it is left and something says so: its record, a DEL, or that it had processes before and
    /// nothing else holds its netns. One scan may miss a process that is just being made, so it takes two.
    ///
    /// A static pod whose mirror was made anew is let go of too, with its rules left in force: they are the new one's to adopt. The
    /// uids of such new ones are answered.
    fn find_gone(
        &mut self,
        alive: &BTreeMap<&PodUid, Vec<&PodProcess>>,
        mounted: &BTreeSet<NetnsId>,
    ) -> BTreeSet<PodUid> {
        let (mut gone, mut successors) = (Vec::new(), BTreeSet::new());
        for (uid, entry) in &mut self.pods {
            if let Some(successor) = self.records.successor(&entry.record) {
                successors.insert(successor.clone());
                gone.push(uid.clone());
                continue;
            }
            let held = entry.sandbox.as_ref().map(|sandbox| sandbox.id);
            // What a static pod's mirror claims is safe here: it must be the netns that we hold.
            let uids = [Some(uid), entry.record.static_uid.as_ref()].into_iter().flatten();
            let lives = uids.filter_map(|uid| alive.get(uid)).flatten().any(|process| Some(process.netns) == held);
            if lives {
                entry.seen_alive = true;
                entry.missed = 0;
                continue;
            }
            entry.missed += 1;
            let is_mounted = held.is_some_and(|id| mounted.contains(&id));
            let over = (entry.deleted && (!is_mounted || entry.missed >= 2))
                || (entry.missed >= 2 && !is_mounted && (entry.seen_alive || entry.machine.want() == Want::Gone));
            if over {
                gone.push(uid.clone());
            }
        }
        for uid in gone {
            self.step(&uid, Event::NetnsGone);
        }
        successors
    }
}

fn stage(stage: capture::Stage) -> Stage {
    match stage {
        capture::Stage::Deny => Stage::Deny,
        capture::Stage::Redirect | capture::Stage::Part => Stage::Redirect,
        capture::Stage::Learn | capture::Stage::Drain => Stage::Drain,
    }
}

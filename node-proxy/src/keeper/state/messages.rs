//! The watcher's messages.

use std::time::Duration;

use mesh_api::link::proxy::{FromKeeper, Refused};
use mesh_api::link::worker::ToWorker;
use mesh_api::link::{NodeFacts, PodFacts};
use mesh_model::{Mark, PodUid, Reason};
use mesh_net::NetnsId;

use super::{Action, DIAG_BATCH, Fds, Owed, PATIENCE, Pod, Sent, State, Told, done, refuse};
use crate::keeper::bucket::Bucket;

/// Most pods that one keeper holds: at four descriptors each well under the 20,000 that some machines allow. Kubernetes itself
/// recommends 110 and is run with up to 500.
const MAX_PODS: usize = 2_048;

impl State {
    pub(super) fn watcher_up(&mut self, out: &mut Vec<Action>) {
        self.watcher_down();
        self.watcher_up = true;
        for pod in self.pods.values_mut() {
            pod.named = false;
        }
        self.want_diag(out);
    }

    /// Ids of the old link mean nothing any more. Pods stay: losing the watcher changes nothing for them.
    pub(super) fn watcher_down(&mut self) {
        self.watcher_up = false;
        self.diag.asked = false;
        for pod in self.pods.values_mut() {
            pod.owed.clear();
        }
        for sent in self.sent.values_mut() {
            if let Sent::Gone(owed) = sent {
                *owed = None;
            }
        }
    }

    pub(super) fn node(&mut self, facts: NodeFacts, out: &mut Vec<Action>) {
        self.node = Some(facts);
        match &self.worker {
            Some(worker) if worker.introduced => self.send_node(out),
            Some(_) => self.introduce(out),
            None => {}
        }
        self.want_diag(out);
    }

    pub(super) fn diag(&mut self, count: u8, out: &mut Vec<Action>) {
        self.diag.asked = false;
        self.diag.spare = self.diag.spare.saturating_add(count);
        if self.worker.as_ref().is_some_and(|worker| worker.introduced && worker.diag_owed > 0) && count > 0 {
            self.send_node(out);
        }
        // A watcher that has none to give is not asked again until something else happens.
        if count > 0 {
            self.want_diag(out);
        }
    }

    /// Asks for what the current worker lacks and the next one will need, one request at a time.
    pub(super) fn want_diag(&mut self, out: &mut Vec<Action>) {
        let owed = self.worker.as_ref().map_or(0, |worker| worker.diag_owed);
        let short = owed.saturating_add(self.diag.reserve).saturating_sub(self.diag.spare);
        if self.watcher_up && !self.diag.asked && short > 0 {
            self.diag.asked = true;
            out.push(Action::ToWatcher(FromKeeper::WantDiag { count: short.min(DIAG_BATCH) }));
        }
    }

    pub(super) fn add(&mut self, now: Duration, id: u64, facts: PodFacts, netns: NetnsId, out: &mut Vec<Action>) {
        let Some(mark) = mark_of(&facts).filter(|_| PodUid::parse(&facts.uid).is_ok()) else {
            let message = format!("pod {}/{}: its uid or mark cannot be used", facts.namespace, facts.name);
            return out.push(refuse(id, Reason::Malformed, message));
        };
        match self.slots.get(&facts.uid).copied() {
            Some(slot) if self.pods.get(&slot).is_some_and(|pod| pod.netns == netns) => {
                return self.renew(now, slot, id, facts, mark, out);
            }
            // The pod's sandbox was made anew: another netns under the same uid.
            Some(old) => self.let_go(old, false, None, out),
            None => {}
        }
        if self.pods.len() >= MAX_PODS {
            let message = format!("pod {}/{}: this keeper holds {MAX_PODS} pods already", facts.namespace, facts.name);
            return out.push(refuse(id, Reason::Overloaded, message));
        }
        self.last_slot += 1;
        let slot = self.last_slot;
        self.slots.insert(facts.uid.clone(), slot);
        let owed = vec![Owed { id, deadline: now + PATIENCE, on: None }];
        let bucket = Bucket::new(now);
        self.pods
            .insert(slot, Pod { facts, mark, netns, named: true, settled: false, told: Told::Nothing, owed, bucket });
        out.push(Action::Open { slot });
    }

    pub(super) fn opened(&mut self, slot: u32, refused: Option<Refused>, out: &mut Vec<Action>) {
        let Some(refused) = refused else { return self.send_pod(slot, out) };
        let Some(pod) = self.pods.get_mut(&slot) else { return };
        for owed in pod.owed.drain(..) {
            out.push(Action::ToWatcher(FromKeeper::Ack { id: owed.id, refused: Some(refused.clone()) }));
        }
        self.let_go(slot, false, None, out);
    }

    /// The pod is held already, in this very netns.
    fn renew(&mut self, now: Duration, slot: u32, id: u64, facts: PodFacts, mark: Mark, out: &mut Vec<Action>) {
        let Some(pod) = self.pods.get_mut(&slot) else { return };
        let changed = pod.facts != facts;
        (pod.facts, pod.mark, pod.named) = (facts, mark, true);
        if pod.told == Told::Serving && !changed {
            return out.push(done(id));
        }
        pod.owed.push(Owed { id, deadline: now + PATIENCE, on: None });
        match pod.told {
            Told::Sent(_) | Told::Serving if changed => self.send_update(slot, id, out),
            Told::Refused(_) => self.send_pod(slot, out),
            Told::Sent(_) | Told::Serving | Told::Nothing => {}
        }
    }

    pub(super) fn update(&mut self, now: Duration, id: u64, facts: PodFacts, out: &mut Vec<Action>) {
        let (reason, why) = match (self.slots.get(&facts.uid).copied(), mark_of(&facts)) {
            (Some(slot), Some(mark)) => return self.renew(now, slot, id, facts, mark, out),
            (None, _) => (Reason::NotReady, "is not held by this keeper; it must be added first"),
            (Some(_), None) => (Reason::Malformed, "carries a mark that cannot be used"),
        };
        out.push(refuse(id, reason, format!("pod {}/{} {why}", facts.namespace, facts.name)));
    }

    pub(super) fn del(&mut self, now: Duration, id: u64, uid: &str, drain: bool, out: &mut Vec<Action>) {
        match self.slots.get(uid).copied() {
            Some(slot) => self.let_go(slot, drain, Some((id, now + PATIENCE)), out),
            None => out.push(done(id)),
        }
    }

    pub(super) fn snapshot_end(&mut self, id: u64, out: &mut Vec<Action>) {
        let unnamed: Vec<u32> = self.pods.iter().filter(|(_, pod)| !pod.named).map(|(slot, _)| *slot).collect();
        for slot in unnamed {
            self.let_go(slot, false, None, out);
        }
        self.complete = true;
        self.end_worker_snapshot(out);
        out.push(done(id));
    }

    pub(super) fn send_update(&mut self, slot: u32, owed: u64, out: &mut Vec<Action>) {
        let id = self.send(Sent::Update(slot));
        let Some(pod) = self.pods.get_mut(&slot) else { return };
        for waiting in pod.owed.iter_mut().filter(|waiting| waiting.id == owed) {
            waiting.on = Some(id);
        }
        out.push(Action::ToWorker(ToWorker::Update { id, slot, pod: pod.facts.clone() }, Fds::None));
    }
}

fn mark_of(facts: &PodFacts) -> Option<Mark> {
    Mark::from_random(facts.mark).filter(|mark| mark.value() == facts.mark)
}

//! The worker's coming, going and answering.

use std::time::Duration;

use mesh_api::link::worker::ToWorker;
use mesh_model::Reason;

use super::{Action, Fds, OFFER_AGAIN, Pod, Sent, State, Told, Worker, done, refuse};

impl State {
    pub(super) fn worker_up(&mut self, threads: u8, out: &mut Vec<Action>) {
        self.worker_down(out);
        self.diag.reserve = threads;
        self.worker = Some(Worker { introduced: false, snapshot_ended: false, diag_owed: threads });
        self.introduce(out);
        self.want_diag(out);
    }

    /// Everything stays open for the next one; whoever waited for an answer waits for that one's.
    pub(super) fn worker_down(&mut self, out: &mut Vec<Action>) {
        self.worker = None;
        for sent in std::mem::take(&mut self.sent).into_values() {
            // A dead worker's listeners are closed.
            if let Sent::Gone(Some((id, _))) = sent {
                out.push(done(id));
            }
        }
        for pod in self.pods.values_mut() {
            pod.told = Told::Nothing;
            for owed in &mut pod.owed {
                owed.on = None;
            }
        }
    }

    /// Gives a new worker everything that is held, as soon as the node's facts are known (they come first on that link).
    pub(super) fn introduce(&mut self, out: &mut Vec<Action>) {
        let (Some(worker), Some(_)) = (&mut self.worker, &self.node) else { return };
        worker.introduced = true;
        self.send_node(out);
        out.push(Action::Certificates);
        let slots: Vec<u32> = self.pods.keys().copied().collect();
        for slot in slots {
            self.send_pod(slot, out);
        }
        self.end_worker_snapshot(out);
    }

    /// A worker that was quicker than the predecessor has not been given its certificates.
    pub(super) fn inherited(&self, out: &mut Vec<Action>) {
        if self.worker.as_ref().is_some_and(|worker| worker.introduced) {
            out.push(Action::Certificates);
        }
    }

    pub(super) fn send_node(&mut self, out: &mut Vec<Action>) {
        let (Some(worker), Some(node)) = (&mut self.worker, &self.node) else { return };
        let count = worker.diag_owed.min(self.diag.spare);
        worker.diag_owed -= count;
        self.diag.spare -= count;
        out.push(Action::ToWorker(ToWorker::Node(node.clone()), Fds::Diag(count)));
    }

    pub(super) fn send_pod(&mut self, slot: u32, out: &mut Vec<Action>) {
        if !self.worker.as_ref().is_some_and(|worker| worker.introduced) || !self.pods.contains_key(&slot) {
            return;
        }
        let id = self.send(Sent::Pod(slot));
        let Some(pod) = self.pods.get_mut(&slot) else { return };
        pod.told = Told::Sent(id);
        out.push(Action::ToWorker(ToWorker::Pod { id, slot, pod: pod.facts.clone() }, Fds::Listeners(slot)));
    }

    /// "These are all", once per worker, and only when the watcher has said so once.
    pub(super) fn end_worker_snapshot(&mut self, out: &mut Vec<Action>) {
        match &mut self.worker {
            Some(worker) if worker.introduced && !worker.snapshot_ended && self.complete => {
                worker.snapshot_ended = true
            }
            _ => return,
        }
        let id = self.send(Sent::SnapshotEnd);
        out.push(Action::ToWorker(ToWorker::SnapshotEnd { id }, Fds::None));
    }

    pub(super) fn acked(&mut self, id: u64, out: &mut Vec<Action>) {
        match self.sent.remove(&id) {
            Some(Sent::Pod(slot)) => {
                let Some(pod) = self.pods.get_mut(&slot).filter(|pod| pod.told == Told::Sent(id)) else { return };
                pod.told = Told::Serving;
                pod.settled = true;
                out.extend(settle(pod, |on| on.is_none()).into_iter().map(done));
            }
            Some(Sent::Update(slot)) => {
                let Some(pod) = self.pods.get_mut(&slot) else { return };
                if pod.told == Told::Serving {
                    out.extend(settle(pod, |on| on == Some(id)).into_iter().map(done));
                } else {
                    // Answers may come in any order: what is known of a pod is not yet the pod served.
                    for owed in pod.owed.iter_mut().filter(|owed| owed.on == Some(id)) {
                        owed.on = None;
                    }
                }
            }
            Some(Sent::Gone(owed)) => out.extend(owed.map(|(id, _)| done(id))),
            Some(Sent::SnapshotEnd) | None => {}
        }
    }

    pub(super) fn nacked(&mut self, now: Duration, id: u64, reason: Reason, out: &mut Vec<Action>) {
        let (slot, whole) = match self.sent.remove(&id) {
            Some(Sent::Pod(slot)) => (slot, true),
            Some(Sent::Update(slot)) => (slot, false),
            // It cannot refuse to let go: what it still holds is its own loss.
            Some(Sent::Gone(owed)) => return out.extend(owed.map(|(id, _)| done(id))),
            Some(Sent::SnapshotEnd) | None => return,
        };
        let Some(pod) = self.pods.get_mut(&slot) else { return };
        let late = settle(pod, |on| whole || on == Some(id));
        let message = format!("pod {}/{}: the worker refuses it; look at its log", pod.facts.namespace, pod.facts.name);
        out.extend(late.into_iter().map(|id| refuse(id, reason, message.clone())));
        if whole {
            pod.told = Told::Refused(now + OFFER_AGAIN);
            // A pod that some worker has served has redirect rules: its listeners stay, for a worker that can, which this one may be by then.
            match pod.settled {
                true => out.push(Action::Unserved { slot, reason }),
                false => self.let_go(slot, false, None, out),
            }
        }
    }
}

/// Takes out the watcher's messages that this answer settles.
fn settle(pod: &mut Pod, by: impl Fn(Option<u64>) -> bool) -> Vec<u64> {
    let (settled, rest): (Vec<_>, Vec<_>) = pod.owed.drain(..).partition(|owed| by(owed.on));
    pod.owed = rest;
    settled.into_iter().map(|owed| owed.id).collect()
}

//! What the transitions share: beginning, offering, withdrawing, giving up, leaving; and the words for what went wrong.

use mesh_model::Reason;

use super::event::{Action, Failure, KeeperId, Observed, Stage, Timer};
use super::pod::{Again, Guard, Phase, Pod, Served, Want};

type Out = Vec<Action>;

impl Pod {
    /// A new enrolment: answers of the earlier one do not count any more.
    pub(super) fn begin(&mut self, phase: Phase, out: &mut Out) {
        self.epoch += 1;
        self.phase = phase;
        self.listening = false;
        self.repairing = false;
        out.push(Action::Arm { epoch: self.epoch, timer: Timer::Deadline });
    }

    pub(super) fn offer(&mut self, guard: Guard, out: &mut Out) {
        self.begin(Phase::Offered(guard), out);
        self.offer_first(out);
    }

    /// To one keeper alone, for the ports can be opened once: the one that has been there longest, whose worker is known to work.
    /// A successor takes over when that one leaves.
    pub(super) fn offer_first(&mut self, out: &mut Out) {
        // Also who is still letting go of an earlier enrolment: it does one after the other.
        let free = |served: &Served| matches!(served, Served::Idle | Served::Leaving);
        let first = self.keepers.iter().find(|(keeper, served)| free(served) && !self.leaving.contains(keeper));
        let first = first.map(|(keeper, _)| *keeper);
        first.into_iter().for_each(|keeper| self.offer_one(keeper, out));
    }

    /// To all: redirect is in force, and what a keeper is not told, it lets go.
    pub(super) fn offer_all(&mut self, out: &mut Out) {
        let keepers: Vec<KeeperId> = self.keepers.keys().copied().collect();
        keepers.into_iter().for_each(|keeper| self.offer_one(keeper, out));
    }

    pub(super) fn offer_one(&mut self, keeper: KeeperId, out: &mut Out) {
        self.keepers.insert(keeper, Served::Asked);
        out.push(Action::Offer { keeper, epoch: self.epoch });
    }

    /// To those that stay and do not serve it; who is still letting go of an earlier enrolment does one after the other.
    pub(super) fn offer_rest(&mut self, out: &mut Out) {
        let spare = |served: &Served| matches!(served, Served::Idle | Served::Refused | Served::Leaving);
        let rest = self.keepers.iter().filter(|(keeper, served)| spare(served) && !self.leaving.contains(keeper));
        let rest: Vec<KeeperId> = rest.map(|(keeper, _)| *keeper).collect();
        rest.into_iter().for_each(|keeper| self.offer_one(keeper, out));
    }

    /// Whether somebody who stays was told about it.
    pub(super) fn is_in_lasting_hands(&self) -> bool {
        let told = |served: &Served| matches!(served, Served::Asked | Served::Serving);
        self.keepers.iter().any(|(keeper, served)| told(served) && !self.leaving.contains(keeper))
    }

    pub(super) fn withdraw_all(&mut self, drain: bool, out: &mut Out) {
        for (keeper, served) in &mut self.keepers {
            if matches!(served, Served::Asked | Served::Serving | Served::Refused) {
                *served = Served::Leaving;
                out.push(Action::Withdraw { keeper: *keeper, epoch: self.epoch, drain });
            }
        }
    }

    /// From a keeper that comes while the pod leaves the mesh: what it is not told of, it ends, captured connections included.
    pub(super) fn withdraw_one(&mut self, keeper: KeeperId, out: &mut Out) {
        self.keepers.insert(keeper, Served::Leaving);
        out.push(Action::Withdraw { keeper, epoch: self.epoch, drain: true });
    }

    /// Opting out, first half: rules before listeners, so that no new connection meets a redirect to nobody.
    pub(super) fn undo(&mut self, out: &mut Out) {
        self.epoch += 1;
        self.phase = Phase::Undoing;
        self.repairing = false;
        out.push(Action::Apply { epoch: self.epoch, stage: Stage::Drain });
    }

    /// Second half: no rule of ours is in force.
    pub(super) fn drain(&mut self, connections: bool, out: &mut Out) {
        self.phase = Phase::Draining;
        self.epoch += 1;
        // Whoever was told before is told again: an answer to the earlier epoch would not count.
        self.keepers.values_mut().filter(|one| **one == Served::Leaving).for_each(|one| *one = Served::Refused);
        self.withdraw_all(connections, out);
        self.drained_so_far(out);
    }

    pub(super) fn drained_so_far(&mut self, out: &mut Out) {
        if self.any(Served::Leaving) {
            return;
        }
        if self.want == Want::Enrolled {
            // Opted in again meanwhile, as a running pod.
            return self.offer(Guard::Open, out);
        }
        self.phase = Phase::Parting;
        self.answer_all(&Ok(false), out);
        out.push(Action::Arm { epoch: self.epoch, timer: Timer::Linger });
    }

    /// Ends an enrolment before the swap: the guard stays, the keepers let go, the caller is told.
    pub(super) fn fail(&mut self, guard: Guard, failure: Failure, out: &mut Out) {
        let again = if self.requests.is_empty() { Again::ByUs } else { Again::ByRuntime };
        // A late answer of a keeper or of the kernel must not count any more.
        self.epoch += 1;
        self.phase = Phase::Failed(guard, again);
        self.withdraw_all(false, out);
        self.answer_all(&Err(failure.clone()), out);
        out.push(Action::Report(Observed::Failed(failure)));
        if again == Again::ByUs {
            out.push(Action::Arm { epoch: self.epoch, timer: Timer::Retry });
        }
    }

    pub(super) fn leave(&mut self, out: &mut Out) {
        if self.phase == Phase::Left {
            return;
        }
        // The rules stay: until its last process is gone, what is in the netns stays captured, and meets no listener.
        self.withdraw_all(false, out);
        self.answer_all(&Err(gone()), out);
        self.forget();
        self.phase = Phase::Left;
        out.push(Action::Report(Observed::Gone));
        out.push(Action::Release);
    }

    pub(super) fn forget(&mut self) {
        self.epoch += 1;
        self.phase = Phase::Absent;
        self.listening = false;
        self.repairing = false;
    }

    pub(super) fn answer_all(&mut self, result: &Result<bool, Failure>, out: &mut Out) {
        let requests = std::mem::take(&mut self.requests);
        out.extend(requests.into_iter().map(|request| Action::Answer { request, result: result.clone() }));
    }
}

pub(super) fn gone() -> Failure {
    Failure {
        reason: Reason::Conflict,
        message: "the container was deleted meanwhile".to_owned(),
        next: "nothing, if the pod was deleted",
    }
}

pub(super) fn no_record() -> Failure {
    Failure {
        reason: Reason::NotReady,
        message: "pod-watcher has no record of the pod".to_owned(),
        next: "the runtime tries again by itself; look at pod-watcher's source of pods if this goes on",
    }
}

pub(super) fn keeper_lost() -> Failure {
    Failure {
        reason: Reason::LinkDown,
        message: "node-proxy went away".to_owned(),
        next: "look at the node-proxy pod of this node (kubectl -n culvert-system get pods -o wide)",
    }
}

pub(super) fn not_listening() -> Failure {
    Failure {
        reason: Reason::Internal,
        message: "node-proxy acknowledged the pod, but not all of its listeners are there".to_owned(),
        next: "look at the log of the keeper container of this node's node-proxy",
    }
}

pub(super) fn late(what: &str) -> Failure {
    Failure {
        reason: Reason::NotReady,
        message: what.to_owned(),
        next: "look at the node-proxy pod of this node (kubectl -n culvert-system get pods -o wide)",
    }
}

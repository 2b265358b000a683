//! The transitions. Each event has one function; what they share is in [`super::moves`].

use super::event::{Action, Delivered, Event, Failure, InForce, KeeperId, Observed, Stage, Timer};
use super::moves::{gone, keeper_lost, late, no_record, not_listening};
use super::pod::{Again, Guard, Phase, Pod, Served, Want};

/// One event: the next state and what to do. Never fails and never ignores a request.
pub fn step(mut pod: Pod, event: Event) -> (Pod, Vec<Action>) {
    let mut out = Vec::new();
    pod.on(event, &mut out);
    (pod, out)
}

type Out = Vec<Action>;

impl Pod {
    fn on(&mut self, event: Event, out: &mut Out) {
        match event {
            Event::CniAdd { request, fresh } => self.cni_add(request, fresh, out),
            Event::CniDel | Event::NetnsGone => self.leave(out),
            Event::Found(in_force) => self.found(in_force, out),
            Event::Source(want) => self.source(want, out),
            Event::FactsChanged => self.facts_changed(out),
            Event::KeeperUp(keeper) => self.keeper_up(keeper, out),
            Event::KeeperLeaving(keeper) => self.keeper_leaving(keeper, out),
            Event::KeeperDown(keeper) => self.keeper_down(keeper, out),
            Event::Ack { keeper, epoch, what } if epoch == self.epoch => self.acked(keeper, what, out),
            Event::Nack { keeper, epoch, what, failure } if epoch == self.epoch => {
                self.refused(keeper, what, failure, out)
            }
            Event::RulesApplied { epoch, stage } if epoch == self.epoch => self.applied(stage, out),
            Event::RulesFailed { epoch, stage, failure } if epoch == self.epoch => {
                self.not_applied(stage, failure, out)
            }
            Event::RulesRemoved { epoch } if epoch == self.epoch => self.removed(out),
            Event::RemoveFailed { epoch, failure } if epoch == self.epoch => self.not_removed(failure, out),
            Event::RulesDrift { epoch } if epoch == self.epoch => self.drift(out),
            Event::ListenersSeen { epoch, all } if epoch == self.epoch => self.listeners(all, out),
            Event::Timeout { epoch, timer: Timer::Deadline } if epoch == self.epoch => self.deadline(out),
            Event::Timeout { epoch, timer: Timer::Retry } if epoch == self.epoch => self.retry(out),
            Event::Timeout { epoch, timer: Timer::Linger } if epoch == self.epoch => self.part(out),
            // Of an enrolment that is over.
            Event::Ack { .. } | Event::Nack { .. } | Event::RulesApplied { .. } | Event::RulesFailed { .. } => {}
            Event::RulesRemoved { .. } | Event::RemoveFailed { .. } | Event::RulesDrift { .. } => {}
            Event::ListenersSeen { .. } | Event::Timeout { .. } => {}
        }
    }

    fn cni_add(&mut self, request: u64, fresh: bool, out: &mut Out) {
        if self.phase == Phase::Left {
            return out.push(Action::Answer { request, result: Err(gone()) });
        }
        if fresh && self.phase != Phase::Absent {
            // Another sandbox of the same pod: the earlier one is over, whether its DEL came or not.
            self.withdraw_all(false, out);
            self.answer_all(&Err(gone()), out);
            out.push(Action::Release);
            self.forget();
        }
        self.requests.push(request);
        match (self.want, self.phase) {
            (Want::Plain, Phase::Absent) => self.answer_all(&Ok(false), out),
            // What has no record cannot be judged, and is not let through.
            (Want::Gone, Phase::Absent) => self.answer_all(&Err(no_record()), out),
            (Want::Enrolled, Phase::Captured) if self.is_served() => self.answer_all(&Ok(true), out),
            (Want::Plain, Phase::Draining | Phase::Parting) => self.answer_all(&Ok(false), out),
            (Want::Enrolled, Phase::Absent | Phase::Failed(..) | Phase::Draining | Phase::Parting) => {
                self.begin(Phase::Denying, out);
                out.push(Action::Apply { epoch: self.epoch, stage: Stage::Deny });
            }
            // Answered with the outcome of what goes on, or at the deadline.
            _ => out.push(Action::Arm { epoch: self.epoch, timer: Timer::Deadline }),
        }
    }

    fn found(&mut self, in_force: InForce, out: &mut Out) {
        if self.phase != Phase::Absent {
            return;
        }
        match (self.want, in_force) {
            (Want::Enrolled, InForce::Nothing | InForce::Table(Stage::Drain)) => self.offer(Guard::Open, out),
            (Want::Enrolled, InForce::Table(Stage::Deny)) => self.offer(Guard::Deny, out),
            (Want::Enrolled | Want::Gone, InForce::Table(Stage::Redirect)) => {
                self.begin(Phase::Captured, out);
                self.offer_all(out);
                out.push(Action::Report(Observed::Adopted));
            }
            (Want::Plain, InForce::Table(_)) => self.undo(out),
            (Want::Plain | Want::Gone, InForce::Nothing) | (Want::Gone, InForce::Table(Stage::Deny | Stage::Drain)) => {
            }
        }
    }

    fn source(&mut self, want: Want, out: &mut Out) {
        self.want = want;
        match (want, self.phase) {
            (Want::Plain, _) => {}
            // Opted in again before the end: as a running pod, since new connections pass untouched.
            (Want::Enrolled, Phase::Parting) => return self.offer(Guard::Open, out),
            // Into the mesh: by ADD or by being found. Undoing and draining look again when they end.
            (Want::Enrolled | Want::Gone, _) => return,
        }
        match self.phase {
            Phase::Absent | Phase::Undoing | Phase::Draining | Phase::Parting | Phase::Left => {}
            // Nothing redirects: only keepers have to let go.
            Phase::Offered(Guard::Open) | Phase::Listening(Guard::Open) | Phase::Failed(Guard::Open, _) => {
                self.drain(false, out)
            }
            Phase::Denying | Phase::Captured | Phase::Swapping(_) => self.undo(out),
            Phase::Offered(Guard::Deny) | Phase::Listening(Guard::Deny) | Phase::Failed(Guard::Deny, _) => {
                self.undo(out)
            }
        }
    }

    fn facts_changed(&mut self, out: &mut Out) {
        let told = self.keepers.iter().filter(|(_, served)| matches!(served, Served::Asked | Served::Serving));
        out.extend(told.map(|(keeper, _)| Action::Update { keeper: *keeper }));
    }

    fn keeper_up(&mut self, keeper: KeeperId, out: &mut Out) {
        self.keepers.insert(keeper, Served::Idle);
        match self.phase {
            // While rules are being removed they may still redirect: what the keeper is not told, it lets go.
            Phase::Captured | Phase::Undoing => self.offer_one(keeper, out),
            Phase::Offered(_) | Phase::Listening(_) | Phase::Swapping(_) if !self.is_in_lasting_hands() => {
                self.offer_one(keeper, out)
            }
            Phase::Offered(_) | Phase::Listening(_) | Phase::Swapping(_) => {}
            Phase::Failed(guard, Again::ByUs) if self.want == Want::Enrolled => self.offer(guard, out),
            // It may hold connections that were captured before we came, or before its link broke.
            Phase::Draining | Phase::Parting => self.withdraw_one(keeper, out),
            Phase::Absent | Phase::Denying | Phase::Failed(..) | Phase::Left => {}
        }
    }

    fn keeper_leaving(&mut self, keeper: KeeperId, out: &mut Out) {
        if self.keepers.contains_key(&keeper) && self.leaving.insert(keeper) {
            self.find_lasting_hands(out);
        }
    }

    /// A pod that only leaving keepers serve is offered to those that stay; redirect is in force.
    fn find_lasting_hands(&mut self, out: &mut Out) {
        if matches!(self.phase, Phase::Captured | Phase::Undoing) && !self.is_in_lasting_hands() {
            self.offer_rest(out);
        }
    }

    fn keeper_down(&mut self, keeper: KeeperId, out: &mut Out) {
        let was = self.keepers.remove(&keeper);
        self.leaving.remove(&keeper);
        let lost = was == Some(Served::Serving) && !self.any(Served::Serving);
        match self.phase {
            // What was acknowledged is gone: the listeners being read may be seen or not, and prove nothing.
            Phase::Listening(guard) if lost => self.fail(guard, keeper_lost(), out),
            Phase::Captured if lost => {
                self.listening = false;
                out.push(Action::Report(Observed::Unserved(keeper_lost())));
                // A successor that was refused the ports while its predecessor held them gets its chance at once.
                self.offer_rest(out);
            }
            // Only who leaves serves it now, if it was the heir that went.
            Phase::Captured | Phase::Undoing => self.find_lasting_hands(out),
            Phase::Offered(_) if was == Some(Served::Asked) && !self.any(Served::Asked) => self.offer_first(out),
            Phase::Draining => self.drained_so_far(out),
            _ => {}
        }
    }

    fn acked(&mut self, keeper: KeeperId, what: Delivered, out: &mut Out) {
        let Some(served) = self.keepers.get_mut(&keeper) else { return };
        match what {
            Delivered::Offer if *served == Served::Asked => *served = Served::Serving,
            Delivered::Withdraw if *served == Served::Leaving => *served = Served::Idle,
            // Overtaken by what it was told since.
            Delivered::Offer | Delivered::Withdraw => return,
        }
        match (self.phase, what) {
            (Phase::Offered(guard), Delivered::Offer) => {
                self.phase = Phase::Listening(guard);
                out.push(Action::ReadListeners { epoch: self.epoch });
            }
            (Phase::Captured, Delivered::Offer) => out.push(Action::ReadListeners { epoch: self.epoch }),
            (Phase::Draining, Delivered::Withdraw) => self.drained_so_far(out),
            _ => {}
        }
    }

    fn refused(&mut self, keeper: KeeperId, what: Delivered, failure: Failure, out: &mut Out) {
        let Some(served) = self.keepers.get_mut(&keeper) else { return };
        match what {
            Delivered::Offer if *served == Served::Asked => *served = Served::Refused,
            // It holds nothing for the pod that we could still wait for; its listeners end with it at the latest.
            Delivered::Withdraw if *served == Served::Leaving => *served = Served::Idle,
            Delivered::Offer | Delivered::Withdraw => return,
        }
        match (self.phase, what) {
            (Phase::Offered(guard), Delivered::Offer) if !self.any(Served::Asked) => {
                self.offer_first(out);
                if !self.any(Served::Asked) {
                    self.fail(guard, failure, out);
                }
            }
            (Phase::Captured, Delivered::Offer) => {
                if !self.any(Served::Serving) && !self.any(Served::Asked) {
                    self.answer_all(&Err(failure.clone()), out);
                    out.push(Action::Report(Observed::Unserved(failure)));
                }
                out.push(Action::Arm { epoch: self.epoch, timer: Timer::Retry });
            }
            (Phase::Draining, Delivered::Withdraw) => self.drained_so_far(out),
            _ => {}
        }
    }

    fn applied(&mut self, stage: Stage, out: &mut Out) {
        match (self.phase, stage) {
            (Phase::Denying, Stage::Deny) => {
                self.phase = Phase::Offered(Guard::Deny);
                self.offer_first(out);
            }
            (Phase::Swapping(_), Stage::Redirect) => {
                self.phase = Phase::Captured;
                self.answer_all(&Ok(true), out);
                out.push(Action::Report(Observed::Captured));
                if !self.any(Served::Serving) {
                    self.listening = false;
                    out.push(Action::Report(Observed::Unserved(keeper_lost())));
                }
                self.find_lasting_hands(out);
            }
            (Phase::Captured, Stage::Redirect) if self.repairing => {
                self.repairing = false;
                out.push(Action::Report(Observed::Repaired));
            }
            (Phase::Undoing, Stage::Drain) => {
                self.answer_all(&Ok(false), out);
                out.push(Action::Report(Observed::OptedOut));
                self.drain(true, out);
            }
            _ => {}
        }
    }

    fn not_applied(&mut self, stage: Stage, failure: Failure, out: &mut Out) {
        match (self.phase, stage) {
            (Phase::Denying, Stage::Deny) => self.fail(Guard::Deny, failure, out),
            (Phase::Swapping(guard), Stage::Redirect) => self.fail(guard, failure, out),
            (Phase::Captured, Stage::Redirect) if self.repairing => {
                self.repairing = false;
                out.push(Action::Report(Observed::RepairFailed(failure)));
            }
            (Phase::Undoing, Stage::Drain) => {
                // Redirect may still be in force: the keepers go on serving until it is not.
                self.answer_all(&Err(failure.clone()), out);
                out.push(Action::Report(Observed::Failed(failure)));
                out.push(Action::Arm { epoch: self.epoch, timer: Timer::Retry });
            }
            _ => {}
        }
    }

    fn removed(&mut self, out: &mut Out) {
        if self.phase == Phase::Parting {
            self.phase = Phase::Absent;
            out.push(Action::Release);
        }
    }

    fn not_removed(&mut self, failure: Failure, out: &mut Out) {
        if self.phase == Phase::Parting {
            out.push(Action::Report(Observed::Failed(failure)));
            out.push(Action::Arm { epoch: self.epoch, timer: Timer::Linger });
        }
    }

    fn part(&mut self, out: &mut Out) {
        if self.phase == Phase::Parting {
            out.push(Action::Remove { epoch: self.epoch });
        }
    }

    fn drift(&mut self, out: &mut Out) {
        if self.is_auditable() {
            self.repairing = true;
            out.push(Action::Report(Observed::Drift));
            out.push(Action::Apply { epoch: self.epoch, stage: Stage::Redirect });
        }
    }

    fn listeners(&mut self, all: bool, out: &mut Out) {
        match self.phase {
            Phase::Listening(guard) if all => {
                self.listening = true;
                self.phase = Phase::Swapping(guard);
                out.push(Action::Apply { epoch: self.epoch, stage: Stage::Redirect });
            }
            Phase::Listening(guard) => self.fail(guard, not_listening(), out),
            Phase::Captured => {
                let before = self.is_served();
                self.listening = all;
                match (before, self.is_served()) {
                    (false, true) => {
                        self.answer_all(&Ok(true), out);
                        out.push(Action::Report(Observed::Served));
                    }
                    (true, false) => {
                        out.push(Action::Report(Observed::Unserved(not_listening())));
                        // The keeper believes that it serves: it is told again.
                        self.keepers
                            .values_mut()
                            .filter(|one| **one == Served::Serving)
                            .for_each(|one| *one = Served::Refused);
                        out.push(Action::Arm { epoch: self.epoch, timer: Timer::Retry });
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn deadline(&mut self, out: &mut Out) {
        match self.phase {
            Phase::Denying => self.fail(Guard::Deny, late("the deny rules were not written in time"), out),
            Phase::Offered(guard) => {
                let what = if self.keepers.is_empty() {
                    "no node-proxy of this node is connected to pod-watcher"
                } else {
                    "node-proxy did not acknowledge the pod in time"
                };
                self.fail(guard, late(what), out);
            }
            Phase::Listening(guard) => self.fail(guard, late("the listeners were not read back in time"), out),
            // A swap in flight ends by itself, one way or the other; only the caller waits no longer.
            _ => self.answer_all(&Err(late("the pod was not captured and served in time")), out),
        }
    }

    fn retry(&mut self, out: &mut Out) {
        match self.phase {
            Phase::Failed(guard, Again::ByUs) if self.want == Want::Enrolled => self.offer(guard, out),
            Phase::Undoing => out.push(Action::Apply { epoch: self.epoch, stage: Stage::Drain }),
            Phase::Captured if !self.is_in_lasting_hands() => self.offer_rest(out),
            _ => {}
        }
    }
}

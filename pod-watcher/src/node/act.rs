//! Carries out what the state machine of a pod asks for.

use std::time::Duration;

use mesh_api::link::cni::FromWatcher;
use mesh_api::link::proxy::ToKeeper;
use mesh_model::{PodUid, Reason};
use mesh_net::capture::{self, Spec};

use super::timers::Due;
use super::{Node, Unanswered};
use crate::enrol::{Action, Delivered, Failure, KeeperId, Observed, Phase, RequestId, Stage, Timer};
use crate::metrics::labels::Outcome;
use crate::sandbox::Job;
use crate::status::EventType;

/// A keeper's answer. Under [`DEADLINE`], so that the caller is told which part did not answer.
const ACK: Duration = Duration::from_secs(5);
/// From ADD (or from finding a running pod) to captured: with the five seconds that a record may take it stays under the
/// plugin's fifteen.
const DEADLINE: Duration = Duration::from_secs(8);
/// Between tries, doubled with each failure up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

impl Node {
    pub(super) fn act(&mut self, uid: &PodUid, action: Action) {
        match action {
            Action::Apply { epoch, stage } => self.apply(uid, epoch, stage),
            Action::Remove { epoch } => self.job(uid, Job::Remove { epoch }),
            Action::ReadListeners { epoch } => {
                let Some(mark) = self.pods.get(uid).map(|entry| entry.mark) else { return };
                self.job(uid, Job::Listeners { epoch, mark });
            }
            Action::Offer { keeper, epoch } => self.offer(uid, keeper, epoch),
            Action::Update { keeper } => {
                let Some(pod) = self.pods.get(uid).map(|entry| entry.facts()) else { return };
                let id = self.unanswered(uid, keeper, 0, None);
                self.tell(keeper, ToKeeper::Update { id, pod }, Vec::new());
            }
            Action::Withdraw { keeper, epoch, drain } => {
                let id = self.unanswered(uid, keeper, epoch, Some(Delivered::Withdraw));
                self.tell(keeper, ToKeeper::Del { id, uid: uid.to_string(), drain }, Vec::new());
            }
            Action::Answer { request, result } => self.answer(uid, request, result),
            Action::Arm { epoch, timer } => {
                let failures = self.pods.get(uid).map_or(0, |entry| entry.failures);
                let after = match timer {
                    Timer::Deadline => DEADLINE,
                    Timer::Retry => RETRY.0.saturating_mul(1 << failures.min(5)).min(RETRY.1),
                    Timer::Linger => self.linger,
                };
                self.timers.arm(after, Due::Pod { uid: uid.clone(), epoch, timer });
            }
            Action::Release => {
                if let Some(entry) = self.pods.get_mut(uid)
                    && entry.previous.take().is_none()
                {
                    entry.sandbox = None;
                    entry.rules = None;
                    entry.listeners = false;
                }
            }
            Action::Report(observed) => self.report(uid, observed),
        }
    }

    fn apply(&mut self, uid: &PodUid, epoch: u32, stage: Stage) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let stage = match stage {
            Stage::Deny => capture::Stage::Deny,
            Stage::Redirect => capture::Stage::Redirect,
            Stage::Drain => capture::Stage::Drain,
        };
        // A repair writes what was there; a change of intent counts up.
        if entry.rules != Some(stage) {
            entry.generation += 1;
        }
        let spec = Spec { stage, mark: entry.mark, generation: entry.generation };
        self.job(uid, Job::Apply { epoch, spec });
    }

    pub(super) fn job(&mut self, uid: &PodUid, job: Job) {
        let sent =
            self.pods.get_mut(uid).and_then(|entry| entry.sandbox.as_mut()).is_some_and(|sandbox| sandbox.send(job));
        if !sent {
            tracing::warn!(%uid, "nothing can be done in the pod's netns; its deadline will say so");
        }
    }

    fn offer(&mut self, uid: &PodUid, keeper: KeeperId, epoch: u32) {
        let Some(entry) = self.pods.get(uid) else { return };
        let pod = entry.facts();
        let netns = entry.sandbox.as_ref().map(|sandbox| sandbox.netns());
        let id = self.unanswered(uid, keeper, epoch, Some(Delivered::Offer));
        match netns {
            Some(Ok(netns)) => self.tell(keeper, ToKeeper::Add { id, pod }, vec![netns]),
            // Answered by the deadline of the message: the pod is not served.
            Some(Err(error)) => tracing::error!(%uid, %error, "no descriptor of the pod's netns for a keeper"),
            None => tracing::error!(%uid, "a pod without a netns was to be offered"),
        }
    }

    fn unanswered(&mut self, uid: &PodUid, keeper: KeeperId, epoch: u32, what: Option<Delivered>) -> u64 {
        let id = self.number();
        self.unanswered.insert(id, Unanswered { keeper, uid: uid.clone(), epoch, what });
        self.timers.arm(ACK, Due::Answer(id));
        id
    }

    pub(super) fn tell(&mut self, keeper: KeeperId, message: ToKeeper, fds: Vec<std::os::fd::OwnedFd>) {
        let Some(handle) = self.keepers.get(&keeper) else { return };
        if !handle.send(message, fds) {
            tracing::warn!(keeper, pid = handle.pid, "keeper does not keep up or is gone; its link is closed");
            self.metrics.keeper_overflow.inc();
            self.lost.push_back(keeper);
        }
    }

    fn answer(&mut self, uid: &PodUid, request: RequestId, result: Result<bool, Failure>) {
        let Some(reply) = self.replies.remove(&request) else { return };
        self.metrics.add_seconds.observe(reply.since.elapsed().as_secs_f64());
        let name = self.pods.get(uid).map(|entry| entry.record.name.to_string()).unwrap_or_default();
        match &result {
            Ok(enrolled) => tracing::info!(pod = name, %uid, enrolled, took = ?reply.since.elapsed(), "pod added"),
            Err(failure) => {
                tracing::warn!(pod = name, %uid, reason = %failure.reason, cause = failure.message, "pod not added")
            }
        }
        reply.send(match result {
            Ok(enrolled) => FromWatcher::Done { enrolled },
            Err(failure) => refusal(&name, &failure),
        });
    }

    fn report(&mut self, uid: &PodUid, observed: Observed) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let begins = matches!(observed, Observed::Captured | Observed::Adopted);
        let (kind, reason, message) = match observed {
            Observed::Captured => {
                entry.failures = 0;
                self.metrics.enrolment(Outcome::Captured);
                (
                    EventType::Normal,
                    "Enrolled".to_owned(),
                    "redirect is in force and the listeners were read back".to_owned(),
                )
            }
            Observed::Adopted => {
                self.metrics.enrolment(Outcome::Adopted);
                (EventType::Normal, "Adopted".to_owned(), "redirect was in force before pod-watcher started".to_owned())
            }
            Observed::Unserved(failure) => (
                EventType::Warning,
                failure.reason.to_string(),
                format!("captured and not served: {}", failure.message),
            ),
            Observed::Served => {
                entry.failures = 0;
                (EventType::Normal, "Enrolled".to_owned(), "served".to_owned())
            }
            Observed::Failed(failure) => {
                entry.failures += 1;
                self.metrics.enrolment(Outcome::Failed(failure.reason));
                (EventType::Warning, failure.reason.to_string(), format!("{}; {}", failure.message, failure.next))
            }
            Observed::Drift => {
                self.metrics.drift(entry.drifted.0, entry.drifted.1);
                (EventType::Warning, "RulesChanged".to_owned(), entry.drift.clone())
            }
            Observed::Repaired => {
                self.metrics.repair(entry.drifted.0, entry.drifted.1);
                (EventType::Normal, "RulesRepaired".to_owned(), format!("written again after: {}", entry.drift))
            }
            Observed::RepairFailed(failure) => {
                self.metrics.repair_failures.inc();
                (EventType::Warning, "RepairFailed".to_owned(), failure.message)
            }
            Observed::OptedOut => {
                self.metrics.opt_outs.inc();
                (
                    EventType::Normal,
                    "OptedOut".to_owned(),
                    "new connections pass untouched; captured ones may end".to_owned(),
                )
            }
            Observed::Gone => (EventType::Normal, "Gone".to_owned(), "the pod has ended".to_owned()),
        };
        let name = entry.record.name.clone();
        entry.said = (reason.clone(), message.clone());
        let message = match entry.budget.take() {
            Some(0) => message,
            Some(untold) => format!("{message} ({untold} more events of this pod were not told)"),
            None => return,
        };
        match kind {
            EventType::Normal => tracing::info!(pod = %name, %uid, reason, message, "enrolment"),
            EventType::Warning => tracing::warn!(pod = %name, %uid, reason, message, "enrolment"),
        }
        self.status.event(kind, &reason, &name, uid, &message);
        if begins {
            self.tell_exclusions(uid);
        }
    }

    /// After each step: the condition says what was observed, and what has come to nothing is let go.
    pub(super) fn settle(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let over = match entry.machine.phase() {
            Phase::Left => true,
            Phase::Absent => !entry.reading,
            _ => false,
        };
        if over {
            self.pods.remove(uid);
            self.metrics.passed.gone(uid);
            self.status.remove(uid);
            return;
        }
        let condition = entry.to_condition();
        if entry.condition.as_ref() != Some(&condition) {
            self.status.condition(&entry.record.name, uid, &condition);
            entry.condition = Some(condition);
        }
    }
}

/// A failure in CNI terms, naming the pod.
pub(super) fn refusal(pod: &str, failure: &Failure) -> FromWatcher {
    // Trying again helps with all but what the pod itself has to change.
    let code = if failure.reason == Reason::Conflict { 100 } else { 11 };
    crate::cni::refused(code, failure.reason, format!("pod {pod}: {}", failure.message), failure.next)
}

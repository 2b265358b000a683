//! What can happen to a pod's enrolment, and what is to be done about it.

use mesh_model::Reason;

use super::pod::Want;

/// A keeper's connection; never reused.
pub type KeeperId = u64;
/// A CNI call that waits for its answer; never reused.
pub type RequestId = u64;

/// Which rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Refuse every new connection, both ways.
    Deny,
    /// Redirect every new connection to the listeners.
    Redirect,
    /// Let new connections pass; captured ones go on (opting out).
    Drain,
}

/// What was read back from the pod's netns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InForce {
    /// Nothing of ours.
    Nothing,
    /// A table of this stage, intact or not.
    Table(Stage),
}

/// Which message a keeper answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivered {
    /// "Serve this pod."
    Offer,
    /// "Stop serving this pod."
    Withdraw,
}

/// Why something did not work, in words that reach a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of the one closed set.
    pub reason: Reason,
    /// What happened to which object.
    pub message: String,
    /// What to do next.
    pub next: &'static str,
}

/// A timer of one enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// The enrolment must have ended.
    Deadline,
    /// Try again what failed.
    Retry,
    /// Captured connections of a pod that opted out have had their time.
    Linger,
}

/// What happened. `epoch` says in which enrolment; answers of an earlier one are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// CNI ADD; `fresh` when the netns is not the one held.
    CniAdd {
        /// To be answered.
        request: RequestId,
        /// A sandbox that we have not seen.
        fresh: bool,
    },
    /// CNI DEL of the held container.
    CniDel,
    /// A running pod was found, with these rules in its netns.
    Found(InForce),
    /// The pod's record says something else about enrolment.
    Source(Want),
    /// Facts of the pod changed that its keepers were told.
    FactsChanged,
    /// A keeper said hello.
    KeeperUp(KeeperId),
    /// A keeper drains: it serves what it serves, and nothing new.
    KeeperLeaving(KeeperId),
    /// A keeper's connection ended.
    KeeperDown(KeeperId),
    /// A keeper did as told.
    Ack {
        /// Who.
        keeper: KeeperId,
        /// When it was told.
        epoch: u32,
        /// What.
        what: Delivered,
    },
    /// A keeper refused, or did not answer in time.
    Nack {
        /// Who.
        keeper: KeeperId,
        /// When it was told.
        epoch: u32,
        /// What.
        what: Delivered,
        /// Why.
        failure: Failure,
    },
    /// Rules were written.
    RulesApplied {
        /// Of the action.
        epoch: u32,
        /// Of the action.
        stage: Stage,
    },
    /// Rules could not be written: what was in force before still is (one transaction).
    RulesFailed {
        /// Of the action.
        epoch: u32,
        /// Of the action.
        stage: Stage,
        /// Why.
        failure: Failure,
    },
    /// Rules were removed.
    RulesRemoved {
        /// Of the action.
        epoch: u32,
    },
    /// Rules could not be removed.
    RemoveFailed {
        /// Of the action.
        epoch: u32,
        /// Why.
        failure: Failure,
    },
    /// An audit found rules that are not as they were written, or gone.
    RulesDrift {
        /// Of the audit.
        epoch: u32,
    },
    /// Listeners of the pod's netns were read.
    ListenersSeen {
        /// Of the action.
        epoch: u32,
        /// Whether all of ours are there.
        all: bool,
    },
    /// A timer ran out.
    Timeout {
        /// Of the action.
        epoch: u32,
        /// Which.
        timer: Timer,
    },
    /// No process of the pod is left, and it is known to have been deleted.
    NetnsGone,
}

/// What is to be done, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the whole rule set of this stage in one transaction.
    Apply {
        /// Echoed.
        epoch: u32,
        /// Which.
        stage: Stage,
    },
    /// Remove every rule of ours.
    Remove {
        /// Echoed.
        epoch: u32,
    },
    /// Read the listeners of the pod's netns.
    ReadListeners {
        /// Echoed.
        epoch: u32,
    },
    /// Tell a keeper to serve the pod.
    Offer {
        /// Whom.
        keeper: KeeperId,
        /// Echoed.
        epoch: u32,
    },
    /// Tell a keeper the pod's new facts.
    Update {
        /// Whom.
        keeper: KeeperId,
    },
    /// Tell a keeper to stop serving the pod.
    Withdraw {
        /// Whom.
        keeper: KeeperId,
        /// Echoed.
        epoch: u32,
        /// Whether open connections may live on.
        drain: bool,
    },
    /// Answer an ADD: whether the pod is in the mesh.
    Answer {
        /// Which.
        request: RequestId,
        /// The answer.
        result: Result<bool, Failure>,
    },
    /// Start a timer. Earlier ones go on: by its epoch each says whether it still means anything.
    Arm {
        /// Echoed.
        epoch: u32,
        /// Which.
        timer: Timer,
    },
    /// Let go of the netns that was held until now (on `fresh`: of the previous one).
    Release,
    /// Something a person may want to know happened.
    Report(Observed),
}

/// What is known about the pod from observation, for its condition and events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Redirect in force and listeners read back.
    Captured,
    /// Adopted: redirect was in force before we came.
    Adopted,
    /// Redirect is in force and no keeper serves the pod: its connections are refused.
    Unserved(Failure),
    /// Served again.
    Served,
    /// Not enrolled, for this reason; the guard says what is in its netns.
    Failed(Failure),
    /// Rules were not as written; being repaired.
    Drift,
    /// Repaired.
    Repaired,
    /// A repair did not work; tried again at the next audit.
    RepairFailed(Failure),
    /// Left the mesh while running.
    OptedOut,
    /// The pod is gone.
    Gone,
}

//! The state of one pod's enrolment.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{KeeperId, RequestId};

/// What the pod's record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// In the mesh.
    Enrolled,
    /// Not in the mesh.
    Plain,
    /// There is no record any more. A pod can outlive it (forced deletion), so nothing is undone on this alone.
    Gone,
}

/// What protects the pod until redirect is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The deny set: the pod came by ADD.
    Deny,
    /// Nothing: the pod was running before, and is left as it was until the swap.
    Open,
}

/// Who tries a failed enrolment again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// The runtime, by another ADD: the sandbox is usually thrown away.
    ByRuntime,
    /// We, after a while and when a keeper comes.
    ByUs,
}

/// Where the enrolment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of ours in the netns.
    Absent,
    /// The deny set is being written.
    Denying,
    /// Offered to the keepers; none has acknowledged.
    Offered(Guard),
    /// Acknowledged; the listeners are being read back.
    Listening(Guard),
    /// The redirect set is being written.
    Swapping(Guard),
    /// Redirect is in force.
    Captured,
    /// New connections are being let past the proxy: the drain rules are being written.
    Undoing,
    /// No new connection is redirected; keepers are letting go.
    Draining,
    /// Keepers have let go; the drain rules stay while captured connections end, then everything is removed.
    Parting,
    /// Did not work; the guard is in force.
    Failed(Guard, Again),
    /// The pod is gone; nothing is done any more.
    Left,
}

/// What one keeper does for the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Connected and not told about the pod.
    Idle,
    /// Told; has not answered.
    Asked,
    /// Serving.
    Serving,
    /// Refused.
    Refused,
    /// Told to stop; has not answered.
    Leaving,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub(super) want: Want,
    pub(super) phase: Phase,
    pub(super) epoch: u32,
    pub(super) keepers: BTreeMap<KeeperId, Served>,
    /// Of these, who drains.
    pub(super) leaving: BTreeSet<KeeperId>,
    pub(super) requests: Vec<RequestId>,
    /// Whether all listeners were there when last read.
    pub(super) listening: bool,
    /// Whether a repair is being written.
    pub(super) repairing: bool,
}

impl Pod {
    /// A pod that nothing was done for, with the keepers that are connected.
    pub fn new(want: Want, keepers: impl IntoIterator<Item = KeeperId>) -> Self {
        Self {
            want,
            phase: Phase::Absent,
            epoch: 0,
            keepers: keepers.into_iter().map(|keeper| (keeper, Served::Idle)).collect(),
            leaving: BTreeSet::new(),
            requests: Vec::new(),
            listening: false,
            repairing: false,
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What its record said last.
    pub fn want(&self) -> Want {
        self.want
    }

    /// The current enrolment's number.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Captured, by what was read back, and served by a keeper.
    pub fn is_served(&self) -> bool {
        self.phase == Phase::Captured && self.listening && self.any(Served::Serving)
    }

    /// Whether the rules should be audited now.
    pub fn is_auditable(&self) -> bool {
        self.phase == Phase::Captured && !self.repairing
    }

    pub(super) fn any(&self, served: Served) -> bool {
        self.keepers.values().any(|one| *one == served)
    }
}

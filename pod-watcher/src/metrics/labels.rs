//! The label values of pod-watcher's metrics: closed enums, each with all of its values, so that every series is there from the start.

use mesh_model::Reason;
use mesh_net::capture::Drift;

/// How an enrolment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Redirect in force, listeners read back.
    Captured,
    /// Found in force after a restart.
    Adopted,
    /// Did not work.
    Failed(Reason),
}

/// Of [`Outcome`], as label `result`.
pub const OUTCOMES: [&str; 3] = ["captured", "adopted", "failed"];

impl Outcome {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Captured => OUTCOMES[0],
            Self::Adopted => OUTCOMES[1],
            Self::Failed(_) => OUTCOMES[2],
        }
    }
}

/// A part of an ADD, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddStage {
    /// From the request until the deny set was read back; the wait for the pod's record is in it.
    Deny,
    /// Until a keeper had opened the listeners and its worker had acknowledged them.
    Ack,
    /// Until all listeners were read back.
    Listeners,
    /// Until redirect was read back in place of deny.
    Swap,
}

impl AddStage {
    /// All.
    pub const ALL: [Self; 4] = [Self::Deny, Self::Ack, Self::Listeners, Self::Swap];

    /// The label `stage`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Ack => "ack",
            Self::Listeners => "listeners",
            Self::Swap => "swap",
        }
    }
}

/// What of a pod was read back last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// No rules of ours (yet).
    Plain,
    /// Every new connection is refused.
    Denied,
    /// Redirect in force, and a keeper serves it.
    Served,
    /// Redirect in force, and nobody serves it: its new connections are refused.
    Unserved,
    /// Opted out; captured connections may end.
    Draining,
}

impl PodState {
    /// All.
    pub const ALL: [Self; 5] = [Self::Plain, Self::Denied, Self::Served, Self::Unserved, Self::Draining];

    /// The label `state`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Denied => "denied",
            Self::Served => "served",
            Self::Unserved => "unserved",
            Self::Draining => "draining",
        }
    }
}

/// Why rules were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The kernel said that somebody changed something.
    Notification,
    /// It was time.
    Timer,
}

impl Cause {
    /// All.
    pub const ALL: [Self; 2] = [Self::Notification, Self::Timer];

    /// The label `cause`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Notification => "notification",
            Self::Timer => "timer",
        }
    }
}

/// What was not as it was written; of several the first in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftKind {
    /// It could not be read at all.
    Unreadable,
    /// The table.
    Table,
    /// A chain.
    Chain,
    /// A rule of the table.
    Rule,
    /// An ip rule.
    IpRule,
    /// The route of our table.
    Route,
}

impl DriftKind {
    /// All.
    pub const ALL: [Self; 6] = [Self::Unreadable, Self::Table, Self::Chain, Self::Rule, Self::IpRule, Self::Route];

    /// The label `kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Table => "table",
            Self::Chain => "chain",
            Self::Rule => "rule",
            Self::IpRule => "ip_rule",
            Self::Route => "route",
        }
    }
}

impl From<&Drift> for DriftKind {
    fn from(drift: &Drift) -> Self {
        match drift {
            Drift::TableMissing
            | Drift::TableFlags { .. }
            | Drift::TableNotOwned
            | Drift::TableVersion
            | Drift::SetMissing { .. }
            | Drift::SetExtra { .. }
            | Drift::TimeoutsMissing
            | Drift::Unrecognised => Self::Table,
            Drift::ChainMissing { .. } | Drift::ChainChanged { .. } | Drift::ChainExtra { .. } => Self::Chain,
            Drift::RuleMissing { .. }
            | Drift::RuleChanged { .. }
            | Drift::RuleExtra { .. }
            | Drift::RuleOrder { .. } => Self::Rule,
            Drift::IpRuleMissing { .. } | Drift::IpRuleExtra { .. } => Self::IpRule,
            Drift::RouteMissing { .. } => Self::Route,
        }
    }
}

/// A unix link of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// The CNI plugin's.
    Cni,
    /// The keepers'.
    Keeper,
}

impl Link {
    /// All.
    pub const ALL: [Self; 2] = [Self::Cni, Self::Keeper];

    /// The label `link`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cni => "cni",
            Self::Keeper => "keeper",
        }
    }
}

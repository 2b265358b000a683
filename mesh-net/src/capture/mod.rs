//! Capture: the rules in a pod's netns that hand its new TCP connections to the node proxy.
//!
//! One table, `inet culvert`, one transaction per change, plus ip rules and routes per family. Every TCP packet has an owner: the
//! proxy, a flow that passes, or nobody. Read downwards: [`rules`] says what the table should hold (pure), [`table`], [`change`],
//! [`flows`] and [`routes`] read and write it by netlink ([`transaction`]), [`drift`] compares, [`Session`] is what callers use, [`Monitor`] tells when somebody
//! changed something. [`neighbours`] fixes what a pod believes of its node. This module never looks at files, and never changes
//! anything in the node's own netns.
//!
//! Stages: [`Stage::Deny`] refuses everything (a pod that is being added), [`Stage::Redirect`] captures, [`Stage::Drain`] lets
//! everything pass but the connections that were captured (a pod that opts out). On the way into a pod that is running,
//! [`Stage::Learn`] notes the flows that begin while those that are there are listed; on the way out [`Stage::Part`] notes the
//! captured ones. Going from one to another replaces rules inside the same chains, so no packet can see a chain without rules.

mod change;
mod drift;
mod error;
mod expr;
mod flows;
mod links;
#[cfg(feature = "tokio")]
mod monitor;
mod neighbours;
mod probe;
mod routes;
mod rules;
mod session;
mod table;
mod text;
mod towards;
mod transaction;

use mesh_model::Mark;

pub use drift::Drift;
pub use error::Error;
pub use flows::Flow;
#[cfg(feature = "tokio")]
pub use monitor::{Change, Changed, Changer, Monitor};
pub use probe::owned_supported;
pub use routes::{ROUTE_TABLES, RULE_PRIORITY};
pub use rules::{FWMARK, ON_LO, TABLE, is_public};
pub use session::{Applied, FLOWS, Found, Session};

/// How the table is protected against other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Owned by our netlink socket (`NFT_TABLE_F_OWNER|NFT_TABLE_F_PERSIST`): others can neither flush nor delete it while
    /// the socket is open, and it outlives the socket.
    Owned,
    /// An ordinary table: root of the pod's netns can change it, which the audit finds and repairs.
    Plain,
}

/// What the rules do with TCP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Refused with a reset, both ways.
    Deny,
    /// As [`Stage::Drain`]; connections that begin are noted as flows from before.
    Learn,
    /// Handed to the proxy, which owns the connection; what nobody owns is refused.
    Redirect,
    /// As [`Stage::Redirect`]; connections that begin are noted as captured ones.
    Part,
    /// Pass untouched, but for connections that were captured before: they go on. For opting out of a running pod;
    /// [`Session::remove`] comes when the proxy has drained.
    Drain,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Deny, Self::Learn, Self::Redirect, Self::Part, Self::Drain];
}

/// What the table should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What happens to new connections.
    pub stage: Stage,
    /// The mark of this enrolment, the only thing that exempts from capture.
    pub mark: Mark,
    /// Counts the changes of the owner's intent; kept in the table and read back.
    pub generation: u64,
}

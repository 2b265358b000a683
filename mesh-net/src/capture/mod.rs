//! Capture: the rules in a pod's netns that hand its new TCP connections to the node proxy.
//!
//! One table, `inet culvert`, one transaction per change, plus an ip rule and a route per family. Rules decide over SYN packets
//! only, so a connection from before is never touched. Read downwards: [`rules`] says what the table should hold (pure),
//! [`table`] and [`routes`] write and read it by netlink, [`drift`] compares, [`Session`] is what callers use, [`Monitor`]
//! tells when somebody changed something. This module never looks at files and never acts in the node's own netns.
//!
//! Stages: [`Stage::Deny`] refuses new connections (a pod that is being added), [`Stage::Redirect`] captures them,
//! [`Stage::Drain`] lets them pass while captured connections end (a pod that opts out). Going from one to another replaces
//! rules inside the same chains, so no packet can see a chain without rules.

mod drift;
mod error;
mod expr;
#[cfg(feature = "tokio")]
mod monitor;
mod probe;
mod routes;
mod rules;
mod session;
mod table;
mod text;

use mesh_model::Mark;

pub use drift::Drift;
pub use error::Error;
#[cfg(feature = "tokio")]
pub use monitor::{Change, Changed, Changer, Monitor};
pub use probe::owned_supported;
pub use routes::{ROUTE_TABLE, RULE_PRIORITY};
pub use rules::{CONNMARK, FWMARK, TABLE};
pub use session::{Applied, Found, Session};

/// How the table is protected against other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Owned by our netlink socket (`NFT_TABLE_F_OWNER|NFT_TABLE_F_PERSIST`): others can neither flush nor delete it while
    /// the socket is open, and it outlives the socket.
    Owned,
    /// An ordinary table: root of the pod's netns can change it, which the audit finds and repairs.
    Plain,
}

/// What the rules do with a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Refused with a reset, both ways.
    Deny,
    /// Handed to the proxy; one that slips past the redirect is refused.
    Redirect,
    /// Passes untouched, while connections that were captured before go on: the address translation and the marks stay. For
    /// opting out of a running pod; [`Session::remove`] comes when the proxy has drained.
    Drain,
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

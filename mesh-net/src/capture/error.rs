//! Why capture rules could not be read or written. Each message names the object and, where there is one, what to do.

use std::io;

use crate::netns::{NetnsError, NetnsId};

/// Capture rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The netns cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The netns is the node's own: rules never land there.
    #[error("{0} is the node's own network namespace; capture rules belong into pods only")]
    HostNetns(NetnsId),
    /// A netlink socket cannot be opened.
    #[error("open the {family} netlink socket in the pod's netns (needs CAP_NET_ADMIN and nf_tables in the kernel)")]
    Open {
        /// "nf_tables" or "route".
        family: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to read or change something.
    #[error("{what}")]
    Kernel {
        /// What we wanted, with the object.
        what: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Another living process owns the table.
    #[error("table inet culvert is owned by another process (netlink port {port}); is a second pod-watcher running?")]
    OwnedByOther {
        /// Its netlink port, often its pid.
        port: u32,
    },
    /// The kernel has no persistent owned tables.
    #[error("this kernel has no persistent owned nf_tables tables (Linux 6.9); use table mode plain")]
    OwnedUnsupported,
    /// `lo` is down, so nothing can be redirected to a local listener.
    #[error(
        "interface lo is down in the pod's netns; the container runtime's loopback plugin should have brought it up"
    )]
    LoopbackDown,
    /// Every number that our routing table could have is somebody's.
    #[error("every routing table from {} to {} is in use in the pod", super::ROUTE_TABLES.start(), super::ROUTE_TABLES.end())]
    NoRouteTable,
    /// The pod has more open connections than may live on through its enrolment.
    #[error("the pod has {found} open TCP connections, more than the {limit} that may go on beside the mesh")]
    TooManyFlows {
        /// How many there are, at least.
        found: usize,
        /// The setting.
        limit: u32,
    },
    /// The pod's sockets cannot be listed.
    #[error("list the pod's TCP sockets")]
    Sockets(#[source] io::Error),
    /// The mark equals the constant that any process of the pod can read.
    #[error("the enrolment's mark is the mesh's public mark; draw another")]
    ReservedMark,
    /// Somebody changes the table faster than we can write it.
    #[error("table inet culvert kept changing while it was written ({tries} tries)")]
    Contended {
        /// How often we tried.
        tries: u32,
    },
}

impl Error {
    /// Wraps what the kernel said about an object.
    pub(super) fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { what: what.into(), source }
    }
}

//! Why something was refused: one closed set for errors, metrics, logs and the wire (invariant 7).
//!
//! A new refusal gets a variant here first, at the end: a record of the worker names a reason by its place in the list. `match`es
//! elsewhere are exhaustive on purpose.

use std::fmt;
use std::str::FromStr;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Why a connection, a pod or a request was refused or ended early.
        ///
        /// The variant's name is its only spelling: metric label, log field and the value of the `culvert-reason` header.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)+ }

        impl Reason {
            /// Every reason, in the order of declaration: for metrics that must exist at zero.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The one spelling of this reason.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)+ }
            }
        }
    };
}

reasons! {
    /// The proxy has listeners for the pod but cannot serve it yet.
    NotReady,
    /// A destination inside the cluster's ranges that no record names.
    UnknownDestination,
    /// The service is known and has no usable endpoint.
    NoEndpoint,
    /// A policy says no; the policy's name travels beside the reason.
    PolicyDenied,
    /// The workload, or a policy it lists, is not known yet.
    PolicyUnknown,
    /// A policy was denied by a change after the connection had been accepted.
    PolicyChanged,
    /// The far side could not be connected to.
    ConnectFailed,
    /// The far side did not answer the connect in time.
    ConnectTimeout,
    /// No certificate for the identity could be had in time.
    CertificateUnavailable,
    /// The certificate of the identity has run out.
    CertificateExpired,
    /// The peer's certificate is not one we trust, or names no acceptable identity.
    PeerUntrusted,
    /// TLS or HTTP/2 set-up failed otherwise.
    HandshakeFailed,
    /// TLS or HTTP/2 set-up did not end in time.
    HandshakeTimeout,
    /// A tunnel request that is not a well-formed CONNECT.
    BadRequest,
    /// A tunnel request whose authority is not an address of the pod it reached.
    WrongDestination,
    /// The destination port is one of the proxy's own.
    ReservedPort,
    /// The far proxy refused the tunnel without naming a reason we know.
    TunnelRefused,
    /// The tunnel under the connection went away.
    TunnelClosed,
    /// A budget (connections, handshakes, memory, sockets) of the pod is used up.
    Overloaded,
    /// No socket in the pod's network namespace could be had.
    NoSocket,
    /// The original destination could not be read from the kernel.
    NoOriginalDestination,
    /// One of the two ends reset the connection.
    Reset,
    /// A deadline of the connection passed.
    IdleTimeout,
    /// The proxy is going away, or the pod left the mesh.
    Draining,
    /// An input could not be parsed.
    Malformed,
    /// The namespace, pod or socket is already in use by something else.
    Conflict,
    /// The kernel refused an operation.
    Kernel,
    /// A required process or link is not there.
    LinkDown,
    /// The peer speaks no version that we do.
    VersionMismatch,
    /// A bug of ours: an invariant did not hold.
    Internal,
    /// The record of the destination wants a waypoint, which this mesh does not do.
    WaypointNeeded,
    /// An end of an open connection does not answer any more: nothing is acknowledged, or no keepalive probe.
    PeerLost,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a [`Reason`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown reason")]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text).ok_or(UnknownReason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_reads_back_from_its_name() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
        assert_eq!("policydenied".parse::<Reason>(), Err(UnknownReason));
    }
}

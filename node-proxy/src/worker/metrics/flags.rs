//! `response_flags`: why a connection failed or was ended, in few words. A closed set: Envoy's and ztunnel's flags where they have one
//! for it, ours for the rest. The one [`Reason`] behind it is in our own metrics and in the access log.

use mesh_model::Reason;

/// A value of `response_flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flags {
    /// It ran to its end.
    None,
    /// A policy said no, or was not known.
    Deny,
    /// The far side could not be reached.
    Connect,
    /// No tunnel: TLS or HTTP/2 failed.
    TlsFailure,
    /// No certificate, an expired one, or a peer that is not whom it should be.
    IdentityError,
    /// Nothing is known behind the destination.
    NoRoute,
    /// What was asked for makes no sense.
    BadRequest,
    /// A budget is used up.
    Overload,
    /// One of the ends reset it, or the tunnel under it went away.
    Reset,
    /// A deadline passed.
    Timeout,
    /// The proxy or the pod went away.
    Drain,
    /// This node's own fault.
    Internal,
}

impl Flags {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Flags::None => "-",
            Flags::Deny => "DENY",
            Flags::Connect => "CONNECT",
            Flags::TlsFailure => "TLS_FAILURE",
            Flags::IdentityError => "IDENTITY_ERROR",
            Flags::NoRoute => "NO_ROUTE",
            Flags::BadRequest => "BAD_REQUEST",
            Flags::Overload => "OVERLOAD",
            Flags::Reset => "RESET",
            Flags::Timeout => "TIMEOUT",
            Flags::Drain => "DRAIN",
            Flags::Internal => "INTERNAL",
        }
    }
}

impl From<Option<Reason>> for Flags {
    fn from(reason: Option<Reason>) -> Self {
        let Some(reason) = reason else { return Flags::None };
        match reason {
            Reason::PolicyDenied | Reason::PolicyUnknown | Reason::PolicyChanged => Flags::Deny,
            Reason::ConnectFailed | Reason::ConnectTimeout | Reason::NoSocket => Flags::Connect,
            Reason::HandshakeFailed | Reason::HandshakeTimeout | Reason::TunnelRefused => Flags::TlsFailure,
            Reason::CertificateUnavailable | Reason::CertificateExpired | Reason::PeerUntrusted => Flags::IdentityError,
            Reason::UnknownDestination
            | Reason::NoEndpoint
            | Reason::NoOriginalDestination
            | Reason::NotReady
            | Reason::WaypointNeeded => Flags::NoRoute,
            Reason::BadRequest | Reason::WrongDestination | Reason::ReservedPort | Reason::Malformed => {
                Flags::BadRequest
            }
            Reason::Overloaded => Flags::Overload,
            Reason::Reset | Reason::TunnelClosed => Flags::Reset,
            Reason::IdleTimeout | Reason::PeerLost => Flags::Timeout,
            Reason::Draining => Flags::Drain,
            Reason::Conflict | Reason::Kernel | Reason::LinkDown | Reason::VersionMismatch | Reason::Internal => {
                Flags::Internal
            }
        }
    }
}

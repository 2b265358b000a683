//! Which reasons a client can bring about in a lab, and for each other one why it cannot.

use mesh_model::Reason;

/// `Ok`: the load of this test causes it. `Err`: why not; where it is caused instead.
///
/// Exhaustive on purpose: a new reason must be placed here.
pub(crate) fn caused(reason: Reason) -> Result<(), &'static str> {
    use Reason as R;
    match reason {
        R::UnknownDestination
        | R::NoEndpoint
        | R::PolicyDenied
        | R::PolicyUnknown
        | R::PolicyChanged
        | R::ConnectFailed
        | R::ConnectTimeout
        | R::CertificateUnavailable
        | R::PeerUntrusted
        | R::HandshakeFailed
        | R::HandshakeTimeout
        | R::ReservedPort
        | R::Reset
        | R::TunnelClosed
        | R::Overloaded
        | R::Draining
        | R::CertificateExpired
        | R::BadRequest
        | R::WrongDestination
        | R::TunnelRefused
        | R::NoSocket => Ok(()),
        R::NotReady => {
            Err("lasts from a restarted worker's first configuration to the keeper's last pod: milliseconds")
        }
        R::NoOriginalDestination => {
            Err("the rules redirect all that reaches the listeners, so the kernel always knows")
        }
        R::IdleTimeout => Err("an hour after one end's end of data"),
        R::PeerLost => Err("the far end's packets must be dropped: `dead_peers` does"),
        R::Malformed => Err("the control plane refuses manifests whose records would be malformed"),
        R::Conflict | R::Kernel | R::VersionMismatch => Err("of enrolments and links, not of connections"),
        R::LinkDown => Err("of the link between worker and keeper; a connection meets NoSocket"),
        R::Internal => Err("a bug of ours"),
        R::WaypointNeeded => Err("no record of our control plane wants a waypoint"),
    }
}

//! Which failures leave room for another endpoint.

use super::*;

#[test]
fn another_endpoint_is_tried_when_the_first_cannot_be_reached_and_not_when_somebody_said_no() {
    let to: SocketAddr = ([198, 18, 2, 7], 8080).into();
    let refused = |reason| OpenError::Refused { to, status: 401, reason, policy: None };
    let failed = |kind: io::ErrorKind| ConnectError::Failed { to, source: kind.into() };
    for (error, another) in [
        (failed(io::ErrorKind::ConnectionRefused), true),
        (ConnectError::Timeout { to, after: Duration::from_secs(10) }, true),
        (ConnectError::Tunnel(OpenError::Dial { to, error: DialError::new(Reason::ConnectFailed, "x") }), true),
        (ConnectError::Tunnel(OpenError::NoAnswer { to }), true),
        (ConnectError::Tunnel(refused(Reason::ConnectFailed)), true),
        (ConnectError::Tunnel(refused(Reason::PolicyDenied)), false),
        (ConnectError::Tunnel(refused(Reason::PolicyUnknown)), false),
    ] {
        assert_eq!(error.try_another(), another, "{error}");
    }
    assert_eq!(failed(io::ErrorKind::TimedOut).reason(), Reason::ConnectTimeout);
    assert_eq!(failed(io::ErrorKind::ConnectionRefused).reason(), Reason::ConnectFailed);
}

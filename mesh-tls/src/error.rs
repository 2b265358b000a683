//! What can go wrong while a configuration is built, and what a failed handshake means for metric, log and wire.

use mesh_model::Reason;
use rustls::{AlertDescription, CertificateError, Error};

use crate::PeerError;

/// A key, a request or a configuration cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The private key.
    #[error("private key {0}")]
    Key(&'static str),
    /// The certificate signing request.
    #[error("certificate signing request: {0}")]
    Request(#[source] rcgen::Error),
    /// Text that should be certificates in PEM.
    #[error("{what}: {cause}")]
    Pem {
        /// Which text.
        what: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A name that is neither a DNS name nor an address.
    #[error("server name {0:?} is neither a DNS name nor an address")]
    ServerName(String),
    /// rustls refused a part.
    #[error("TLS configuration: {0}")]
    Rustls(#[source] Error),
}

/// The reason for a failed handshake: whether we, or the other side, did not trust what was shown.
pub fn reason(error: &Error) -> Reason {
    use AlertDescription as A;
    match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Reason::CertificateExpired
        }
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => Reason::PeerUntrusted,
        Error::AlertReceived(A::CertificateExpired) => Reason::CertificateExpired,
        Error::AlertReceived(
            A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::CertificateRequired
            | A::NoCertificate
            // What the other side says when our certificate is signed by a root of the right name and the wrong key: roots that
            // were replaced (seen).
            | A::DecryptError,
        ) => Reason::PeerUntrusted,
        _ => Reason::HandshakeFailed,
    }
}

/// Why the peer's identity was refused, where that is what a failed handshake means: for our own log.
pub fn refusal(error: &Error) -> Option<&PeerError> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

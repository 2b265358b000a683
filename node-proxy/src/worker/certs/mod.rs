//! Certificates: one per identity of this node's pods, asked for, renewed, kept, given up.
//!
//! A connection that waits comes before prefetch, prefetch before renewal. A certificate is used until it runs out; after that a
//! connection is refused with `CertificateExpired`, never sent in clear. Keys exist here and in one sealed memfd that the keeper
//! holds unread for a successor (invariant 3); nothing here prints or writes one.

mod credentials;
mod fetch;
mod keep;
mod manager;
mod schedule;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

use mesh_model::{Identity, Reason};
use serde::Serialize;

pub use credentials::Credentials;
#[cfg(test)]
pub(in crate::worker) use fetch::{SignError, Signer};
pub use keep::Keep;
#[cfg(test)]
pub(in crate::worker) use manager::start_with;
pub use manager::{Certificates, start};

/// What the certificate manager needs to know.
#[derive(Clone, Debug)]
pub struct CertConfig {
    /// The trust domains that both verifiers accept.
    pub trust_domains: mesh_model::TrustDomains,
    /// Where certificates are signed; `None`: only restored ones are had.
    pub control_plane: Option<super::xds::ControlPlane>,
    /// Validity that is asked for. The signer may give less.
    pub validity: Duration,
}

impl CertConfig {
    /// The default validity (Istio's `SECRET_TTL`).
    pub const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);
}

/// No usable certificate for the identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// None was had in time.
    #[error("no certificate for {identity} within {waited:?}{}", last.as_ref().map(|last| format!("; last attempt: {last}")).unwrap_or_default())]
    Unavailable {
        /// Whose.
        identity: Identity,
        /// How long was waited.
        waited: Duration,
        /// What the last attempt said.
        last: Option<String>,
    },
    /// The one that was had has run out and no other was had in time.
    #[error("certificate of {identity} has run out{}", last.as_ref().map(|last| format!("; last attempt to renew it: {last}")).unwrap_or_default())]
    Expired {
        /// Whose.
        identity: Identity,
        /// What the last attempt said.
        last: Option<String>,
    },
}

impl CertError {
    /// The one reason.
    pub fn reason(&self) -> Reason {
        match self {
            CertError::Unavailable { .. } => Reason::CertificateUnavailable,
            CertError::Expired { .. } => Reason::CertificateExpired,
        }
    }
}

/// One identity, for the admin socket. Never a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertState {
    /// Whose.
    pub identity: String,
    /// Whether a pod of this node has it.
    pub wanted: bool,
    /// Serial number in hexadecimal.
    pub serial: Option<String>,
    /// Valid from, seconds since 1970.
    pub not_before: Option<u64>,
    /// Valid until, seconds since 1970.
    pub not_after: Option<u64>,
    /// The next attempt, in seconds from now; `None` while one runs.
    pub next_attempt_in: Option<u64>,
    /// Connections that wait.
    pub waiting: usize,
    /// Attempts that failed since the last that did not.
    pub failures: u32,
    /// What the last failed attempt said.
    pub last_error: Option<String>,
}

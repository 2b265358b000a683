//! The identity in a certificate: exactly one URI among the subject's alternative names, and it is a SPIFFE identity.
//!
//! Ambiguity is refused instead of resolved: with two URIs, two verifiers could pick different ones (X.509-SVID, section 2:
//! "exactly one URI SAN"). Names of other kinds (DNS, address) mean nothing to the mesh and are ignored.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_model::{BadIdentity, Identity};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The certificate does not name one acceptable identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No certificate was shown.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The certificate, or its list of names, cannot be parsed.
    #[error("the peer's certificate cannot be parsed")]
    Malformed,
    /// It names no URI.
    #[error("the peer's certificate names no identity (no URI among its alternative names)")]
    NoIdentity,
    /// It names more than one URI.
    #[error("the peer's certificate names {0} URIs: exactly one is allowed, which of them it is cannot be told")]
    SeveralIdentities(usize),
    /// Its URI is not an identity.
    #[error("the peer's certificate: {0}")]
    BadIdentity(#[from] BadIdentity),
    /// An identity of a trust domain that is not ours.
    #[error("the peer is {0}, of a trust domain that is neither ours nor an alias")]
    ForeignTrustDomain(Identity),
    /// A proven identity, but not one that was asked for.
    #[error("the peer is {shown}, which is none of the {accepted} identities accepted for this destination")]
    WrongIdentity {
        /// What it showed.
        shown: Identity,
        /// How many would have been fine.
        accepted: usize,
    },
}

/// The identity that the first (leaf) certificate names. Does not verify the chain: for use after a handshake with one of our
/// configurations, which did.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, PeerError> {
    leaf_identity(chain.first().ok_or(PeerError::NoCertificate)?)
}

/// Until when the first (leaf) certificate is valid: for use after a handshake that verified it.
pub fn peer_not_after(chain: &[CertificateDer<'_>]) -> Result<SystemTime, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Malformed)?;
    let seconds = certificate.validity().not_after.timestamp();
    Ok(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// The identity that a certificate names.
pub(crate) fn leaf_identity(certificate: &CertificateDer<'_>) -> Result<Identity, PeerError> {
    let (rest, certificate) = X509Certificate::from_der(certificate).map_err(|_| PeerError::Malformed)?;
    if !rest.is_empty() {
        return Err(PeerError::Malformed);
    }
    // An error here is a second extension of the same kind.
    let Some(names) = certificate.subject_alternative_name().map_err(|_| PeerError::Malformed)? else {
        return Err(PeerError::NoIdentity);
    };
    let mut uris = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(PeerError::Malformed),
            _ => {}
        }
    }
    match uris[..] {
        [] => Err(PeerError::NoIdentity),
        [uri] => Ok(Identity::parse(uri)?),
        _ => Err(PeerError::SeveralIdentities(uris.len())),
    }
}

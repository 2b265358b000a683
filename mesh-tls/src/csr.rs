//! A key and the request to certify it.

use std::fmt;

use mesh_model::Identity;
use rcgen::{CertificateParams, DistinguishedName, SanType};

use crate::TlsError;
use crate::key::PrivateKey;

/// A key whose certificate has been asked for and has not come. Becomes a [`crate::WorkloadCert`].
pub struct PendingKey(pub(crate) PrivateKey);

impl fmt::Debug for PendingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<key>")
    }
}

/// A fresh ECDSA P-256 key and a signing request for it in PEM: empty subject, the identity as the only (critical) alternative
/// name. A signer decides by the authenticated caller, not by what stands here.
pub fn csr(identity: &Identity) -> Result<(PendingKey, String), TlsError> {
    let key = PrivateKey::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(identity).map_err(TlsError::Request)?];
    let pem = params.serialize_request(&key).and_then(|request| request.pem()).map_err(TlsError::Request)?;
    Ok((PendingKey(key), pem))
}

/// The identity as an alternative name.
pub(crate) fn uri(identity: &Identity) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(identity.to_string().try_into()?))
}

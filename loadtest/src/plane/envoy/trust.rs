//! The sidecars' certificates: one authority for each plane, one ECDSA P-256 key and name for each pod.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// The name of the pod `name`, as in our own certificates.
pub(super) fn name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// What every sidecar asks of its peer's name.
pub(super) const PREFIX: &str = "spiffe://cluster.local/ns/bench/sa/";

/// Signs.
pub(super) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A pod's certificate and key, both PEM.
pub(super) struct Leaf {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new() -> Result<Authority> {
        let key = KeyPair::generate().context("make the authority's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).context("sign the authority")?;
        Ok(Authority { pem: certificate.pem(), issuer: Issuer::new(params, key) })
    }

    /// PEM.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn issue(&self, pod: &str) -> Result<Leaf> {
        let key = KeyPair::generate().context("make a sidecar's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(name(pod).try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).context("sign a sidecar's certificate")?;
        Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

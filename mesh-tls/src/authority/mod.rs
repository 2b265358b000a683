//! The mesh's own certificate authority: one ECDSA P-256 root that signs workload certificates and the control plane's own.
//!
//! Only the control plane may hold one (invariant 5). What a certificate says comes from the caller of [`Authority::sign`], who
//! has authenticated and authorized it; nothing of the request but its public key is taken over.

mod files;

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use mesh_model::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::csr::uri;
use crate::key::PrivateKey;
use crate::{TlsError, pem};

pub use files::FileError;

/// How long a workload's certificate lives where nobody asks for less (Istio's default as well).
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// Valid this long before it is made, for clocks that run behind (design, section 2).
pub const BACKDATE: Duration = Duration::from_secs(60);
/// A root of our own making.
const ROOT_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The control plane's own certificate; made again at each start and at half of this.
const SERVER_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);
/// A request for a P-256 key is below 1 KiB; 16 leaves room for other clients' extensions.
const LONGEST_REQUEST: usize = 16 * 1024;

/// A certificate cannot be signed, or an authority cannot be made of what was given.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Files.
    #[error(transparent)]
    File(#[from] FileError),
    /// Keys or certificates that were given.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The first root certificate is not one that can sign with the key.
    #[error("the first certificate of the root file {0}")]
    Root(&'static str),
    /// The signing key is not one that we can use.
    #[error("the signing key: {0}")]
    Key(String),
    /// The client's request is not usable.
    #[error("the certificate signing request {0}")]
    Request(&'static str),
    /// The certificate could not be written.
    #[error("signing: {0}")]
    Sign(#[source] rcgen::Error),
    /// The root has run out.
    #[error("the root certificate ends before the certificate would begin")]
    RootExpired,
}

/// A certificate authority. Printing it shows no key.
pub struct Authority {
    issuer: Issuer<'static, PrivateKey>,
    root_not_after: SystemTime,
    root_pem: String,
}

/// The control plane's own certificate.
pub struct ServerCert {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKey,
    not_after: SystemTime,
}

impl ServerCert {
    /// Valid until.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl Authority {
    /// A new root, in memory only.
    pub fn create() -> Result<Self, AuthorityError> {
        let key = PrivateKey::generate()?;
        let root = Self::self_signed(&key)?;
        Self::from_parts(key, root)
    }

    /// A new root, and its signing key in PKCS #8 PEM for whoever keeps both (the root: [`Authority::root_pem`]).
    pub fn create_to_keep() -> Result<(Self, Zeroizing<String>), AuthorityError> {
        let key = PrivateKey::generate()?;
        let (root, text) = (Self::self_signed(&key)?, files::key_pem(&key));
        Ok((Self::from_parts(key, root)?, text))
    }

    /// From a signing key (PKCS #8) and root certificates, both PEM, that are kept elsewhere than in files.
    pub fn from_pem(key: &str, root: &str) -> Result<Self, AuthorityError> {
        Self::from_parts(files::key_of_pem(key).map_err(AuthorityError::Key)?, root.to_owned())
    }

    /// From the signing key and the root file: the first certificate is the signer's, further ones are trusted beside it (for
    /// the time of a change of roots).
    fn from_parts(key: PrivateKey, root_pem: String) -> Result<Self, AuthorityError> {
        let roots = pem::certificates("root certificates", &root_pem)?;
        let signer = &roots[0];
        let (_, parsed) = X509Certificate::from_der(signer).map_err(|_| AuthorityError::Root("cannot be parsed"))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public() {
            return Err(AuthorityError::Root("is for another key than the key file holds"));
        }
        if !parsed.is_ca() {
            return Err(AuthorityError::Root("is not a certificate authority's (basicConstraints CA:TRUE)"));
        }
        if parsed.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(AuthorityError::Root("may not sign certificates (keyUsage lacks keyCertSign)"));
        }
        let not_after = parsed.validity().not_after.timestamp();
        let root_not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(not_after).unwrap_or(0));
        let issuer = Issuer::from_ca_cert_der(signer, key).map_err(AuthorityError::Sign)?;
        Ok(Self { issuer, root_not_after, root_pem })
    }

    fn self_signed(key: &PrivateKey) -> Result<String, AuthorityError> {
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial()?);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Culvert");
        params.distinguished_name.push(DnType::CommonName, "Culvert mesh root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from(now + ROOT_VALIDITY);
        Ok(params.self_signed(key).map_err(AuthorityError::Sign)?.pem())
    }

    /// The roots in PEM: what clients of the mesh trust. Public.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Until when the signing root is valid.
    pub fn root_not_after(&self) -> SystemTime {
        self.root_not_after
    }

    /// Signs the request's key as `identity`, from `now` less a minute for `validity`, cut at the root's end. The answer is the
    /// leaf and then the roots, as `istio.v1.auth` clients expect.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, AuthorityError> {
        if csr_pem.len() > LONGEST_REQUEST {
            return Err(AuthorityError::Request("is longer than 16 KiB"));
        }
        // Checks the request's signature: the caller holds the key.
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|_| AuthorityError::Request("cannot be parsed, or its signature is wrong"))?;
        let public = &request.public_key;
        // An uncompressed P-256 point is 0x04 and 64 bytes.
        if public.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 || public.der_bytes().len() != 65 {
            return Err(AuthorityError::Request("is not for an ECDSA P-256 key signed with SHA-256"));
        }
        let mut params = leaf(now, validity, self.root_not_after)?;
        // An empty subject makes rcgen mark the names critical, as RFC 5280 4.2.1.6 demands.
        params.subject_alt_names = vec![uri(identity).map_err(AuthorityError::Sign)?];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(public, &self.issuer).map_err(AuthorityError::Sign)?;
        Ok(vec![leaf.pem(), self.root_pem.clone()])
    }

    /// A certificate for the control plane itself, for these DNS names and addresses, with a fresh key.
    pub fn server_cert(&self, names: &[String]) -> Result<ServerCert, AuthorityError> {
        let key = PrivateKey::generate()?;
        let mut params = leaf(SystemTime::now(), SERVER_VALIDITY, self.root_not_after)?;
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(ip) => Ok(SanType::IpAddress(ip)),
                Err(_) => {
                    Ok(SanType::DnsName(name.as_str().try_into().map_err(|_| TlsError::ServerName(name.clone()))?))
                }
            })
            .collect::<Result<_, TlsError>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let not_after = params.not_after.into();
        let leaf = params.signed_by(&key, &self.issuer).map_err(AuthorityError::Sign)?;
        Ok(ServerCert { chain: vec![leaf.into()], key, not_after })
    }
}

/// What all leaves share.
fn leaf(now: SystemTime, validity: Duration, root_not_after: SystemTime) -> Result<CertificateParams, AuthorityError> {
    let not_before = now - BACKDATE;
    let not_after = (now + validity).min(root_not_after);
    if not_after <= now {
        return Err(AuthorityError::RootExpired);
    }
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::from(not_before);
    params.not_after = OffsetDateTime::from(not_after);
    Ok(params)
}

/// 127 random bits: positive, and more than the 64 that CAs owe each other.
fn serial() -> Result<SerialNumber, TlsError> {
    let mut bytes = [0_u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| TlsError::Key("cannot be made: no random numbers"))?;
    bytes[0] = bytes[0] & 0x7f | 0x40; // never zero, never negative, always of one length
    Ok(SerialNumber::from_slice(&bytes))
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("root_not_after", &self.root_not_after)
            .field("key", self.issuer.key())
            .finish()
    }
}

impl fmt::Debug for ServerCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCert").field("not_after", &self.not_after).field("key", &self.key).finish_non_exhaustive()
    }
}

//! A workload's certificate with its key and the roots it trusts: checked when made, so that nothing later can be wrong with it
//! but its age.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_model::Identity;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::sign::CertifiedKey;
use webpki::KeyUsage;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::config::PROVIDER;
use crate::key::PrivateKey;
use crate::san::{PeerError, leaf_identity};
use crate::{PendingKey, TlsError, pem, verify};

/// What a signer sent, or what was kept, is not a certificate that can be used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// Fewer than two elements: leaf and roots.
    #[error("the signer's answer has {0} elements, at least two are needed: the certificate and the roots")]
    Short(usize),
    /// A part cannot be parsed or used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The leaf cannot be parsed.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// The leaf is for another key.
    #[error("the certificate is for another key than the one that was sent")]
    OtherKey,
    /// The leaf names no usable identity.
    #[error("the certificate is not usable: {0}")]
    Identity(#[from] PeerError),
    /// The leaf names somebody else.
    #[error("asked for a certificate of {expected} and got one of {got}")]
    OtherIdentity {
        /// Who was asked for.
        expected: Identity,
        /// Who came.
        got: Identity,
    },
    /// The leaf does not lead to the roots that came with it.
    #[error("the certificate does not verify against the roots that came with it: {0}")]
    Chain(rustls::Error),
    /// The kept bytes are not ours.
    #[error("the kept certificate cannot be read: {0}")]
    Kept(&'static str),
}

/// A certificate, its key and the roots to check peers by. Cheap to share by `Arc`.
pub struct WorkloadCert {
    identity: Identity,
    not_before: SystemTime,
    not_after: SystemTime,
    key: PrivateKey,
    certified: Arc<CertifiedKey>,
    roots: Arc<[TrustAnchor<'static>]>,
    roots_der: Vec<CertificateDer<'static>>,
}

impl WorkloadCert {
    /// Joins the key with the signer's answer: the leaf, each intermediate, and last the roots (one or more in one element).
    /// Refuses what is not for this key, not `expected`, or does not verify for both ends of a tunnel. Age is not judged here.
    pub fn assemble(pending: PendingKey, chain_pem: Vec<String>, expected: &Identity) -> Result<Self, CertError> {
        let [leaf, between @ .., roots] = &chain_pem[..] else { return Err(CertError::Short(chain_pem.len())) };
        let mut chain = pem::certificates("certificate", leaf)?;
        for (at, element) in between.iter().enumerate() {
            chain.extend(pem::certificates(&format!("intermediate certificate {}", at + 1), element)?);
        }
        let roots = pem::certificates("root certificates", roots)?;
        let cert = Self::new(pending.0, chain, roots)?;
        if cert.identity != *expected {
            return Err(CertError::OtherIdentity { expected: expected.clone(), got: cert.identity });
        }
        Ok(cert)
    }

    fn new(
        key: PrivateKey,
        chain: Vec<CertificateDer<'static>>,
        roots_der: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CertError> {
        let leaf = chain.first().ok_or(CertError::Malformed)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertError::Malformed)?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public() {
            return Err(CertError::OtherKey);
        }
        let not_before = at(parsed.validity().not_before.timestamp());
        let not_after = at(parsed.validity().not_after.timestamp());
        let identity = leaf_identity(leaf)?;
        let roots = roots_der
            .iter()
            .map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()))
            .collect::<Result<Arc<[_]>, _>>()
            .map_err(|_| CertError::Malformed)?;
        // A certificate that has run out, or that a slow clock has not reached, is still the right one: checked at a time
        // within its life.
        let now = SystemTime::now().clamp(not_before, not_after.max(not_before));
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            verify::chain(leaf, &chain[1..], &roots, now, usage, PROVIDER.signature_verification_algorithms)
                .map_err(CertError::Chain)?;
        }
        let certified = Arc::new(CertifiedKey::new(chain, key.for_rustls()?));
        Ok(Self { identity, not_before, not_after, key, certified, roots, roots_der })
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Valid from.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Valid until.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Half of its life: when a new one should be asked for.
    pub fn half_life(&self) -> SystemTime {
        self.not_before + self.not_after.duration_since(self.not_before).unwrap_or_default() / 2
    }

    /// Whether it has run out.
    pub fn expired(&self, now: SystemTime) -> bool {
        now >= self.not_after
    }

    /// Serial number in hexadecimal: for dumps (public).
    pub fn serial(&self) -> String {
        self.chain()
            .first()
            .and_then(|leaf| X509Certificate::from_der(leaf).ok())
            .map(|(_, leaf)| leaf.raw_serial_as_string())
            .unwrap_or_default()
    }

    /// The certificates to show, leaf first: for dumps (public).
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The root certificates that peers are checked by: for dumps (public).
    pub fn root_certificates(&self) -> &[CertificateDer<'static>] {
        &self.roots_der
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    pub(crate) fn roots(&self) -> Arc<[TrustAnchor<'static>]> {
        self.roots.clone()
    }

    /// Key and certificates as bytes, **secret**: for the memfd that outlives a worker, and for nothing else.
    pub fn to_secret_bytes(&self) -> Zeroizing<Vec<u8>> {
        let parts = || {
            [self.key.pkcs8()]
                .into_iter()
                .chain(self.chain().iter().map(|c| &c[..]))
                .chain(self.roots_der.iter().map(|c| &c[..]))
        };
        // Sized before it is filled: growing would leave copies of the key behind.
        let mut out = Vec::with_capacity(MAGIC.len() + 8 + parts().map(|part| part.len() + 4).sum::<usize>());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(self.chain().len() as u32).to_be_bytes());
        out.extend_from_slice(&(self.roots_der.len() as u32).to_be_bytes());
        for part in parts() {
            out.extend_from_slice(&(part.len() as u32).to_be_bytes());
            out.extend_from_slice(part);
        }
        Zeroizing::new(out)
    }

    /// Reads back [`WorkloadCert::to_secret_bytes`], with every check made again.
    pub fn from_secret_bytes(bytes: &[u8]) -> Result<Self, CertError> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(CertError::Kept("unknown format or version"))?;
        let (chain, roots) = (number(&mut rest)?, number(&mut rest)?);
        if chain == 0 || roots == 0 || chain > MOST_PARTS || roots > MOST_PARTS {
            return Err(CertError::Kept("implausible number of certificates"));
        }
        let key = PrivateKey::from_pkcs8(Zeroizing::new(part(&mut rest)?.to_vec()))?;
        let mut take =
            |n: usize| (0..n).map(|_| Ok(part(&mut rest)?.to_vec().into())).collect::<Result<Vec<_>, CertError>>();
        let (chain, roots) = (take(chain)?, take(roots)?);
        if !rest.is_empty() {
            return Err(CertError::Kept("bytes left over"));
        }
        Self::new(key, chain, roots)
    }
}

/// First bytes of the kept form, with its version.
const MAGIC: &[u8; 8] = b"CVTCERT1";
/// As many as PEM input may hold.
const MOST_PARTS: usize = 64;

fn number(rest: &mut &[u8]) -> Result<usize, CertError> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or(CertError::Kept("cut short"))?;
    *rest = tail;
    Ok(u32::from_be_bytes(*head) as usize)
}

fn part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], CertError> {
    let length = number(rest)?;
    let (head, tail) = rest.split_at_checked(length).ok_or(CertError::Kept("cut short"))?;
    *rest = tail;
    Ok(head)
}

/// Unix seconds of a certificate as time; before 1970 counts as 1970.
fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl fmt::Debug for WorkloadCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCert")
            .field("identity", &self.identity.to_string())
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

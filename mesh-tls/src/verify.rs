//! The check of a peer's certificate, for both ends of a tunnel.
//!
//! Chain, dates and purpose by webpki against the roots that came with our own certificate; then the identity by [`crate::san`]
//! as parsed values. TLS 1.2 signatures are refused even if a dependency should enable that version.

use std::fmt;
use std::sync::Arc;

use mesh_model::{Identity, TrustDomains};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};

use crate::san::{PeerError, leaf_identity};

/// Which identities a peer may have.
#[derive(Debug)]
pub(crate) enum Accept {
    /// Any of our trust domains: policy judges later (the server's end).
    Domain,
    /// One of these (the client's end).
    These(Box<[Identity]>),
}

/// Verifies a peer for one workload.
pub(crate) struct PeerVerifier {
    pub(crate) roots: Arc<[TrustAnchor<'static>]>,
    pub(crate) domains: TrustDomains,
    pub(crate) accept: Accept,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        chain(leaf, intermediates, &self.roots, now, usage, self.algorithms)?;
        let shown = leaf_identity(leaf).map_err(refused)?;
        self.accepts(shown).map_err(refused)
    }

    fn accepts(&self, shown: Identity) -> Result<(), PeerError> {
        let ours = self.domains.accepts(shown.trust_domain());
        match &self.accept {
            Accept::Domain if ours => Ok(()),
            Accept::Domain => Err(PeerError::ForeignTrustDomain(shown)),
            // Exactly, or the same name in another trust domain that means this mesh.
            Accept::These(list) => {
                let fine = list.iter().any(|wanted| {
                    *wanted == shown
                        || (ours
                            && self.domains.accepts(wanted.trust_domain())
                            && wanted.namespace() == shown.namespace()
                            && wanted.service_account() == shown.service_account())
                });
                if fine { Ok(()) } else { Err(PeerError::WrongIdentity { shown, accepted: list.len() }) }
            }
        }
    }
}

/// Verifies chain, dates and purpose.
pub(crate) fn chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[TrustAnchor<'static>],
    now: UnixTime,
    usage: KeyUsage,
    algorithms: WebPkiSupportedAlgorithms,
) -> Result<(), Error> {
    use webpki::Error as W;
    let cert = EndEntityCert::try_from(leaf).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    cert.verify_for_usage(algorithms.all, roots, intermediates, now, usage, None, None).map(drop).map_err(|error| {
        Error::InvalidCertificate(match error {
            W::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
            W::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
            W::UnknownIssuer => CertificateError::UnknownIssuer,
            W::InvalidSignatureForPublicKey => CertificateError::BadSignature,
            W::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
            W::BadDer | W::BadDerTime | W::TrailingData(_) => CertificateError::BadEncoding,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    })
}

/// The identity was not accepted; the cause is kept inside, see [`crate::refusal`].
fn refused(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier")
            .field("domains", &self.domains)
            .field("accept", &self.accept)
            .finish_non_exhaustive()
    }
}

/// TLS 1.2 is never spoken.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig))
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, now, KeyUsage::server_auth()).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    // Every mesh peer has one certificate: hints would only tell a stranger who our roots are.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, now, KeyUsage::client_auth()).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

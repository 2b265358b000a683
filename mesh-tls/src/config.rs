//! The two ends of a tunnel as rustls configurations.
//!
//! TLS 1.3 only, AES-GCM only (what ztunnel speaks), X25519MLKEM768 preferred, ALPN `h2`, no SNI, no resumption, no early data.
//! Build one per certificate and share it: making one parses keys and roots.

use std::sync::{Arc, LazyLock};

use mesh_model::{Identity, TrustDomains};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use crate::WorkloadCert;
use crate::verify::{Accept, PeerVerifier};

/// The application protocol of a tunnel. rustls lets a server that speaks none pass; a client that wants to be sure compares
/// `alpn_protocol()` with this after the handshake.
pub const ALPN_H2: &[u8] = b"h2";

/// What every connection of ours is made of.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        // 256 first, as ztunnel; both are hardware speed here and AES-128 is there for peers that only have it.
        cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256],
        // P-256 and P-384 for ztunnel built on OpenSSL.
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    })
});

/// The server's end of tunnels to the workload: any client certificate of our trust domains and roots is let in (policy judges
/// the identity afterwards), none is not.
pub fn server_config(cert: &WorkloadCert, domains: &TrustDomains) -> Arc<ServerConfig> {
    let verifier = PeerVerifier {
        roots: cert.roots(),
        domains: domains.clone(),
        accept: Accept::Domain,
        algorithms: PROVIDER.signature_verification_algorithms,
    };
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites and groups")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(OnlyH2(cert.certified())));
    harden(&mut config);
    Arc::new(config)
}

/// The client's end of a tunnel: the server must show one of `accepted`, in any trust domain that means this mesh.
pub fn client_config(cert: &WorkloadCert, domains: &TrustDomains, accepted: &[Identity]) -> Arc<ClientConfig> {
    let verifier = PeerVerifier {
        roots: cert.roots(),
        domains: domains.clone(),
        accept: Accept::These(accepted.into()),
        algorithms: PROVIDER.signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites and groups")
        .dangerous() // "dangerous" is rustls' word for a verifier of one's own; ours only narrows
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(cert.certified())));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Settings that every server of ours shares.
pub(crate) fn harden(config: &mut ServerConfig) {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
}

/// Shows its certificate only to a client that asks for `h2`: rustls itself lets a client pass that offers no protocol at all.
#[derive(Debug)]
pub(crate) struct OnlyH2(pub(crate) Arc<CertifiedKey>);

impl ResolvesServerCert for OnlyH2 {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        hello.alpn()?.any(|protocol| protocol == ALPN_H2).then(|| self.0.clone())
    }
}

//! The control plane's own TLS: a server with an ordinary name, clients that show a token instead of a certificate.

use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::TlsError;
use crate::authority::ServerCert;
use crate::config::{ALPN_H2, OnlyH2, PROVIDER, harden};
use crate::pem;

/// The control plane's end: shows `cert`, asks for no client certificate.
pub fn endpoint_server_config(cert: &ServerCert) -> Result<Arc<ServerConfig>, TlsError> {
    let certified = CertifiedKey::new(cert.chain.clone(), cert.key.for_rustls()?);
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites and groups")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(OnlyH2(Arc::new(certified))));
    harden(&mut config);
    Ok(Arc::new(config))
}

/// A client of the control plane: the server must show `server_name` (a DNS name or an address) under one of the roots. Also
/// the name to hand to the connector.
pub fn endpoint_client_config(
    root_pem: &str,
    server_name: &str,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), TlsError> {
    let name = ServerName::try_from(server_name.to_owned()).map_err(|_| TlsError::ServerName(server_name.into()))?;
    let mut roots = RootCertStore::empty();
    for root in pem::certificates("root certificates of the control plane", root_pem)? {
        roots.add(root).map_err(TlsError::Rustls)?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), PROVIDER.clone())
        .build()
        .expect("there is at least one root and no revocation list");
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites and groups")
        .with_webpki_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok((Arc::new(config), name))
}

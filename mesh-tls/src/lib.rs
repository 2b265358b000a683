//! Trust: keys, certificates, verification, and the only builder of rustls configurations.
//!
//! Everything that decides "is this peer who we want" is here and nowhere else, so that one page can be audited:
//!
//! - [`csr()`] makes a key and asks for a certificate, [`WorkloadCert`] is the answer after it was checked;
//! - [`server_config`] and [`client_config`] are the two ends of a tunnel: TLS 1.3, AES-GCM, both sides show a certificate, and
//!   identities are compared as parsed SPIFFE values (`verify`, `san`);
//! - [`authority`] signs, for the control plane; [`endpoint_server_config`] and [`endpoint_client_config`] are the control
//!   plane's own TLS, where the server has an ordinary name and the client shows no certificate.
//!
//! A private key is never printed, never written to a file here (the authority's own root key excepted) and is overwritten
//! when dropped. There is no session resumption anywhere: each connection proves its identity anew.

pub mod authority;
mod cert;
mod config;
mod csr;
mod endpoint;
mod error;
mod key;
mod pem;
mod san;
mod verify;

pub use cert::{CertError, WorkloadCert};
pub use config::{ALPN_H2, client_config, server_config};
pub use csr::{PendingKey, csr};
pub use endpoint::{endpoint_client_config, endpoint_server_config};
pub use error::{TlsError, reason, refusal};
pub use san::{PeerError, peer_identity, peer_not_after};

#[cfg(test)]
mod tests;

//! One certificate with the TLS configurations that are built from it, once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_model::{Identity, TrustDomains};
use mesh_tls::WorkloadCert;
use rustls::{ClientConfig, ServerConfig};

/// Client configurations kept per certificate: one per set of identities that was dialled. Beyond that all are forgotten and
/// built again when they are needed (about 20 µs each).
const CLIENTS: usize = 1024;

/// What a pod shows, and how it checks others.
#[derive(Debug)]
pub struct Credentials {
    /// Whose.
    pub identity: Identity,
    /// For accepting tunnels.
    pub server: Arc<ServerConfig>,
    /// The certificate itself.
    pub cert: Arc<WorkloadCert>,
    domains: TrustDomains,
    clients: Mutex<HashMap<Box<[Identity]>, Arc<ClientConfig>>>,
}

impl Credentials {
    /// Builds the server's configuration.
    pub fn new(cert: WorkloadCert, domains: &TrustDomains) -> Self {
        Self {
            identity: cert.identity().clone(),
            server: mesh_tls::server_config(&cert, domains),
            cert: Arc::new(cert),
            domains: domains.clone(),
            clients: Mutex::default(),
        }
    }

    /// For dialling a peer that must show one of `accepted`.
    pub fn client(&self, accepted: &[Identity]) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = clients.get(accepted) {
            return config.clone();
        }
        if clients.len() >= CLIENTS {
            clients.clear();
        }
        let config = mesh_tls::client_config(&self.cert, &self.domains, accepted);
        clients.insert(accepted.into(), config.clone());
        config
    }
}

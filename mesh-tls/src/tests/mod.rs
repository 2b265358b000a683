//! Promises of the crate, asked through handshakes in memory: one module per subject.

mod authority;
mod handshake;
mod kept;
mod names;

use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_model::{Identity, TrustDomain, TrustDomains};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use crate::authority::Authority;
use crate::{WorkloadCert, csr};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn id(text: &str) -> Identity {
    Identity::parse(text).expect("an identity in a test")
}

pub(crate) fn cart() -> Identity {
    id("spiffe://cluster.local/ns/shop/sa/cart")
}

pub(crate) fn web() -> Identity {
    id("spiffe://cluster.local/ns/shop/sa/web")
}

pub(crate) fn domains() -> TrustDomains {
    let parse = |text| TrustDomain::parse(text).expect("a trust domain in a test");
    TrustDomains::new(parse("cluster.local"), vec![parse("old.example")])
}

pub(crate) fn issue_at(
    authority: &Authority,
    identity: &Identity,
    validity: Duration,
    now: SystemTime,
) -> WorkloadCert {
    let (key, request) = csr(identity).expect("a request");
    let chain = authority.sign(&request, identity, validity, now).expect("signed");
    WorkloadCert::assemble(key, chain, identity).expect("assembled")
}

pub(crate) fn issue(authority: &Authority, identity: &Identity) -> WorkloadCert {
    issue_at(authority, identity, DAY, SystemTime::now())
}

/// A handshake in memory: the two ends, or the first error and who had it.
pub(crate) fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), (Side, rustls::Error)> {
    // As the data path does: an address as the name, never sent.
    handshake_named(client, "198.18.1.2".try_into().expect("an address"), server)
}

pub(crate) fn handshake_named(
    client: Arc<ClientConfig>,
    name: rustls::pki_types::ServerName<'static>,
    server: Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), (Side, rustls::Error)> {
    let mut client = ClientConnection::new(client, name).map_err(|e| (Side::Client, e))?;
    let mut server = ServerConnection::new(server).map_err(|e| (Side::Server, e))?;
    for _ in 0..10 {
        pump(
            |out| client.write_tls(out),
            |bytes| {
                server.read_tls(&mut Cursor::new(bytes)).expect("memory");
                server.process_new_packets().map(drop).map_err(|e| (Side::Server, e))
            },
        )?;
        pump(
            |out| server.write_tls(out),
            |bytes| {
                client.read_tls(&mut Cursor::new(bytes)).expect("memory");
                client.process_new_packets().map(drop).map_err(|e| (Side::Client, e))
            },
        )?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking(), "neither an end nor an error");
    Ok((client, server))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

fn pump(
    mut write: impl FnMut(&mut dyn std::io::Write) -> std::io::Result<usize>,
    read: impl FnOnce(&[u8]) -> Result<(), (Side, rustls::Error)>,
) -> Result<(), (Side, rustls::Error)> {
    let mut bytes = Vec::new();
    while write(&mut bytes).expect("memory") > 0 {}
    if bytes.is_empty() { Ok(()) } else { read(&bytes) }
}

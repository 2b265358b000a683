//! Who is let in, and who is not.

use std::io::Cursor;
use std::time::{Duration, SystemTime};

use mesh_model::{Identity, Reason};
use rustls::{CertificateError, Error, NamedGroup, ProtocolVersion, ServerConnection};

use super::{DAY, Side, cart, domains, handshake, handshake_named, id, issue, issue_at, web};
use crate::authority::Authority;
use crate::{
    PeerError, client_config, endpoint_client_config, endpoint_server_config, peer_identity, reason, refusal,
    server_config,
};

/// web calls cart, wanting `accepted`; what each certificate names is given.
fn call(client: &Identity, server: &Identity, accepted: &[Identity]) -> Result<(), (Side, Error)> {
    let authority = Authority::create().expect("an authority");
    let (client, server) = (issue(&authority, client), issue(&authority, server));
    let (c, s) = handshake(client_config(&client, &domains(), accepted), server_config(&server, &domains()))?;
    assert_eq!(peer_identity(s.peer_certificates().expect("client's")), Ok(client.identity().clone()));
    assert_eq!(peer_identity(c.peer_certificates().expect("server's")), Ok(server.identity().clone()));
    Ok(())
}

fn refused(result: Result<(), (Side, Error)>, side: Side) -> PeerError {
    let (who, error) = result.expect_err("must be refused");
    assert_eq!((who, reason(&error)), (side, Reason::PeerUntrusted), "{error}");
    refusal(&error).unwrap_or_else(|| panic!("{error} names no cause")).clone()
}

#[test]
fn the_right_identity_passes_with_post_quantum_key_exchange_tls13_and_h2() {
    let authority = Authority::create().expect("an authority");
    let (client, server) = (issue(&authority, &web()), issue(&authority, &cart()));
    let (c, s) = handshake(client_config(&client, &domains(), &[cart()]), server_config(&server, &domains()))
        .expect("a handshake");
    assert_eq!(c.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(c.negotiated_key_exchange_group().map(|group| group.name()), Some(NamedGroup::X25519MLKEM768));
    assert_eq!((c.alpn_protocol(), s.alpn_protocol()), (Some(&b"h2"[..]), Some(&b"h2"[..])));
    assert_eq!(s.server_name(), None, "no SNI is sent");
    let suite = format!("{:?}", c.negotiated_cipher_suite().expect("a suite").suite());
    assert_eq!(suite, "TLS13_AES_256_GCM_SHA384");
    assert_eq!(c.tls13_tickets_received(), 0, "no resumption");
}

#[test]
fn one_of_several_accepted_identities_is_enough_and_aliases_count_as_our_own() {
    call(&web(), &cart(), &[web(), cart()]).expect("one of two");
    let old_cart = id("spiffe://old.example/ns/shop/sa/cart");
    call(&web(), &old_cart, &[cart()]).expect("server of an alias");
    call(&web(), &cart(), &[old_cart]).expect("record of an alias");
    call(&id("spiffe://old.example/ns/shop/sa/web"), &cart(), &[cart()]).expect("client of an alias");
}

#[test]
fn another_identity_is_refused_by_the_client() {
    for shown in [
        "spiffe://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop2/sa/cart",
        "spiffe://cluster.local/ns/shop/sa/cart2",
        "spiffe://other.local/ns/shop/sa/cart",
    ] {
        let cause = refused(call(&web(), &id(shown), &[cart()]), Side::Client);
        assert_eq!(cause, PeerError::WrongIdentity { shown: id(shown), accepted: 1 });
    }
    refused(call(&web(), &cart(), &[]), Side::Client);
}

#[test]
fn a_client_of_another_trust_domain_is_refused_by_the_server() {
    let stranger = id("spiffe://other.local/ns/shop/sa/web");
    assert_eq!(refused(call(&stranger, &cart(), &[cart()]), Side::Server), PeerError::ForeignTrustDomain(stranger));
}

#[test]
fn a_certificate_that_has_run_out_is_refused_at_both_ends() {
    let authority = Authority::create().expect("an authority");
    let then = SystemTime::now() - 2 * DAY;
    let fresh = issue(&authority, &web());
    let old = issue_at(&authority, &cart(), DAY, then);
    assert!(old.expired(SystemTime::now()) && !fresh.expired(SystemTime::now()));
    let (side, error) = handshake(client_config(&fresh, &domains(), &[cart()]), server_config(&old, &domains()))
        .expect_err("old server");
    assert_eq!((side, reason(&error)), (Side::Client, Reason::CertificateExpired));
    let (side, error) = handshake(client_config(&old, &domains(), &[web()]), server_config(&fresh, &domains()))
        .expect_err("old client");
    assert_eq!((side, reason(&error)), (Side::Server, Reason::CertificateExpired));
    assert!(matches!(error, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })));
}

#[test]
fn a_certificate_from_the_future_is_refused_but_for_the_minute_that_clocks_may_differ() {
    let authority = Authority::create().expect("an authority");
    let fresh = issue(&authority, &web());
    let ahead = |seconds| issue_at(&authority, &cart(), DAY, SystemTime::now() + Duration::from_secs(seconds));
    let call = |server: crate::WorkloadCert| {
        handshake(client_config(&fresh, &domains(), &[cart()]), server_config(&server, &domains()))
    };
    call(ahead(50)).expect("within the minute");
    let (_, error) = call(ahead(3600)).expect_err("an hour ahead");
    assert_eq!(reason(&error), Reason::PeerUntrusted);
}

#[test]
fn another_root_is_refused_at_both_ends() {
    let (ours, theirs) = (Authority::create().expect("ours"), Authority::create().expect("theirs"));
    let (good, evil) = (issue(&ours, &web()), issue(&theirs, &cart()));
    let (side, error) = handshake(client_config(&good, &domains(), &[cart()]), server_config(&evil, &domains()))
        .expect_err("server of another root");
    assert_eq!((side, reason(&error)), (Side::Client, Reason::PeerUntrusted));
    let cart = issue(&ours, &cart());
    let evil = issue(&theirs, &web());
    // The same subject and another key: the signature does not fit. Mallory accepts anything.
    let mut mallory = (*client_config(&evil, &domains(), &[])).clone();
    mallory.dangerous().set_certificate_verifier(std::sync::Arc::new(super::names::AcceptsAll));
    let (side, error) =
        handshake(mallory.into(), server_config(&cart, &domains())).expect_err("client of another root");
    assert_eq!((side, reason(&error)), (Side::Server, Reason::PeerUntrusted));
}

#[test]
fn a_client_without_certificate_is_refused() {
    let authority = Authority::create().expect("an authority");
    let server = issue(&authority, &cart());
    let mut bare = (*client_config(&issue(&authority, &web()), &domains(), &[cart()])).clone();
    bare.client_auth_cert_resolver = std::sync::Arc::new(super::names::NoCertificate);
    let (side, error) = handshake(bare.into(), server_config(&server, &domains())).expect_err("no certificate");
    assert_eq!((side, &error, reason(&error)), (Side::Server, &Error::NoCertificatesPresented, Reason::PeerUntrusted));
}

#[test]
fn a_client_that_does_not_offer_h2_is_refused() {
    let authority = Authority::create().expect("an authority");
    let server = issue(&authority, &cart());
    for offered in [vec![], vec![b"http/1.1".to_vec()]] {
        let mut client = (*client_config(&issue(&authority, &web()), &domains(), &[cart()])).clone();
        client.alpn_protocols = offered;
        let (side, error) = handshake(client.into(), server_config(&server, &domains())).expect_err("no h2");
        assert_eq!((side, reason(&error)), (Side::Server, Reason::HandshakeFailed));
    }
}

/// A ClientHello of TLS 1.2 as OpenSSL writes it, without supported_versions.
#[test]
fn tls12_is_refused() {
    let authority = Authority::create().expect("an authority");
    let mut body = vec![0x03, 0x03];
    body.extend([7_u8; 32]);
    body.push(0); // no session
    body.extend([0, 2, 0xc0, 0x2b]); // ECDHE-ECDSA-AES128-GCM-SHA256
    body.extend([1, 0]); // null compression
    let extensions: &[u8] = &[
        0, 10, 0, 4, 0, 2, 0, 23, // supported_groups: P-256
        0, 11, 0, 2, 1, 0, // ec_point_formats
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ECDSA P-256 SHA-256
        0, 16, 0, 5, 0, 3, 2, b'h', b'2', // ALPN h2
        0, 23, 0, 0, // extended_master_secret
    ];
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut hello = vec![22, 3, 1];
    hello.extend((body.len() as u16 + 4).to_be_bytes());
    hello.extend([1, 0]);
    hello.extend((body.len() as u16).to_be_bytes());
    hello.extend(&body);
    let mut server =
        ServerConnection::new(server_config(&issue(&authority, &cart()), &domains())).expect("a connection");
    server.read_tls(&mut Cursor::new(hello)).expect("memory");
    let error = server.process_new_packets().expect_err("TLS 1.2");
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error:?}");
}

#[test]
fn the_control_planes_end_is_trusted_by_name_and_root_only() {
    let authority = Authority::create().expect("an authority");
    let names = ["culvert.culvert-system.svc".to_owned(), "198.19.255.1".to_owned(), "fd77:ffff::1".to_owned()];
    let server = || endpoint_server_config(&authority.server_cert(&names).expect("a certificate")).expect("server");
    for name in &names {
        let (client, name) = endpoint_client_config(authority.root_pem(), name).expect("a client");
        handshake_named(client, name, server()).expect("a handshake");
    }
    let (client, name) = endpoint_client_config(authority.root_pem(), "other.svc").expect("a client");
    handshake_named(client, name, server()).expect_err("another name");
    let other = Authority::create().expect("another");
    let (client, name) = endpoint_client_config(other.root_pem(), &names[0]).expect("a client");
    let (_, error) = handshake_named(client, name, server()).expect_err("another root");
    assert_eq!(reason(&error), Reason::PeerUntrusted);
    assert!(endpoint_client_config(authority.root_pem(), "not a name").is_err());
    assert!(endpoint_client_config("nothing", &names[0]).is_err());
}

/// The control plane's own certificate has no SPIFFE identity: it opens no tunnel.
#[test]
fn a_workload_is_not_reachable_with_the_control_planes_certificate() {
    let authority = Authority::create().expect("an authority");
    let endpoint = authority.server_cert(&["culvert.svc".to_owned()]).expect("a certificate");
    let client = client_config(&issue(&authority, &web()), &domains(), &[cart()]);
    let (side, error) = handshake(client, endpoint_server_config(&endpoint).expect("server")).expect_err("no identity");
    assert_eq!((side, refusal(&error)), (Side::Client, Some(&PeerError::NoIdentity)));
}

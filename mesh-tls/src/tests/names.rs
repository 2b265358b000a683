//! Certificates whose names are ambiguous, malformed or nearly right are nobody's.

use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use super::cart;
use crate::key::PrivateKey;
use crate::{PeerError, peer_identity};

/// A client that checks nothing.
#[derive(Debug)]
pub(super) struct AcceptsAll;

impl ServerCertVerifier for AcceptsAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crate::config::PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

/// A client that has no certificate.
#[derive(Debug)]
pub(super) struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

/// A certificate with exactly these names, as somebody with a CA could make it.
fn certificate(names: &[Name]) -> CertificateDer<'static> {
    let key = PrivateKey::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    // Written by hand: rcgen would refuse some of these.
    let mut body = Vec::new();
    for name in names {
        let (tag, bytes): (u8, &[u8]) = match name {
            Name::Uri(bytes) => (0x86, bytes),
            Name::Dns(text) => (0x82, text.as_bytes()),
        };
        body.push(tag);
        length(&mut body, bytes.len());
        body.extend_from_slice(bytes);
    }
    let mut content = vec![0x30];
    length(&mut content, body.len());
    content.extend(body);
    if !names.is_empty() {
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], content);
        extension.set_criticality(true);
        params.custom_extensions = vec![extension];
    }
    params.self_signed(&key).expect("a certificate").into()
}

/// One alternative name.
enum Name<'a> {
    Uri(&'a [u8]),
    Dns(&'a str),
}

fn length(out: &mut Vec<u8>, n: usize) {
    match n {
        0..=0x7f => out.push(n as u8),
        0x80..=0xff => out.extend([0x81, n as u8]),
        _ => out.extend([0x82, (n >> 8) as u8, n as u8]),
    }
}

#[test]
fn exactly_one_well_formed_uri_is_an_identity_whatever_stands_beside_it() {
    let uri = cart().to_string();
    let one = Name::Uri(uri.as_bytes());
    assert_eq!(peer_identity(&[certificate(&[one])]), Ok(cart()));
    let names = [Name::Dns("cart.shop.svc"), Name::Uri(uri.as_bytes())];
    assert_eq!(peer_identity(&[certificate(&names)]), Ok(cart()));
}

#[test]
fn no_name_no_uri_or_several_uris_are_no_identity() {
    let uri = cart().to_string();
    assert_eq!(peer_identity(&[]), Err(PeerError::NoCertificate));
    assert_eq!(peer_identity(&[certificate(&[])]), Err(PeerError::NoIdentity));
    assert_eq!(peer_identity(&[certificate(&[Name::Dns("a.b")])]), Err(PeerError::NoIdentity));
    assert_eq!(peer_identity(&[CertificateDer::from(b"junk".to_vec())]), Err(PeerError::Malformed));
    for second in [&uri[..], "spiffe://cluster.local/ns/shop/sa/web", "https://example.org/", ""] {
        let both = [Name::Uri(uri.as_bytes()), Name::Uri(second.as_bytes())];
        assert_eq!(peer_identity(&[certificate(&both)]), Err(PeerError::SeveralIdentities(2)), "{second}");
    }
}

#[test]
fn a_uri_that_is_nearly_an_identity_is_none() {
    let long = format!("spiffe://cluster.local/ns/shop/sa/{}", "a".repeat(300));
    let table: &[&[u8]] = &[
        b"",
        b"spiffe://cluster.local/ns/shop/sa/cart\0",
        b"spiffe://cluster.local/ns/shop/sa/cart\0.evil.example",
        b"spiffe://cluster.local\0/ns/shop/sa/cart",
        b"SPIFFE://cluster.local/ns/shop/sa/cart",
        b"spiffe://Cluster.local/ns/shop/sa/cart",
        b"spiffe://cluster.local/NS/shop/SA/cart",
        b"spiffe://cluster.local/ns/Shop/sa/cart",
        b"spiffe://cluster.local/ns/shop/sa/%63art",
        b"spiffe://cluster.local/ns/shop%2Fsa%2Fweb/sa/cart",
        b"spiffe://cluster.local/ns/shop/sa/cart/",
        b"spiffe://cluster.local//ns/shop/sa/cart",
        b"spiffe://cluster.local/ns/shop/sa/../sa/cart",
        b"spiffe://cluster.local:443/ns/shop/sa/cart",
        b"spiffe://user@cluster.local/ns/shop/sa/cart",
        b"spiffe://cluster.local/ns/shop/sa/cart?x=y",
        b"spiffe://cluster.local/ns/shop/sa/cart#x",
        b"spiffe://cluster.local/ns/shop/sa/cart ",
        b" spiffe://cluster.local/ns/shop/sa/cart",
        b"spiffe://cluster.local/ns/shop/sa/cart\n",
        "spiffe://cluster.local/ns/shop/sa/c\u{430}rt".as_bytes(), // Cyrillic a
        b"spiffe://cluster.local/ns/shop/sa/\xff\xfe",
        b"spiffe://cluster.local/ns/shop",
        b"spiffe:cluster.local/ns/shop/sa/cart",
        b"https://cluster.local/ns/shop/sa/cart",
        long.as_bytes(),
    ];
    for uri in table {
        let got = peer_identity(&[certificate(&[Name::Uri(uri)])]);
        assert!(
            matches!(got, Err(PeerError::BadIdentity(_) | PeerError::Malformed)),
            "{:?} gave {got:?}",
            String::from_utf8_lossy(uri)
        );
    }
}

/// Any single byte changed in a good URI is never the same identity, and mostly none.
#[test]
fn a_changed_byte_never_gives_the_same_identity() {
    let good = cart().to_string();
    for at in 0..good.len() {
        for byte in [0, b'%', b'/', b'A', b'.', b'z', 0x80] {
            let mut uri = good.clone().into_bytes();
            if uri[at] == byte {
                continue;
            }
            uri[at] = byte;
            assert_ne!(peer_identity(&[certificate(&[Name::Uri(&uri)])]), Ok(cart()), "byte {at} as {byte:#x}");
        }
    }
}

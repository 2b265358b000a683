//! Certificates come whole from a signer, and come back whole from the memfd.

use std::time::SystemTime;

use super::{DAY, cart, domains, handshake, issue, issue_at, web};
use crate::authority::Authority;
use crate::{CertError, WorkloadCert, client_config, csr, server_config};

#[test]
fn a_kept_certificate_reads_back_and_still_opens_tunnels() {
    let authority = Authority::create().expect("an authority");
    let cert = issue(&authority, &cart());
    let bytes = cert.to_secret_bytes();
    let back = WorkloadCert::from_secret_bytes(&bytes).expect("read back");
    assert_eq!((back.identity(), back.not_before(), back.not_after()), (&cart(), cert.not_before(), cert.not_after()));
    assert_eq!(*back.to_secret_bytes(), *bytes);
    let client = issue(&authority, &web());
    handshake(client_config(&client, &domains(), &[cart()]), server_config(&back, &domains())).expect("a handshake");
}

#[test]
fn kept_bytes_that_were_changed_are_refused_or_equal_never_a_panic() {
    let cert = issue(&Authority::create().expect("an authority"), &cart());
    let good = cert.to_secret_bytes();
    for end in 0..good.len() {
        assert!(WorkloadCert::from_secret_bytes(&good[..end]).is_err(), "cut at {end} was accepted");
    }
    assert!(WorkloadCert::from_secret_bytes(&[&good[..], b"x"].concat()).is_err());
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 0x41;
        if let Ok(cert) = WorkloadCert::from_secret_bytes(&bad) {
            // Parts of a root that signatures do not cover (its own signature) may differ.
            assert_eq!(cert.identity(), &cart(), "byte {at}");
        }
    }
}

#[test]
fn a_certificate_that_has_run_out_reads_back_as_such() {
    let authority = Authority::create().expect("an authority");
    let old = issue_at(&authority, &cart(), DAY, SystemTime::now() - 3 * DAY);
    let back = WorkloadCert::from_secret_bytes(&old.to_secret_bytes()).expect("read back");
    assert!(back.expired(SystemTime::now()));
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_is_refused() {
    let authority = Authority::create().expect("an authority");
    let sign = |identity| {
        let (key, request) = csr(&cart()).expect("a request");
        (key, authority.sign(&request, &identity, DAY, SystemTime::now()).expect("signed"))
    };
    let (key, chain) = sign(web());
    assert!(matches!(WorkloadCert::assemble(key, chain, &cart()), Err(CertError::OtherIdentity { .. })));
    let (_, chain) = sign(cart());
    let (other, _) = sign(cart());
    assert!(matches!(WorkloadCert::assemble(other, chain, &cart()), Err(CertError::OtherKey)));
    let (key, mut chain) = sign(cart());
    chain.pop();
    assert!(matches!(WorkloadCert::assemble(key, chain, &cart()), Err(CertError::Short(1))));
    let (key, mut chain) = sign(cart());
    chain[1] = Authority::create().expect("another").root_pem().to_owned();
    assert!(matches!(WorkloadCert::assemble(key, chain, &cart()), Err(CertError::Chain(_))));
    for junk in ["", "junk", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        for at in [0, 1] {
            let (key, mut chain) = sign(cart());
            chain[at] = junk.to_owned();
            assert!(matches!(WorkloadCert::assemble(key, chain, &cart()), Err(CertError::Tls(_))), "{junk} at {at}");
        }
    }
}

#[test]
fn nothing_that_prints_shows_a_key() {
    let authority = Authority::create().expect("an authority");
    let (key, _) = csr(&cart()).expect("a request");
    assert_eq!(format!("{key:?}"), "<key>");
    let printed = format!("{:?} {authority:?}", issue(&authority, &cart()));
    assert!(printed.contains("key: <key>") && printed.contains("sa/cart"), "{printed}");
    assert!(printed.len() < 400, "{printed}");
}

#[test]
fn half_life_lies_in_the_middle() {
    let cert = issue(&Authority::create().expect("an authority"), &cart());
    let (before, after) = (cert.not_before(), cert.not_after());
    assert_eq!(cert.half_life().duration_since(before).ok(), after.duration_since(cert.half_life()).ok());
    let life = after.duration_since(before).expect("a life");
    assert_eq!(life.as_secs(), 24 * 3600 + 60, "24 h and the minute back");
}

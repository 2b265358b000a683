//! What the authority signs, and how it lies on disk.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{DAY, cart, domains, handshake, issue, web};
use crate::authority::{Authority, AuthorityError, FileError};
use crate::{client_config, csr, server_config};

#[test]
fn a_leaf_says_what_the_mesh_and_istio_expect() {
    let cert = issue(&Authority::create().expect("an authority"), &cart());
    let (_, leaf) = X509Certificate::from_der(&cert.chain()[0]).expect("a certificate");
    assert_eq!(leaf.subject().iter().count(), 0, "empty subject");
    let names = leaf.subject_alternative_name().expect("one").expect("names");
    assert!(names.critical);
    assert_eq!(names.value.general_names.len(), 1);
    let usage = leaf.key_usage().expect("one").expect("key usage").value;
    assert_eq!(usage.flags, 1, "digitalSignature alone");
    let purpose = leaf.extended_key_usage().expect("one").expect("purposes").value;
    assert!(purpose.server_auth && purpose.client_auth && !purpose.any && purpose.other.is_empty());
    assert!(!leaf.is_ca());
    assert_eq!(leaf.serial.bits(), 127);
}

#[test]
fn nothing_but_the_key_is_taken_from_the_request() {
    let authority = Authority::create().expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let mut greedy = CertificateParams::default();
    greedy.distinguished_name.push(DnType::CommonName, "admin");
    greedy.subject_alt_names = vec![
        SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().expect("ia5")),
        SanType::DnsName("admin".try_into().expect("ia5")),
    ];
    greedy.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    greedy.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let request = greedy.serialize_request(&key).and_then(|request| request.pem()).expect("a request");
    let chain = authority.sign(&request, &cart(), DAY, SystemTime::now()).expect("signed");
    let der = crate::pem::certificates("leaf", &chain[0]).expect("a certificate");
    let (_, leaf) = X509Certificate::from_der(&der[0]).expect("a certificate");
    assert!(!leaf.is_ca() && leaf.subject().iter().count() == 0);
    assert_eq!(crate::peer_identity(&der), Ok(cart()));
}

#[test]
fn a_request_that_is_broken_huge_or_for_another_kind_of_key_is_refused() {
    let authority = Authority::create().expect("an authority");
    let refuse = |text: &str| {
        let error = authority.sign(text, &cart(), DAY, SystemTime::now()).expect_err("must be refused");
        assert!(matches!(error, AuthorityError::Request(_)), "{error}");
    };
    refuse("");
    refuse("junk");
    refuse(&"A".repeat(100_000));
    let (_, good) = csr(&cart()).expect("a request");
    for at in (30..good.len() - 30).step_by(7) {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let text = String::from_utf8(bytes).expect("ascii");
        if text != good {
            refuse(&text);
        }
    }
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        refuse(&CertificateParams::default().serialize_request(&key).and_then(|r| r.pem()).expect("a request"));
    }
}

#[test]
fn a_certificate_never_outlives_the_root() {
    let authority = Authority::create().expect("an authority");
    let (_, request) = csr(&cart()).expect("a request");
    let late = authority.root_not_after() - Duration::from_secs(10);
    let chain = authority.sign(&request, &cart(), DAY, late).expect("signed");
    let der = crate::pem::certificates("leaf", &chain[0]).expect("a certificate");
    let (_, leaf) = X509Certificate::from_der(&der[0]).expect("a certificate");
    let root_end = authority.root_not_after().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    assert_eq!(leaf.validity().not_after.timestamp() as u64, root_end);
    let after = authority.root_not_after();
    assert!(matches!(authority.sign(&request, &cart(), DAY, after), Err(AuthorityError::RootExpired)));
}

#[test]
fn the_root_is_made_once_private_and_comes_back_the_same() {
    let base = tempfile::tempdir().expect("a directory");
    let dir = base.path().join("ca");
    let first = Authority::load_or_create(&dir).expect("made");
    let mode = |name: &str| fs::metadata(dir.join(name)).expect("there").permissions().mode() & 0o7777;
    assert_eq!((mode("."), mode("root-key.pem"), mode("root-cert.pem")), (0o700, 0o600, 0o644));
    let again = Authority::load_or_create(&dir).expect("loaded");
    assert_eq!(first.root_pem(), again.root_pem());
    assert_eq!(first.root_pem(), fs::read_to_string(dir.join("root-cert.pem")).expect("the file"));
    let (client, server) = (issue(&first, &web()), issue(&again, &cart()));
    handshake(client_config(&client, &domains(), &[cart()]), server_config(&server, &domains())).expect("one root");
    // A crash between the two files: the certificate is made again from the key, what was signed before still verifies.
    fs::remove_file(dir.join("root-cert.pem")).expect("removed");
    let third = Authority::load_or_create(&dir).expect("made again");
    let server = issue(&third, &cart());
    handshake(client_config(&client, &domains(), &[cart()]), server_config(&server, &domains())).expect("one key");
}

#[test]
fn a_key_that_others_can_read_or_that_is_not_the_roots_is_refused_with_the_path() {
    let base = tempfile::tempdir().expect("a directory");
    let dir = base.path().join("ca");
    Authority::load_or_create(&dir).expect("made");
    let key = dir.join("root-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
    let error = Authority::load_or_create(&dir).expect_err("readable by others");
    assert!(error.to_string().contains("root-key.pem has mode 0644"), "{error}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    assert!(matches!(Authority::load_or_create(&dir), Err(AuthorityError::File(FileError::Open { .. }))));
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("chmod");
    let other = base.path().join("other");
    Authority::load_or_create(&other).expect("made");
    fs::copy(other.join("root-key.pem"), &key).expect("copied");
    assert!(matches!(Authority::load_or_create(&dir), Err(AuthorityError::Root(_))));
    fs::remove_file(&key).expect("removed");
    assert!(matches!(Authority::load_or_create(&dir), Err(AuthorityError::File(FileError::Missing(..)))));
    fs::write(&key, "junk").expect("written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
    assert!(matches!(Authority::load_or_create(&dir), Err(AuthorityError::File(FileError::Key { .. }))));
}

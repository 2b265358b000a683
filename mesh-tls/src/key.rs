//! A private key: ECDSA P-256, overwritten when dropped, never printed.
//!
//! Separate so that there is one place where secret bytes live. `rcgen` and `rustls` sign through it.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::TlsError;

/// An ECDSA P-256 key with its PKCS #8 form.
pub(crate) struct PrivateKey {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl PrivateKey {
    /// A fresh key.
    pub(crate) fn generate() -> Result<Self, TlsError> {
        let pair =
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| TlsError::Key("cannot be made"))?;
        // The document of aws-lc-rs overwrites itself; our copy does as well.
        let document = pair.to_pkcs8v1().map_err(|_| TlsError::Key("cannot be written as PKCS #8"))?;
        Ok(Self { pkcs8: Zeroizing::new(document.as_ref().to_vec()), pair })
    }

    /// From PKCS #8 bytes.
    pub(crate) fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, TlsError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8)
            .map_err(|_| TlsError::Key("is not an ECDSA P-256 key in PKCS #8"))?;
        Ok(Self { pair, pkcs8 })
    }

    /// The PKCS #8 bytes: secret.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public point, uncompressed, as it stands in a certificate's subjectPublicKey.
    pub(crate) fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The form that rustls signs with.
    pub(crate) fn for_rustls(&self) -> Result<std::sync::Arc<dyn rustls::sign::SigningKey>, TlsError> {
        any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&self.pkcs8[..]))).map_err(TlsError::Rustls)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<key>")
    }
}

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.public()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.pair.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

//! Certificates as PEM text, both ways. Strict: what is not wholly certificates is an error, never skipped.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::TlsError;

/// No chain that we meet comes near this; it bounds what a peer or a file makes us parse.
const MOST_CERTIFICATES: usize = 32;

/// All certificates of the text, at least one. Other PEM sections beside them are an error.
pub(crate) fn certificates(what: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |cause: String| TlsError::Pem { what: what.to_owned(), cause };
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .take(MOST_CERTIFICATES + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fail(format!("not PEM: {error:?}")))?;
    let sections = text.matches("-----BEGIN ").count();
    match certificates.len() {
        0 => Err(fail("holds no certificate".into())),
        n if n > MOST_CERTIFICATES => Err(fail(format!("holds more than {MOST_CERTIFICATES} certificates"))),
        n if n != sections => Err(fail("holds something other than certificates".into())),
        _ => Ok(certificates),
    }
}

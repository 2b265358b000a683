//! Service account tokens that the API server itself would have made at another time, or for somebody else: signed by the cluster's own
//! key, since no API server makes one that has expired.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, SigningKey as _};
use serde_json::Value;

use crate::Cluster;

/// Of a number of ECDSA P-256.
const NUMBER: usize = 32;

impl Cluster {
    /// A token (RFC 7519) like this one with other claims, and a signature that holds.
    pub fn token_with(&self, token: &str, change: impl FnOnce(&mut Value)) -> Result<String> {
        let mut parts = token.split('.');
        let (header, claims) = (parts.next().context("a header")?, parts.next().context("claims")?);
        let mut claims: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?).context("claims of a token")?;
        change(&mut claims);
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        let path = self.lab().dir().join("pki/sa.key");
        let key = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let signature = KeyPair::from_pem(&key)?.sign(signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(plain(&signature).context("a signature of ECDSA P-256")?)))
    }
}

/// From the form of RFC 3279, 2.2.3 (a sequence of two integers) to that of RFC 7518, 3.4 (two numbers of 32 bytes).
fn plain(der: &[u8]) -> Result<Vec<u8>> {
    let (&[sequence, _], mut rest) = der.split_first_chunk::<2>().context("a sequence")?;
    ensure!(sequence == 0x30, "no sequence");
    let mut all = Vec::with_capacity(2 * NUMBER);
    for _ in 0..2 {
        let (&[integer, len], more) = rest.split_first_chunk::<2>().context("an integer")?;
        ensure!(integer == 0x02, "no integer");
        let (number, more) = more.split_at_checked(len.into()).context("a whole integer")?;
        // Signed: a zero stands before one that would look negative, and none that need not be there.
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        all.resize(all.len() + NUMBER.checked_sub(number.len()).context("a number of 32 bytes")?, 0);
        all.extend_from_slice(number);
        rest = more;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_signature_have_32_bytes_each() {
        let short = [[0x30, 0x07, 0x02, 0x01, 0x05].as_slice(), &[0x02, 0x02, 0x00, 0x80]].concat();
        let all = plain(&short).expect("two numbers");
        assert_eq!((all.len(), all[31], all[63]), (64, 0x05, 0x80));
        assert_eq!(all.iter().filter(|byte| **byte != 0).count(), 2);
        for broken in [&short[..1], &short[..4], &short[..8], &[0x31, 0x00], &[0x30, 0x02, 0x03, 0x00]] {
            assert!(plain(broken).is_err(), "{broken:?}");
        }
    }
}

//! Who a workload is: a SPIFFE identity of the Kubernetes form.
//!
//! Source: SPIFFE-ID standard, section 2; `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` as Istio writes it.
//! Comparison is typed equality of parsed values, never a pattern over text (classes S6 and S19 of the threat model).

use std::fmt;
use std::sync::Arc;

/// The text cannot be a trust domain or an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentity {
    /// Empty, too long (255 bytes), or characters other than `a-z 0-9 . - _`.
    #[error("trust domain {0:?} is not a lower-case DNS-like name of 1 to 255 bytes")]
    TrustDomain(String),
    /// Not `spiffe://<td>/ns/<ns>/sa/<sa>` with exactly these five parts.
    #[error("identity {0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form(String),
}

/// A SPIFFE trust domain, for example `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks the text against SPIFFE-ID 2.1.
    pub fn parse(text: &str) -> Result<Self, BadIdentity> {
        let fine = (1..=255).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'));
        if fine { Ok(Self(text.into())) } else { Err(BadIdentity::TrustDomain(clip(text))) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The trust domains that one mesh accepts: its own and its aliases. Both verifiers use the same set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomains {
    own: TrustDomain,
    aliases: Vec<TrustDomain>,
}

impl TrustDomains {
    /// The mesh's own trust domain and the others that mean the same mesh.
    pub fn new(own: TrustDomain, aliases: Vec<TrustDomain>) -> Self {
        Self { own, aliases }
    }

    /// The domain that identities of this mesh are issued in.
    pub fn own(&self) -> &TrustDomain {
        &self.own
    }

    /// The mesh's own domain, then its aliases.
    pub fn all(&self) -> impl Iterator<Item = &TrustDomain> {
        std::iter::once(&self.own).chain(&self.aliases)
    }

    /// Whether an identity of this domain is one of ours.
    pub fn accepts(&self, domain: &TrustDomain) -> bool {
        *domain == self.own || self.aliases.contains(domain)
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl Identity {
    /// From parts; namespace and service account must be DNS names as Kubernetes demands.
    pub fn new(trust_domain: TrustDomain, namespace: &str, service_account: &str) -> Result<Self, BadIdentity> {
        if !is_dns_name(namespace, 63) || !is_dns_name(service_account, 253) {
            return Err(BadIdentity::Form(clip(&format!(
                "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
            ))));
        }
        Ok(Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() })
    }

    /// Parses a SPIFFE URI. Exactly five parts; no escapes, query, fragment or trailing slash.
    pub fn parse(uri: &str) -> Result<Self, BadIdentity> {
        let bad = || BadIdentity::Form(clip(uri));
        let path = uri.strip_prefix("spiffe://").ok_or_else(bad)?;
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            [domain, "ns", namespace, "sa", account] => {
                Self::new(TrustDomain::parse(domain)?, namespace, account).map_err(|_| bad())
            }
            _ => Err(bad()),
        }
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The form that Istio's `principals` use: the URI without `spiffe://`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// RFC 1123 subdomain, as Kubernetes checks names.
fn is_dns_name(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
        && text.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
}

/// Foreign text in an error message stays short.
fn clip(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_from_its_uri() {
        let uri = "spiffe://cluster.local/ns/shop/sa/cart.v1";
        assert_eq!(Identity::parse(uri).map(|id| id.to_string()), Ok(uri.to_owned()));
    }

    #[test]
    fn a_text_that_is_not_exactly_the_form_is_refused() {
        for uri in [
            "",
            "spiffe://",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns/a/sa/b\0c",
            "spiffe://cluster.local/ns/a/sa/b%2Fc",
            "spiffe://cluster.local/ns/A/sa/b",
            "spiffe://cluster.local/ns/a/sa/b?x",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/sa/b/ns/a",
            "spiffe:///ns/a/sa/b",
        ] {
            assert!(Identity::parse(uri).is_err(), "{uri:?} was accepted");
        }
    }
}

//! Policies as values: `istio.security.Authorization` after parsing.

use std::fmt;
use std::str::FromStr;

use ipnetwork::IpNetwork;

/// Key of a policy on the wire and in the store; printed `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The text is not `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form namespace/name")]
pub struct BadPolicyKey(String);

impl FromStr for PolicyKey {
    type Err = BadPolicyKey;

    fn from_str(text: &str) -> Result<Self, BadPolicyKey> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(BadPolicyKey(text.chars().take(120).collect())),
        }
    }
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All (a policy of the root namespace without selector).
    Global,
    /// All of the policy's namespace.
    Namespace,
    /// Only those that list it.
    Selector,
}

/// What a match leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// If any ALLOW policy applies, one must match.
    Allow,
    /// A match refuses, whatever else says.
    Deny,
}

/// One authorization policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Namespace and name.
    pub key: PolicyKey,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// Allow or deny.
    pub action: Action,
    /// Matches if any rule matches; none: never matches.
    pub rules: Vec<Rule>,
    /// Judged and reported, not enforced.
    pub dry_run: bool,
    /// Something in it could not be understood: whatever it applies to is refused while it stands (fail closed).
    pub invalid: bool,
}

impl Policy {
    /// The policy that stands for one that could not be understood: it refuses whatever it applies to. The only way to write one,
    /// so that two readers of the same broken text make the same policy.
    pub fn invalid(key: PolicyKey, scope: Scope) -> Self {
        Self { key, scope, action: Action::Deny, rules: Vec::new(), dry_run: false, invalid: true }
    }
}

/// Matches if all clauses match; none: always matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The clauses.
    pub clauses: Vec<Clause>,
}

/// Matches if any of its matches does; none: always matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// The matches.
    pub matches: Vec<Match>,
}

/// All kinds that are not empty must match (AND); within a kind, any value (OR). Every list empty: never matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Namespace of the caller's identity.
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    pub not_namespaces: Vec<StringMatch>,
    /// Caller's identity without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// None of these; true for a caller without identity.
    pub not_principals: Vec<StringMatch>,
    /// Caller's service account with its namespace.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// None of these.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Caller's address.
    pub source_ips: Vec<AddressBlock>,
    /// None of these.
    pub not_source_ips: Vec<AddressBlock>,
    /// Address that was reached.
    pub destination_ips: Vec<AddressBlock>,
    /// None of these.
    pub not_destination_ips: Vec<AddressBlock>,
    /// Port that was reached.
    pub destination_ports: Vec<u16>,
    /// None of these.
    pub not_destination_ports: Vec<u16>,
}

impl Match {
    /// Whether it holds no condition at all; then it never matches.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An address block of a policy; made by [`super::parse_address_block`] or [`super::address_block`].
pub type AddressBlock = IpNetwork;

/// Caller's namespace and service account, both exact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
}

/// How one text is matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// Equal.
    Exact(String),
    /// Starts with (`value*`).
    Prefix(String),
    /// Ends with (`*value`).
    Suffix(String),
    /// Any text, but there must be one (`*`).
    Presence,
}

impl StringMatch {
    /// As Istio's lists write it: `*` any text, `a*` a prefix, `*a` a suffix, else exact. A star elsewhere stands for itself.
    pub fn parse(text: &str) -> Self {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Presence,
            (Some(suffix), _) => Self::Suffix(suffix.to_owned()),
            (None, Some(prefix)) => Self::Prefix(prefix.to_owned()),
            (None, None) => Self::Exact(text.to_owned()),
        }
    }

    /// Whether the text matches; byte for byte, no folding of case.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Presence => !text.is_empty(),
        }
    }
}

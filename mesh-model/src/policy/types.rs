//! Policies as values: `istio.security.Authorization` after parsing.

use std::fmt;

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

/// An address block of a policy.
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

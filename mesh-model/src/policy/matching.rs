//! Whether a policy's conditions hold for a caller. Pure; the order of verdicts is `judge`'s.
//!
//! The empty cases are Istio's and are not uniform: no rules never match, no clauses and no matches always do, and a match without
//! any condition never does.

use std::borrow::Cow;
use std::net::IpAddr;

use super::{AddressBlock, Clause, Facts, Match, Policy, Rule, ServiceAccountMatch, StringMatch};
use crate::{Identity, TrustDomain, TrustDomains};

/// The facts of one connection in the form in which conditions ask for them.
pub(super) struct Subject<'a> {
    source: Option<&'a Identity>,
    /// Every spelling of the caller's identity without `spiffe://`: its own, then one per alias of its trust domain.
    principals: Vec<String>,
    client: IpAddr,
    destination: IpAddr,
    port: u16,
}

impl<'a> Subject<'a> {
    /// Takes the facts; `domains` are the trust domains that mean the same mesh, if that is configured.
    pub(super) fn new(facts: &'a Facts, domains: Option<&TrustDomains>) -> Self {
        let source = facts.source.as_ref();
        Self {
            source,
            principals: source.map(|identity| spellings(identity, domains)).unwrap_or_default(),
            client: facts.client.ip(),
            destination: facts.destination.ip(),
            port: facts.destination.port(),
        }
    }

    /// Whether the policy matches: any of its rules does.
    pub(super) fn matches(&self, policy: &Policy) -> bool {
        policy.rules.iter().any(|rule| self.rule(rule))
    }

    fn rule(&self, Rule { clauses }: &Rule) -> bool {
        clauses.iter().all(|clause| self.clause(clause))
    }

    fn clause(&self, Clause { matches }: &Clause) -> bool {
        matches.is_empty() || matches.iter().any(|conditions| self.conditions(conditions))
    }

    fn conditions(&self, conditions: &Match) -> bool {
        // Taken apart, so that a new kind of condition cannot be forgotten here.
        let Match {
            namespaces,
            not_namespaces,
            principals,
            not_principals,
            service_accounts,
            not_service_accounts,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
        } = conditions;
        !conditions.is_empty()
            && kind(namespaces, not_namespaces, |text| self.namespace_is(text))
            && kind(principals, not_principals, |text| self.principal_is(text))
            && kind(service_accounts, not_service_accounts, |account| self.service_account_is(account))
            && kind(source_ips, not_source_ips, |block| contains(block, self.client))
            && kind(destination_ips, not_destination_ips, |block| contains(block, self.destination))
            && kind(destination_ports, not_destination_ports, |port| *port == self.port)
    }

    // A caller without identity has no namespace, principal or service account: nothing positive holds of it.

    fn namespace_is(&self, text: &StringMatch) -> bool {
        self.source.is_some_and(|identity| text.matches(identity.namespace()))
    }

    fn principal_is(&self, text: &StringMatch) -> bool {
        self.principals.iter().any(|principal| text.matches(principal))
    }

    fn service_account_is(&self, account: &ServiceAccountMatch) -> bool {
        self.source.is_some_and(|identity| {
            identity.namespace() == account.namespace && identity.service_account() == account.service_account
        })
    }
}

/// One kind of condition: any of `wanted` if there are any, and none of `unwanted`.
fn kind<T>(wanted: &[T], unwanted: &[T], holds: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&holds)) && !unwanted.iter().any(&holds)
}

/// Facts carry canonical addresses; a block written as IPv4-mapped means the IPv4 block.
fn contains(block: &AddressBlock, ip: IpAddr) -> bool {
    super::block::canonical(Cow::Borrowed(block)).contains(ip)
}

fn spellings(identity: &Identity, domains: Option<&TrustDomains>) -> Vec<String> {
    let mut all = vec![identity.principal()];
    if let Some(domains) = domains.filter(|domains| domains.accepts(identity.trust_domain())) {
        let others = domains.all().filter(|domain| *domain != identity.trust_domain());
        all.extend(others.map(|domain| principal_in(identity, domain)));
    }
    all
}

fn principal_in(identity: &Identity, domain: &TrustDomain) -> String {
    format!("{domain}/ns/{}/sa/{}", identity.namespace(), identity.service_account())
}

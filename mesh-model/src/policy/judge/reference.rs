//! The same verdict written a second time, as naively as possible, to hold [`super::judge`] against.
//!
//! It shares no code with it: no indexes (all policies are looked through), no iterator short cuts, addresses compared bit by bit,
//! aliases handled by asking once per spelling of the caller. It is to be read beside the semantics in the doc comments of the policy types.

use std::net::IpAddr;

use super::Facts;
use crate::policy::{Action, AddressBlock, Match, Policy, PolicyKey, Scope, StringMatch};
use crate::{TrustDomain, TrustDomains, Workload};

/// What the reference says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Missing(PolicyKey),
    Invalid(PolicyKey),
    Denied(PolicyKey),
    Allowed(Option<PolicyKey>),
}

pub(super) fn answer(all: &[Policy], domains: Option<&TrustDomains>, workload: &Workload, facts: &Facts) -> Answer {
    for key in &workload.policies {
        if !all.iter().any(|policy| policy.key == *key) {
            return Answer::Missing(key.clone());
        }
    }
    let mut applying: Vec<&Policy> = Vec::new();
    for policy in all {
        let applies = match policy.scope {
            Scope::Global => true,
            Scope::Namespace => policy.key.namespace == workload.pod.namespace,
            Scope::Selector => false,
        };
        if (applies || workload.policies.contains(&policy.key)) && !policy.dry_run {
            applying.push(policy);
        }
    }
    applying.sort_by_key(|policy| policy.key.to_string());
    for policy in &applying {
        if policy.invalid {
            return Answer::Invalid(policy.key.clone());
        }
    }
    for policy in &applying {
        if policy.action == Action::Deny && matches(policy, domains, facts) {
            return Answer::Denied(policy.key.clone());
        }
    }
    let mut first_allow = None;
    for policy in &applying {
        if policy.action == Action::Allow {
            if matches(policy, domains, facts) {
                return Answer::Allowed(Some(policy.key.clone()));
            }
            if first_allow.is_none() {
                first_allow = Some(policy.key.clone());
            }
        }
    }
    match first_allow {
        Some(key) => Answer::Denied(key),
        None => Answer::Allowed(None),
    }
}

fn matches(policy: &Policy, domains: Option<&TrustDomains>, facts: &Facts) -> bool {
    let mut any_rule = false;
    for rule in &policy.rules {
        let mut every_clause = true;
        for clause in &rule.clauses {
            let mut any_match = clause.matches.is_empty();
            for one in &clause.matches {
                if holds(one, domains, facts) {
                    any_match = true;
                }
            }
            if !any_match {
                every_clause = false;
            }
        }
        if every_clause {
            any_rule = true;
        }
    }
    any_rule
}

fn holds(one: &Match, domains: Option<&TrustDomains>, facts: &Facts) -> bool {
    // (is there such a condition, does it hold) per list.
    let mut conditions: Vec<bool> = Vec::new();
    if !one.namespaces.is_empty() {
        conditions.push(one.namespaces.iter().any(|text| namespace(text, facts)));
    }
    if !one.not_namespaces.is_empty() {
        conditions.push(one.not_namespaces.iter().all(|text| !namespace(text, facts)));
    }
    if !one.principals.is_empty() {
        conditions.push(one.principals.iter().any(|text| principal(text, domains, facts)));
    }
    if !one.not_principals.is_empty() {
        conditions.push(one.not_principals.iter().all(|text| !principal(text, domains, facts)));
    }
    let account = |namespace: &str, account: &str| {
        let uri = facts.source.as_ref().map(ToString::to_string).unwrap_or_default();
        uri.ends_with(&format!("/ns/{namespace}/sa/{account}"))
    };
    if !one.service_accounts.is_empty() {
        conditions.push(one.service_accounts.iter().any(|a| account(&a.namespace, &a.service_account)));
    }
    if !one.not_service_accounts.is_empty() {
        conditions.push(one.not_service_accounts.iter().all(|a| !account(&a.namespace, &a.service_account)));
    }
    if !one.source_ips.is_empty() {
        conditions.push(one.source_ips.iter().any(|block| inside(block, facts.client.ip())));
    }
    if !one.not_source_ips.is_empty() {
        conditions.push(one.not_source_ips.iter().all(|block| !inside(block, facts.client.ip())));
    }
    if !one.destination_ips.is_empty() {
        conditions.push(one.destination_ips.iter().any(|block| inside(block, facts.destination.ip())));
    }
    if !one.not_destination_ips.is_empty() {
        conditions.push(one.not_destination_ips.iter().all(|block| !inside(block, facts.destination.ip())));
    }
    if !one.destination_ports.is_empty() {
        conditions.push(one.destination_ports.contains(&facts.destination.port()));
    }
    if !one.not_destination_ports.is_empty() {
        conditions.push(!one.not_destination_ports.contains(&facts.destination.port()));
    }
    !conditions.is_empty() && !conditions.contains(&false)
}

fn namespace(text: &StringMatch, facts: &Facts) -> bool {
    match &facts.source {
        Some(identity) => like(text, identity.namespace()),
        None => false,
    }
}

fn principal(text: &StringMatch, domains: Option<&TrustDomains>, facts: &Facts) -> bool {
    let Some(identity) = &facts.source else { return false };
    let mut spellings: Vec<TrustDomain> = vec![identity.trust_domain().clone()];
    if let Some(domains) = domains
        && domains.accepts(identity.trust_domain())
    {
        spellings.extend(domains.all().cloned());
    }
    spellings
        .iter()
        .any(|domain| like(text, &format!("{domain}/ns/{}/sa/{}", identity.namespace(), identity.service_account())))
}

fn like(text: &StringMatch, value: &str) -> bool {
    let value = value.as_bytes();
    match text {
        StringMatch::Exact(exact) => value == exact.as_bytes(),
        StringMatch::Prefix(prefix) => value.len() >= prefix.len() && &value[..prefix.len()] == prefix.as_bytes(),
        StringMatch::Suffix(suffix) => {
            value.len() >= suffix.len() && &value[value.len() - suffix.len()..] == suffix.as_bytes()
        }
        StringMatch::Presence => !value.is_empty(),
    }
}

/// Bit by bit, in the 128-bit space in which IPv4 lies as `::ffff:a.b.c.d`, as far as the two are of one family.
fn inside(block: &AddressBlock, ip: IpAddr) -> bool {
    let wide = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let length = match block.ip() {
        IpAddr::V4(_) => usize::from(block.prefix()) + 96,
        IpAddr::V6(_) => usize::from(block.prefix()),
    };
    // A v6 block that is wider than the mapped range is about v6 addresses only.
    if ip.to_canonical().is_ipv4() && length < 96 {
        return false;
    }
    (0..length).all(|bit| {
        let mask = 1u128 << (127 - bit);
        wide(block.ip()) & mask == wide(ip) & mask
    })
}

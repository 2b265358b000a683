//! Policies: wire → model.
//!
//! A condition that this build does not know must not be dropped: an ALLOW without one of its conditions allows more. So anything
//! unknown makes the whole policy unusable, and [`refusing_policy`] makes of it one that refuses.

use mesh_model::policy::{
    Action, AddressBlock, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
    address_block,
};
use prost::Message;

use super::field::{BadField, clip, ip, known, port};
use super::{POLICY_EXTENSION, culvert, security as wire};

/// A policy cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy {key:?} cannot be understood")]
pub struct BadPolicy {
    /// `namespace/name`.
    pub key: String,
    /// Why.
    #[source]
    pub problem: BadField,
}

impl TryFrom<wire::Authorization> for Policy {
    type Error = BadPolicy;

    fn try_from(message: wire::Authorization) -> Result<Self, BadPolicy> {
        let key = clip(&format!("{}/{}", message.namespace, message.name));
        policy(message).map_err(|problem| BadPolicy { key, problem })
    }
}

fn policy(message: wire::Authorization) -> Result<Policy, BadField> {
    let wire::Authorization { name, namespace, scope, action, rules, dry_run, extensions } = message;
    let text = format!("{namespace}/{name}");
    let key: PolicyKey = text.parse().map_err(|_| BadField::Key { field: "namespace and name", text: clip(&text) })?;
    let scope = scope_of(scope)?;
    if invalid_by_source(&extensions)? {
        return Ok(Policy { dry_run, ..Policy::invalid(key, scope) });
    }
    Ok(Policy {
        key,
        scope,
        action: match known("action", action)? {
            wire::Action::Allow => Action::Allow,
            wire::Action::Deny => Action::Deny,
        },
        rules: rules.into_iter().map(rule).collect::<Result<_, _>>()?,
        dry_run,
        invalid: false,
    })
}

fn scope_of(scope: i32) -> Result<Scope, BadField> {
    Ok(match known("scope", scope)? {
        wire::Scope::Global => Scope::Global,
        wire::Scope::Namespace => Scope::Namespace,
        wire::Scope::WorkloadSelector => Scope::Selector,
    })
}

fn invalid_by_source(extensions: &[wire::Extension]) -> Result<bool, BadField> {
    match extensions {
        [] => Ok(false),
        [wire::Extension { name, config }] if name == POLICY_EXTENSION => {
            let body = config.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
            // Our mark stands on nothing but policies that refuse; one that cannot be read says no less.
            Ok(culvert::Policy::decode(body).map_or(true, |mark| mark.invalid))
        }
        _ => Err(BadField::Unsupported("an extension of a policy")),
    }
}

fn rule(message: wire::Rule) -> Result<Rule, BadField> {
    let clauses = message.clauses.into_iter().map(|clause| {
        let matches = clause.matches.into_iter().map(conditions).collect::<Result<_, _>>()?;
        Ok(Clause { matches })
    });
    Ok(Rule { clauses: clauses.collect::<Result<_, BadField>>()? })
}

fn conditions(message: wire::Match) -> Result<Match, BadField> {
    let wire::Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        service_accounts,
        not_service_accounts,
        extensions,
    } = message;
    if !extensions.is_empty() {
        return Err(BadField::Unsupported("an extension of a match"));
    }
    Ok(Match {
        namespaces: each(namespaces, |text| string("namespaces", text))?,
        not_namespaces: each(not_namespaces, |text| string("not_namespaces", text))?,
        principals: each(principals, |text| string("principals", text))?,
        not_principals: each(not_principals, |text| string("not_principals", text))?,
        service_accounts: each(service_accounts, service_account)?,
        not_service_accounts: each(not_service_accounts, service_account)?,
        source_ips: each(source_ips, |address| block("source_ips", address))?,
        not_source_ips: each(not_source_ips, |address| block("not_source_ips", address))?,
        destination_ips: each(destination_ips, |address| block("destination_ips", address))?,
        not_destination_ips: each(not_destination_ips, |address| block("not_destination_ips", address))?,
        destination_ports: each(destination_ports, |value| port("destination_ports", value))?,
        not_destination_ports: each(not_destination_ports, |value| port("not_destination_ports", value))?,
    })
}

fn each<W, M>(all: Vec<W>, convert: impl Fn(W) -> Result<M, BadField>) -> Result<Vec<M>, BadField> {
    all.into_iter().map(convert).collect()
}

fn string(field: &'static str, message: wire::StringMatch) -> Result<StringMatch, BadField> {
    use wire::string_match::MatchType;
    Ok(match message.match_type.ok_or(BadField::Missing(field))? {
        MatchType::Exact(text) => StringMatch::Exact(text),
        MatchType::Prefix(text) => StringMatch::Prefix(text),
        MatchType::Suffix(text) => StringMatch::Suffix(text),
        MatchType::Presence(()) => StringMatch::Presence,
    })
}

fn service_account(message: wire::ServiceAccountMatch) -> Result<ServiceAccountMatch, BadField> {
    let wire::ServiceAccountMatch { namespace, service_account } = message;
    if namespace.is_empty() || service_account.is_empty() {
        return Err(BadField::Missing("service_accounts"));
    }
    Ok(ServiceAccountMatch { namespace, service_account })
}

fn block(field: &'static str, message: wire::Address) -> Result<AddressBlock, BadField> {
    let wire::Address { address, length } = message;
    // The length counts bits of the address as it was sent, so an IPv4-mapped one is made canonical with its length.
    let sent = match <[u8; 16]>::try_from(address.as_slice()) {
        Ok(v6) => v6.into(),
        Err(_) => ip(field, &address)?,
    };
    address_block(sent, length).map_err(|_| BadField::Address { field, length: address.len() })
}

/// The policy that stands for a resource that could not be understood: it refuses. It is keyed by the resource's name; whom it
/// applies to is read from the resource if that much can be, else taken from the policy `known` under this name before, else it is
/// everyone (nothing that cannot be read may become "allow"). A broken dry-run policy is still only a dry run.
pub fn refusing_policy(name: &str, body: &[u8], known: Option<&Policy>) -> Policy {
    let message = wire::Authorization::decode(body).ok();
    let scope = message
        .as_ref()
        .and_then(|message| scope_of(message.scope).ok())
        .or(known.map(|policy| policy.scope))
        .unwrap_or(Scope::Global);
    // A name that is not a key still needs a place of its own, so that its removal finds it.
    let key = name.parse().unwrap_or_else(|_| PolicyKey { namespace: String::new(), name: name.to_owned() });
    Policy { dry_run: message.is_some_and(|message| message.dry_run), ..Policy::invalid(key, scope) }
}

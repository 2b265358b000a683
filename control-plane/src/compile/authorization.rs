//! AuthorizationPolicy → policies that an L4 proxy can judge (Istio's conversion, ambient-protocols section 4.5, but for the
//! differences named here).
//!
//! What needs HTTP to be judged narrows: an ALLOW rule that asks for it is dropped, a DENY rule is kept without it. Where that leaves
//! a DENY rule with an operation or source that asks for nothing, it matches everything; Istio's ztunnel lets such a rule match
//! nothing, which is wider than what was written. A policy for a service is applied at its pods, one for a gateway has nothing to
//! apply to here, and CUSTOM, which asks a party that is not there, refuses.
//!
//! Who reaches a pod is decided by policies of its own namespace and of the root namespace alone. Whoever may write a slice may put any
//! pod behind a service of his: a policy that followed the service there could open the pod to everybody, or shut it.

use std::collections::HashMap;

use mesh_api::manifests::security::{
    Action as Asked, AuthorizationSpec, Condition, Operation, Rule as Written, Source, TargetRef, WorkloadSelector,
};
use mesh_api::manifests::{AuthorizationPolicy, Key, Kind};
use mesh_model::WorkloadUid;
use mesh_model::policy::{
    Action, AddressBlock, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
    parse_address_block,
};

use super::CompileConfig;
use super::endpoints::Lent;
use super::fate::{Fate, Findings, Outcome, Reach, places};
use super::place::Place;
use super::selector::has_all;
use super::services::service_key;
use super::workloads::{self, Compiling, Pods};

/// The namespace's policies; those with a selector are listed at the workloads that they select, and so are those of the root namespace.
/// What becomes of each is told.
pub(super) fn policies(place: &Place<'_>, pods: &mut Pods, lent: &Lent, findings: &mut Findings) -> Vec<Policy> {
    let objects = &place.objects.authorization_policies;
    findings.all = enforcing(pods).fold(Reach::default(), |mut reach, pod| {
        reach.add(pod);
        reach
    });
    let labelled = Labelled::of(pods);
    let mut policies = Vec::new();
    for (key, object) in place.own(objects) {
        let mut fate = Fate::new(Kind::AuthorizationPolicy, key, object.dry_run());
        if let Some(why) = &object.standing.unread {
            fate.note(Outcome::LastGoodKept, why);
        }
        if is_audit(object) {
            fate.note(Outcome::NoEffect, "action AUDIT is not carried out");
        } else if let Some(scope) = attach(place, key, object, pods, &labelled, findings.all, &mut fate) {
            note_lent(place, object, pods, lent, &mut fate);
            policies.push(policy(object, key, scope, place.config, &mut fate));
        }
        findings.conclude(place, fate, means(object));
    }
    for (key, object) in place.of_root(objects).filter(|(_, object)| !is_audit(object)) {
        let mut fate = Fate::new(Kind::AuthorizationPolicy, key, object.dry_run());
        attach(place, key, object, pods, &labelled, findings.all, &mut fate);
        findings.reached(fate);
    }
    policies
}

/// Which pods have a label: a namespace may have many policies, each for a few of its pods.
struct Labelled(HashMap<(String, String), Vec<WorkloadUid>>);

impl Labelled {
    fn of(pods: &mut Pods) -> Self {
        let mut all: HashMap<(String, String), Vec<WorkloadUid>> = HashMap::new();
        for pod in enforcing(pods) {
            for (name, value) in &pod.labels {
                all.entry((name.clone(), value.clone())).or_default().push(pod.workload.uid.clone());
            }
        }
        Self(all)
    }

    /// Those that may be selected: all that have one of the labels that are asked for.
    fn candidates(&self, selector: &WorkloadSelector) -> &[WorkloadUid] {
        let (name, value) = selector.match_labels.iter().next().unzip();
        let label = name.cloned().zip(value.cloned());
        label.and_then(|label| self.0.get(&label)).map_or(&[], Vec::as_slice)
    }
}

/// Listed nowhere: a policy that is listed and not there refuses.
fn is_audit(object: &AuthorizationPolicy) -> bool {
    object.spec.as_ref().is_ok_and(|spec| spec.action == Asked::Audit)
}

fn targets(object: &AuthorizationPolicy) -> impl Iterator<Item = &TargetRef> {
    object.spec.iter().flat_map(|spec| spec.target_ref.iter().chain(&spec.target_refs))
}

/// The policy as it is judged; one that refuses where it cannot be understood or carried out.
fn policy(object: &AuthorizationPolicy, key: &Key, scope: Scope, config: &CompileConfig, fate: &mut Fate) -> Policy {
    let (dry_run, of) = (object.dry_run(), PolicyKey { namespace: key.0.clone(), name: key.1.clone() });
    let converted = match &object.spec {
        Ok(spec) => convert(spec, key, config, fate),
        Err(invalid) => Err((Outcome::NotUnderstood, invalid.why.clone())),
    };
    match converted {
        Ok((action, rules)) => Policy { key: of, scope, action, rules, dry_run, invalid: false },
        Err((outcome, why)) => {
            fate.note(outcome, why);
            Policy { dry_run, ..Policy::invalid(of, scope) }
        }
    }
}

/// What the policy does, in words.
fn means(object: &AuthorizationPolicy) -> String {
    let Ok(spec) = &object.spec else { return String::new() };
    let rules = match spec.rules.len() {
        1 => "1 rule".to_owned(),
        count => format!("{count} rules"),
    };
    match (spec.action, spec.rules.len()) {
        (Asked::Allow, 0) => "ALLOW without rules: refuses whatever no other policy allows".to_owned(),
        (Asked::Allow, _) => format!("ALLOW with {rules}: refuses whatever neither it nor another policy allows"),
        (Asked::Deny, 0) => "DENY without rules: refuses nothing".to_owned(),
        (Asked::Deny, _) => format!("DENY with {rules}"),
        (Asked::Audit | Asked::Custom, _) => String::new(),
    }
}

/// Lists the policy at those of the pods that it selects. `None`: it applies to nothing of this mesh.
fn attach(
    place: &Place<'_>,
    key: &Key,
    object: &AuthorizationPolicy,
    pods: &mut Pods,
    labelled: &Labelled,
    all: Reach,
    fate: &mut Fate,
) -> Option<Scope> {
    let policy = PolicyKey { namespace: key.0.clone(), name: key.1.clone() };
    let list = |pod: &mut Compiling, fate: &mut Fate| {
        // Two services may have the same pods behind them.
        if pod.workload.policies.last() != Some(&policy) {
            pod.workload.policies.push(policy.clone());
            fate.reach.add(pod);
        }
    };
    if targets(object).next().is_some() {
        let (services, others): (Vec<_>, Vec<_>) = targets(object).partition(|target| is_service(target, &key.0));
        for target in &services {
            behind(place, &(key.0.clone(), target.name.clone()), pods).for_each(|pod| list(pod, fate));
        }
        let outcome = if services.is_empty() { Outcome::NoEffect } else { Outcome::ServicesOnly };
        for TargetRef { kind, name, namespace, .. } in others {
            let of = namespace.as_deref().map(|namespace| format!(" of namespace {namespace}")).unwrap_or_default();
            let text =
                format!("no effect on {kind} {name}{of}: only Services of the policy's own namespace are targets here");
            fate.note(outcome, text);
        }
        return (!services.is_empty()).then_some(Scope::Selector);
    }
    match object.selector() {
        None => {
            let root = key.0 == place.config.root_namespace;
            (fate.reach, fate.everywhere) = (all, root);
            Some(if root { Scope::Global } else { Scope::Namespace })
        }
        Some(selector) => {
            for uid in labelled.candidates(selector) {
                if let Some(pod) = pods.get_mut(uid).filter(|pod| selector.selects(Some(&pod.labels))) {
                    list(pod, fate);
                }
            }
            Some(Scope::Selector)
        }
    }
}

/// Whether a target is a Service of the namespace; an empty namespace means the policy's own.
fn is_service(target: &TargetRef, namespace: &str) -> bool {
    let named = target.namespace.as_deref().filter(|named| !named.is_empty());
    target.group.is_empty() && target.kind == "Service" && named.is_none_or(|named| named == namespace)
}

/// The pods here that are behind a service of this namespace or of the root namespace: its endpoints, ready or not, and those that it
/// selects and that are none yet.
fn behind<'p>(place: &Place<'_>, service: &Key, pods: &'p mut Pods) -> impl Iterator<Item = &'p mut Compiling> {
    let key = service_key(service, place.config);
    let spec = place.objects.services.get(service).and_then(|service| service.spec.as_ref());
    let selector = spec.and_then(|spec| spec.selector.as_ref()).filter(|selector| !selector.is_empty());
    let selector = selector.filter(|_| service.0 == place.namespace).cloned();
    enforcing(pods).filter(move |pod| {
        let selected = selector.as_ref().is_some_and(|selector| has_all(selector, &pod.labels));
        selected || pod.behind.contains(&key)
    })
}

/// Tells where pods of other namespaces are behind the services that a policy is for. One of the root namespace is listed at them, and
/// counted there.
fn note_lent(place: &Place<'_>, object: &AuthorizationPolicy, pods: &Pods, lent: &Lent, fate: &mut Fate) {
    if place.is_root() {
        return;
    }
    for target in targets(object).filter(|target| is_service(target, place.namespace)) {
        let service = service_key(&(place.namespace.to_owned(), target.name.clone()), place.config);
        let mut behind = lent.iter().filter(|(_, behind)| behind.contains(&service));
        if behind.any(|(pod, _)| workloads::find(place, pods, pod).is_some_and(|pod| is_enforcing(&pod))) {
            let text = format!(
                "no effect on pods of other namespaces behind Service {}: who reaches a pod is decided by policies of its own \
                 namespace and of {}",
                target.name, place.config.root_namespace
            );
            fate.note(Outcome::OwnPodsOnly, text);
        }
    }
}

/// The workloads at which a policy can be enforced: pods with a network of their own (in the mesh or not yet).
pub(super) fn enforcing(pods: &mut Pods) -> impl Iterator<Item = &mut Compiling> {
    pods.values_mut().filter(|pod| is_enforcing(pod))
}

fn is_enforcing(pod: &Compiling) -> bool {
    pod.workload.uid.is_pod() && !pod.workload.host_network
}

fn convert(
    spec: &AuthorizationSpec,
    key: &Key,
    config: &CompileConfig,
    fate: &mut Fate,
) -> Result<(Action, Vec<Rule>), (Outcome, String)> {
    let action = match spec.action {
        Asked::Allow => Action::Allow,
        Asked::Deny => Action::Deny,
        // AUDIT was passed over before.
        Asked::Audit | Asked::Custom => {
            let why = "action CUSTOM asks an outside party, and there is none".to_owned();
            return Err((Outcome::NotSupported, why));
        }
    };
    let (mut rules, mut narrowed) = (Vec::new(), Vec::new());
    for (index, written) in spec.rules.iter().enumerate() {
        let (rule, needs_http) = rule(written, &key.0, config)
            .map_err(|why| (Outcome::NotUnderstood, format!("spec.rules[{index}]: {why}")))?;
        if needs_http {
            narrowed.push(index);
        }
        if !needs_http || action == Action::Deny {
            rules.push(rule);
        }
    }
    if !narrowed.is_empty() {
        let places = places("spec.rules", &narrowed);
        let happens = match action {
            Action::Allow => "HTTP conditions, which are not judged yet: left out, so it allows nothing",
            Action::Deny => {
                "HTTP conditions, which are not judged yet: applied without them, so it refuses more than written"
            }
        };
        fate.note(Outcome::StricterThanWritten, format!("{places}: {happens}"));
    }
    Ok((action, rules))
}

/// The part of a rule that is known without HTTP, and whether that is not all of it.
fn rule(written: &Written, namespace: &str, config: &CompileConfig) -> Result<(Rule, bool), String> {
    let Written { from, to, when } = written;
    let mut needs_http = false;
    let mut clauses = Vec::new();
    let mut clause = |parts: Vec<(Match, bool)>| {
        needs_http |= parts.iter().any(|(_, http)| *http);
        // An alternative with nothing left of it holds always, and so do all of them together.
        let always = parts.iter().any(|(part, _)| *part == Match::default());
        if !parts.is_empty() && !always {
            clauses.push(Clause { matches: parts.into_iter().map(|(part, _)| part).collect() });
        }
    };
    clause(from.iter().map(|from| source(&from.source, namespace, config)).collect::<Result<_, _>>()?);
    clause(to.iter().map(|to| operation(&to.operation)).collect::<Result<_, _>>()?);
    for one in when {
        clause(vec![condition(one, config)?]);
    }
    Ok((Rule { clauses }, needs_http))
}

fn source(source: &Source, namespace: &str, config: &CompileConfig) -> Result<(Match, bool), String> {
    let Source {
        principals: with_principals,
        not_principals,
        request_principals,
        not_request_principals,
        namespaces,
        not_namespaces,
        service_accounts,
        not_service_accounts,
        ip_blocks,
        not_ip_blocks,
        remote_ip_blocks,
        not_remote_ip_blocks,
    } = source;
    let needs_http = [request_principals, not_request_principals, remote_ip_blocks, not_remote_ip_blocks]
        .iter()
        .any(|list| !list.is_empty());
    let part = Match {
        namespaces: strings(namespaces),
        not_namespaces: strings(not_namespaces),
        principals: principals(with_principals, config),
        not_principals: principals(not_principals, config),
        service_accounts: accounts(service_accounts, namespace),
        not_service_accounts: accounts(not_service_accounts, namespace),
        source_ips: blocks(ip_blocks)?,
        not_source_ips: blocks(not_ip_blocks)?,
        ..Match::default()
    };
    Ok((part, needs_http))
}

fn operation(operation: &Operation) -> Result<(Match, bool), String> {
    let Operation { hosts, not_hosts, ports: on, not_ports, methods, not_methods, paths, not_paths } = operation;
    let needs_http = [hosts, not_hosts, methods, not_methods, paths, not_paths].iter().any(|list| !list.is_empty());
    let part = Match { destination_ports: ports(on)?, not_destination_ports: ports(not_ports)?, ..Match::default() };
    Ok((part, needs_http))
}

fn condition(condition: &Condition, config: &CompileConfig) -> Result<(Match, bool), String> {
    let Condition { key, values, not_values } = condition;
    let mut part = Match::default();
    match key.as_str() {
        "source.ip" => (part.source_ips, part.not_source_ips) = (blocks(values)?, blocks(not_values)?),
        "source.namespace" => (part.namespaces, part.not_namespaces) = (strings(values), strings(not_values)),
        "source.principal" => {
            (part.principals, part.not_principals) = (principals(values, config), principals(not_values, config));
        }
        "destination.ip" => (part.destination_ips, part.not_destination_ips) = (blocks(values)?, blocks(not_values)?),
        "destination.port" => {
            (part.destination_ports, part.not_destination_ports) = (ports(values)?, ports(not_values)?);
        }
        _ => return Ok((part, true)),
    }
    Ok((part, false))
}

fn strings(texts: &[String]) -> Vec<StringMatch> {
    texts.iter().map(|text| string(text)).collect()
}

/// `*`, `*end`, `start*` or the text itself; as in Istio, a star at the start is looked for first.
fn string(text: &str) -> StringMatch {
    match text {
        "*" => StringMatch::Presence,
        _ => match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(end), _) => StringMatch::Suffix(end.to_owned()),
            (None, Some(start)) => StringMatch::Prefix(start.to_owned()),
            (None, None) => StringMatch::Exact(text.to_owned()),
        },
    }
}

/// Principals, in every trust domain that means the one named: else a DENY of somebody would not hold for their other name.
fn principals(texts: &[String], config: &CompileConfig) -> Vec<StringMatch> {
    let ours = || std::iter::once(&config.trust_domain).chain(&config.trust_domain_aliases);
    let mut all = Vec::new();
    for text in texts {
        let text = text.strip_prefix("spiffe://").unwrap_or(text);
        match text.split_once('/') {
            Some((domain, rest)) if ours().any(|one| one.as_str() == domain) => {
                all.extend(ours().map(|one| string(&format!("{one}/{rest}"))));
            }
            _ => all.push(string(text)),
        }
    }
    all
}

/// `account` (of the policy's namespace) or `namespace/account`.
fn accounts(texts: &[String], namespace: &str) -> Vec<ServiceAccountMatch> {
    let account = |text: &String| {
        let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
        ServiceAccountMatch { namespace: namespace.to_owned(), service_account: account.to_owned() }
    };
    texts.iter().map(account).collect()
}

// The manifests were checked when they were read; what is wrong all the same refuses.

fn blocks(texts: &[String]) -> Result<Vec<AddressBlock>, String> {
    let block = |text: &String| parse_address_block(text).map_err(|_| format!("{text:?} is not an address block"));
    texts.iter().map(block).collect()
}

fn ports(texts: &[String]) -> Result<Vec<u16>, String> {
    let port = |text: &String| match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port")),
    };
    texts.iter().map(port).collect()
}

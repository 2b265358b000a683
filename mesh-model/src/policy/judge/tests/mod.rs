//! The verdict: a table of promises, and everything else against the reference ([`properties`]).

mod properties;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::reference::{self, Answer};
use super::*;
use crate::policy::{
    AddressBlock, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch, address_block, parse_address_block,
};
use crate::{Health, NetworkPolicy, PodName, TrustDomain, TrustDomains, Tunnel, WorkloadUid};

// A small language, so that a case is one line. A policy: `[dry|invalid] allow|deny [in NS|global|listed] name: RULES`; rules are
// parted by `|`, clauses by `&`, matches by `or`, conditions by blanks; `any` is a rule without clauses, `all` a clause without
// matches, `none` a match without conditions.

fn policy(text: &str) -> Policy {
    let (head, rules) = text.split_once(':').expect("a policy of the table has a colon");
    let mut policy = Policy {
        key: PolicyKey { namespace: "shop".to_owned(), name: String::new() },
        scope: Scope::Namespace,
        action: Action::Allow,
        rules: Vec::new(),
        dry_run: false,
        invalid: false,
    };
    for word in head.split_whitespace() {
        match word {
            "dry" => policy.dry_run = true,
            "invalid" => policy.invalid = true,
            "allow" => policy.action = Action::Allow,
            "deny" => policy.action = Action::Deny,
            "global" => (policy.scope, policy.key.namespace) = (Scope::Global, "root".to_owned()),
            "elsewhere" => policy.key.namespace = "other".to_owned(),
            "listed" => policy.scope = Scope::Selector,
            name => policy.key.name = name.to_owned(),
        }
    }
    policy.rules = rules.split('|').map(str::trim).filter(|rule| !rule.is_empty()).map(rule).collect();
    policy
}

fn rule(text: &str) -> Rule {
    let clauses = text.split('&').map(str::trim).filter(|clause| *clause != "any");
    Rule { clauses: clauses.map(clause).collect() }
}

fn clause(text: &str) -> Clause {
    let matches = text.split(" or ").map(str::trim).filter(|one| *one != "all");
    Clause { matches: matches.map(conditions).collect() }
}

fn conditions(text: &str) -> Match {
    let mut all = Match::default();
    for word in text.split_whitespace().filter(|word| *word != "none") {
        let (name, value) = word.split_once('=').expect("a condition of the table is NAME=VALUE");
        let block = || parse_address_block(value).expect("the table's blocks are blocks");
        let port = || value.parse().expect("the table's ports are ports");
        let account = || {
            let (namespace, service_account) = value.split_once('/').expect("the table's accounts are NS/SA");
            ServiceAccountMatch { namespace: namespace.to_owned(), service_account: service_account.to_owned() }
        };
        match name {
            "ns" => all.namespaces.push(StringMatch::parse(value)),
            "!ns" => all.not_namespaces.push(StringMatch::parse(value)),
            "id" => all.principals.push(StringMatch::parse(value)),
            "!id" => all.not_principals.push(StringMatch::parse(value)),
            "sa" => all.service_accounts.push(account()),
            "!sa" => all.not_service_accounts.push(account()),
            "src" => all.source_ips.push(block()),
            "!src" => all.not_source_ips.push(block()),
            "dst" => all.destination_ips.push(block()),
            "!dst" => all.not_destination_ips.push(block()),
            "port" => all.destination_ports.push(port()),
            "!port" => all.not_destination_ports.push(port()),
            other => panic!("the table knows no condition {other}"),
        }
    }
    all
}

const TABLE_TRUST: &str = "cluster.local";

/// `from a/x` (namespace a, account x), `from td:a/x`, or `plain`; then optionally `at SOURCE-IP` and `to IP PORT`.
fn facts(text: &str) -> Facts {
    let words: Vec<&str> = text.split_whitespace().collect();
    let after = |word: &str, n: usize| words.iter().position(|w| *w == word).and_then(|at| words.get(at + n)).copied();
    let source = after("from", 1).map(|who| {
        let (domain, who) = who.split_once(':').unwrap_or((TABLE_TRUST, who));
        let (namespace, account) = who.split_once('/').expect("the table's callers are NS/SA");
        let domain = TrustDomain::parse(domain).expect("the table's trust domains are well formed");
        Identity::new(domain, namespace, account).expect("the table's callers are well formed")
    });
    let ip = |text: &str| text.parse::<IpAddr>().expect("the table's addresses are addresses");
    Facts {
        source,
        client: ClientAddr::new(SocketAddr::new(ip(after("at", 1).unwrap_or("198.18.1.7")), 40000)),
        destination: OrigDst::new(SocketAddr::new(
            ip(after("to", 1).unwrap_or("198.18.2.9")),
            after("to", 2).unwrap_or("80").parse().expect("the table's ports are ports"),
        )),
    }
}

fn workload(policies: Vec<PolicyKey>) -> Workload {
    let pod = PodName { namespace: "shop".to_owned(), name: "cart".to_owned() };
    Workload {
        uid: WorkloadUid::of_pod("Kubernetes", &pod),
        pod,
        pod_uid: None,
        service_account: "cart".to_owned(),
        trust_domain: TrustDomain::parse(TABLE_TRUST).expect("a trust domain"),
        addresses: vec![],
        node: "node-1".to_owned(),
        tunnel: Tunnel::Hbone,
        policies,
        health: Health::Healthy,
        services: BTreeMap::new(),
        network_policy: NetworkPolicy::Selected,
        host_network: false,
        needs_waypoint: false,
        telemetry: Default::default(),
    }
}

fn mesh_of(policies: &[Policy], domains: Option<&TrustDomains>) -> Mesh {
    let mut mesh = Mesh::default();
    for policy in policies {
        mesh.apply_policy(policy.clone());
    }
    if let Some(domains) = domains {
        mesh.set_trust_domains(domains.clone());
    }
    mesh
}

fn domains() -> TrustDomains {
    let parse = |text| TrustDomain::parse(text).expect("a trust domain");
    TrustDomains::new(parse(TABLE_TRUST), vec![parse("old.local")])
}

/// `allowed`, `allowed by NAME`, `denied by NAME`, `missing NAME`, `invalid NAME`.
fn verdict(policies: &[&str], connection: &str) -> String {
    let policies: Vec<Policy> = policies.iter().copied().map(policy).collect();
    let listed = policies.iter().filter(|policy| policy.scope == Scope::Selector).map(|policy| policy.key.clone());
    let workload = workload(listed.collect());
    let mesh = mesh_of(&policies, Some(&domains()));
    let facts = facts(connection);
    match judge(&mesh, Some(&workload), facts.clone()) {
        Ok(permit) => {
            assert_eq!(permit.facts(), &facts);
            permit.policy().map_or("allowed".to_owned(), |key| format!("allowed by {}", key.name))
        }
        Err(Denied::ByPolicy(key)) => format!("denied by {}", key.name),
        Err(Denied::PolicyMissing(key)) => format!("missing {}", key.name),
        Err(Denied::PolicyInvalid(key)) => format!("invalid {}", key.name),
        Err(Denied::WorkloadUnknown) => "unknown".to_owned(),
        Err(Denied::Outdated) => "outdated".to_owned(),
    }
}

fn check(policies: &[&str], connection: &str, expected: &str) {
    assert_eq!(verdict(policies, connection), expected, "policies {policies:#?}, connection {connection:?}");
}

#[test]
fn without_policies_everything_is_allowed() {
    check(&[], "plain", "allowed");
    check(&[], "from a/x", "allowed");
}

#[test]
fn a_workload_that_is_not_known_is_refused() {
    let denied = judge(&Mesh::default(), None, facts("from a/x"));
    assert_eq!(denied, Err(Denied::WorkloadUnknown));
    assert_eq!(denied.map_err(|denied| denied.reason()), Err(Reason::PolicyUnknown));
}

#[test]
fn deny_wins_over_allow() {
    check(&["allow p: ns=a", "deny q: sa=a/x"], "from a/x", "denied by q");
    check(&["allow p: ns=a", "deny q: sa=a/x"], "from a/y", "allowed by p");
}

#[test]
fn an_allow_policy_that_does_not_match_refuses_and_is_named_by_key_order() {
    check(&["allow z: ns=a", "allow b: ns=c"], "from d/x", "denied by b");
    check(&["allow z: ns=a", "allow b: ns=c"], "from a/x", "allowed by z");
}

#[test]
fn the_empty_cases_are_istios() {
    check(&["allow nobody:"], "from a/x", "denied by nobody");
    check(&["deny nothing:"], "from a/x", "allowed");
    check(&["allow everybody: any"], "plain", "allowed by everybody");
    check(&["deny everybody: any"], "from a/x", "denied by everybody");
    check(&["allow p: all"], "plain", "allowed by p");
    check(&["deny p: none"], "from a/x", "allowed");
    check(&["allow p: none"], "from a/x", "denied by p");
    check(&["allow p: ns=a & all"], "from a/x", "allowed by p");
    check(&["allow p: ns=a & none"], "from a/x", "denied by p");
}

#[test]
fn rules_are_alternatives_clauses_all_hold_matches_are_alternatives_and_kinds_all_hold() {
    check(&["allow p: ns=a | ns=b"], "from b/x", "allowed by p");
    check(&["allow p: ns=a & port=80"], "from a/x to 198.18.2.9 80", "allowed by p");
    check(&["allow p: ns=a & port=80"], "from a/x to 198.18.2.9 81", "denied by p");
    check(&["allow p: ns=a or port=81"], "from c/x to 198.18.2.9 81", "allowed by p");
    check(&["allow p: ns=a port=80"], "from a/x to 198.18.2.9 81", "denied by p");
    check(&["allow p: ns=a ns=b port=80 port=81"], "from b/x to 198.18.2.9 81", "allowed by p");
}

#[test]
fn a_caller_without_identity_fails_everything_positive_and_passes_everything_negative() {
    for positive in ["ns=*", "id=*", "sa=a/x"] {
        check(&[&format!("allow p: {positive}")], "plain", "denied by p");
        check(&[&format!("deny p: {positive}")], "plain", "allowed");
    }
    for negative in ["!ns=*", "!id=*", "!sa=a/x"] {
        check(&[&format!("allow p: {negative}")], "plain", "allowed by p");
        check(&[&format!("deny p: {negative}")], "plain", "denied by p");
    }
}

#[test]
fn the_static_strict_policy_refuses_plaintext_and_nothing_else() {
    check(&["deny listed strict: !id=*"], "plain", "denied by strict");
    check(&["deny listed strict: !id=*"], "from a/x", "allowed");
}

#[test]
fn port_level_exceptions_are_two_clauses() {
    let strict_but_for_9090 = "deny listed p: !id=* & !port=9090";
    check(&[strict_but_for_9090], "plain to 198.18.2.9 80", "denied by p");
    check(&[strict_but_for_9090], "plain to 198.18.2.9 9090", "allowed");
    check(&[strict_but_for_9090], "from a/x to 198.18.2.9 80", "allowed");
}

#[test]
fn principals_are_compared_without_the_scheme_and_byte_for_byte() {
    check(&["allow p: id=cluster.local/ns/a/sa/x"], "from a/x", "allowed by p");
    check(&["allow p: id=spiffe://cluster.local/ns/a/sa/x"], "from a/x", "denied by p");
    check(&["allow p: id=cluster.local/ns/a/sa/X"], "from a/x", "denied by p");
    check(&["allow p: id=cluster.local/ns/a/*"], "from a/anything", "allowed by p");
    check(&["allow p: id=*/sa/x"], "from b/x", "allowed by p");
    check(&["allow p: id=cluster.local/ns/a/sa/x"], "from a/x.y", "denied by p");
    // A dot is a dot (S6 of the threat model: no pattern over text).
    check(&["allow p: id=cluster.local/ns/a/sa/a.b"], "from a/axb", "denied by p");
}

#[test]
fn an_alias_of_the_trust_domain_means_the_same_mesh_both_ways() {
    check(&["allow p: id=cluster.local/ns/a/sa/x"], "from old.local:a/x", "allowed by p");
    check(&["allow p: id=old.local/ns/a/sa/x"], "from a/x", "allowed by p");
    check(&["deny p: !id=cluster.local/ns/a/sa/x"], "from old.local:a/x", "allowed");
    check(&["deny p: id=old.local/*"], "from a/x", "denied by p");
    check(&["allow p: id=cluster.local/ns/a/sa/x"], "from evil.example:a/x", "denied by p");
    check(&["allow p: id=evil.example/ns/a/sa/x"], "from a/x", "denied by p");
}

#[test]
fn service_accounts_are_exact() {
    check(&["allow p: sa=a/x"], "from a/x", "allowed by p");
    check(&["allow p: sa=a/x"], "from b/x", "denied by p");
    check(&["deny p: !sa=a/x"], "from a/x", "allowed");
    check(&["deny p: !sa=a/x"], "from a/y", "denied by p");
}

#[test]
fn negations_exclude_what_the_rest_includes() {
    check(&["allow p: ns=a !sa=a/bad"], "from a/good", "allowed by p");
    check(&["allow p: ns=a !sa=a/bad"], "from a/bad", "denied by p");
    check(&["allow p: src=198.18.0.0/15 !src=198.18.9.0/24"], "plain at 198.18.1.1", "allowed by p");
    check(&["allow p: src=198.18.0.0/15 !src=198.18.9.0/24"], "plain at 198.18.9.1", "denied by p");
    check(&["allow p: !dst=198.18.2.9"], "plain to 198.18.2.9 80", "denied by p");
    check(&["allow p: !port=22"], "plain to 198.18.2.9 22", "denied by p");
}

#[test]
fn addresses_match_in_whatever_form_they_come() {
    check(&["deny p: src=198.18.1.0/24"], "plain at ::ffff:198.18.1.7", "denied by p");
    check(&["deny p: src=::ffff:198.18.1.0/120"], "plain at 198.18.1.7", "denied by p");
    check(&["deny p: src=::ffff:198.18.1.0/120"], "plain at 198.18.2.7", "allowed");
    check(&["deny p: src=fd77::/16"], "plain at fd77:0:0:1::5", "denied by p");
    check(&["deny p: src=::/0"], "plain at 198.18.1.7", "allowed");
    check(&["deny p: src=0.0.0.0/0"], "plain at fd77::1", "allowed");
    check(&["deny p: src=198.18.1.7/16"], "plain at 198.18.200.1", "denied by p");
}

#[test]
fn a_block_that_was_built_by_hand_in_mapped_form_still_means_the_ipv4_block() {
    let mut made = policy("deny p: src=198.18.1.0/24");
    let mapped: AddressBlock = "::ffff:198.18.1.99/120".parse().expect("a network");
    made.rules[0].clauses[0].matches[0].source_ips = vec![mapped];
    let mesh = mesh_of(&[made], None);
    assert!(judge(&mesh, Some(&workload(vec![])), facts("plain at 198.18.1.7")).is_err());
    assert!(judge(&mesh, Some(&workload(vec![])), facts("plain at 198.18.2.7")).is_ok());
}

#[test]
fn a_policy_applies_by_its_scope() {
    check(&["deny elsewhere p: any"], "from a/x", "allowed");
    check(&["deny global p: any"], "from a/x", "denied by p");
    check(&["deny listed p: any"], "from a/x", "denied by p");
    let unlisted = mesh_of(&[policy("deny listed p: any")], None);
    assert!(judge(&unlisted, Some(&workload(vec![])), facts("from a/x")).is_ok());
}

#[test]
fn a_policy_that_could_not_be_understood_refuses_whatever_else_allows() {
    check(&["invalid allow p:", "allow q: any"], "from a/x", "invalid p");
    check(&["invalid deny global p:"], "from a/x", "invalid p");
    check(&["invalid deny listed p:"], "from a/x", "invalid p");
    check(&["invalid deny elsewhere p:"], "from a/x", "allowed");
    assert_eq!(Denied::PolicyInvalid(policy("allow p:").key).reason(), Reason::PolicyDenied);
}

#[test]
fn a_policy_that_is_listed_and_has_not_arrived_refuses() {
    let key = PolicyKey { namespace: "shop".to_owned(), name: "late".to_owned() };
    let mesh = mesh_of(&[policy("allow p: any")], None);
    let denied = judge(&mesh, Some(&workload(vec![key.clone()])), facts("from a/x"));
    assert_eq!(denied, Err(Denied::PolicyMissing(key.clone())));
    assert_eq!(Denied::PolicyMissing(key).reason(), Reason::PolicyUnknown);
}

#[test]
fn a_dry_run_decides_nothing_and_tells_what_it_would_have() {
    check(&["dry deny p: any"], "from a/x", "allowed");
    check(&["dry allow p: ns=b"], "from a/x", "allowed");
    check(&["dry invalid deny p:"], "from a/x", "allowed");
    let told = |policies: &[&str], connection: &str| -> Vec<String> {
        let policies: Vec<Policy> = policies.iter().copied().map(policy).collect();
        let keys = rehearse(&mesh_of(&policies, None), &workload(vec![]), &facts(connection));
        keys.into_iter().map(|key| key.name).collect()
    };
    assert_eq!(told(&["dry deny p: any", "deny q: any"], "from a/x"), ["p"]);
    assert_eq!(told(&["dry deny p: ns=b"], "from a/x"), Vec::<String>::new());
    assert_eq!(told(&["dry allow p: ns=b"], "from a/x"), ["p"]);
    assert_eq!(told(&["dry allow p: ns=b", "allow q: ns=a"], "from a/x"), Vec::<String>::new());
    assert_eq!(told(&["dry invalid allow p:", "allow q: ns=a"], "from a/x"), ["p"]);
}

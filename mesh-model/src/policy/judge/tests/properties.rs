//! Random policies, over so few names, addresses and ports that matches are common, against the reference.

use super::*;

fn any_string() -> impl Strategy<Value = StringMatch> {
    let texts = prop::sample::select(vec![
        "a",
        "b",
        "ab",
        "",
        "cluster.local/ns/a/sa/x",
        "old.local/ns/a/sa/x",
        "cluster.local/ns/",
        "/sa/x",
        "cluster",
        "x",
    ]);
    (texts, 0..4u8).prop_map(|(text, form)| match form {
        0 => StringMatch::Exact(text.to_owned()),
        1 => StringMatch::Prefix(text.to_owned()),
        2 => StringMatch::Suffix(text.to_owned()),
        _ => StringMatch::Presence,
    })
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4u8, 0..4u8).prop_map(|(a, b)| IpAddr::from([198, 18, a, b])),
        (0..3u16, 0..3u16).prop_map(|(a, b)| IpAddr::from([0xfd77, 0, 0, a, 0, 0, 0, b])),
        (0..4u8, 0..4u8).prop_map(|(a, b)| IpAddr::from(std::net::Ipv4Addr::new(198, 18, a, b).to_ipv6_mapped())),
    ]
}

fn any_block() -> impl Strategy<Value = AddressBlock> {
    (any_ip(), 0..=128u32, any::<bool>()).prop_filter_map("length fits", |(ip, length, canonical)| {
        // Both the form that the constructors make and one built by hand.
        if canonical { address_block(ip, length).ok() } else { AddressBlock::new(ip, u8::try_from(length).ok()?).ok() }
    })
}

fn any_account() -> impl Strategy<Value = ServiceAccountMatch> {
    (prop::sample::select(vec!["a", "b"]), prop::sample::select(vec!["x", "y"])).prop_map(|(namespace, account)| {
        ServiceAccountMatch { namespace: namespace.to_owned(), service_account: account.to_owned() }
    })
}

fn few<T: std::fmt::Debug + Clone>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(one, 0..3)
}

/// Mostly nothing, so that not every match fails for one of twelve conditions.
fn seldom<T: std::fmt::Debug + Clone>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop::option::weighted(0.25, few(one)).prop_map(Option::unwrap_or_default)
}

fn any_match() -> impl Strategy<Value = Match> {
    let strings = || seldom(any_string());
    let blocks = || seldom(any_block());
    let ports = || seldom(80..83u16);
    let accounts = || seldom(any_account());
    let names = (strings(), strings(), strings(), strings(), accounts(), accounts());
    let places = (blocks(), blocks(), blocks(), blocks(), ports(), ports());
    (names, places).prop_map(|(names, places)| Match {
        namespaces: names.0,
        not_namespaces: names.1,
        principals: names.2,
        not_principals: names.3,
        service_accounts: names.4,
        not_service_accounts: names.5,
        source_ips: places.0,
        not_source_ips: places.1,
        destination_ips: places.2,
        not_destination_ips: places.3,
        destination_ports: places.4,
        not_destination_ports: places.5,
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let rules = few(few(few(any_match()).prop_map(|matches| Clause { matches })).prop_map(|clauses| Rule { clauses }));
    let key = (prop::sample::select(vec!["shop", "other"]), 0..4u8);
    let scope = prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::Selector]);
    let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
    (key, scope, action, rules, prop::bool::weighted(0.1), prop::bool::weighted(0.05)).prop_map(
        |((namespace, name), scope, action, rules, dry_run, invalid)| Policy {
            key: PolicyKey { namespace: namespace.to_owned(), name: format!("p{name}") },
            scope,
            action,
            rules,
            dry_run,
            invalid,
        },
    )
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let domain = prop::sample::select(vec!["cluster.local", "old.local", "evil.example"]);
    let who = (domain, prop::sample::select(vec!["a", "b", "ab"]), prop::sample::select(vec!["x", "y"]));
    (prop::option::weighted(0.8, who), any_ip(), any_ip(), 80..83u16).prop_map(|(who, client, destination, port)| {
        Facts {
            source: who.map(|(domain, namespace, account)| {
                let domain = TrustDomain::parse(domain).expect("a trust domain");
                Identity::new(domain, namespace, account).expect("an identity")
            }),
            client: ClientAddr::new(SocketAddr::new(client, 40000)),
            destination: OrigDst::new(SocketAddr::new(destination, port)),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_verdict_is_the_reference_verdict(
        mut policies in prop::collection::vec(any_policy(), 0..6),
        listed in prop::collection::vec((prop::sample::select(vec!["shop", "other"]), 0..4u8), 0..3),
        aliases in any::<bool>(),
        facts in any_facts(),
    ) {
        // One per key, as a store holds them.
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        let listed = listed.into_iter().map(|(namespace, name)| PolicyKey { namespace: namespace.to_owned(), name: format!("p{name}") });
        // Missing ones are refused at once; keep that case, but not in most runs.
        let listed: Vec<PolicyKey> = listed.filter(|key| policies.iter().any(|policy| policy.key == *key) || key.name == "p3").collect();
        let workload = workload(listed);
        let domains = aliases.then(domains);
        let mesh = mesh_of(&policies, domains.as_ref());
        let expected = match reference::answer(&policies, domains.as_ref(), &workload, &facts) {
            Answer::Missing(key) => Err(Denied::PolicyMissing(key)),
            Answer::Invalid(key) => Err(Denied::PolicyInvalid(key)),
            Answer::Denied(key) => Err(Denied::ByPolicy(key)),
            Answer::Allowed(policy) => Ok(Permit { facts: facts.clone(), policy }),
        };
        prop_assert_eq!(judge(&mesh, Some(&workload), facts), expected);
    }

    #[test]
    fn another_deny_policy_or_an_invalid_one_never_allows_more(
        policies in prop::collection::vec(any_policy(), 0..5),
        mut more in any_policy(),
        invalid in any::<bool>(),
        facts in any_facts(),
    ) {
        more.key.name = "more".to_owned();
        (more.action, more.invalid) = (Action::Deny, invalid);
        let mut mesh = mesh_of(&policies, None);
        let before = judge(&mesh, Some(&workload(vec![])), facts.clone());
        mesh.apply_policy(more);
        let after = judge(&mesh, Some(&workload(vec![])), facts);
        prop_assert!(before.is_ok() || after.is_err(), "{:?} became {:?}", before, after);
    }
}

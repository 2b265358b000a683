//! One by one: what is refused, and why.

use super::*;

fn any_workload() -> Workload {
    let pod = PodName { namespace: "shop".to_owned(), name: "cart".to_owned() };
    Workload {
        uid: WorkloadUid::of_pod("Kubernetes", &pod),
        pod,
        pod_uid: None,
        service_account: "cart".to_owned(),
        trust_domain: TrustDomain::parse("cluster.local").expect("a trust domain"),
        addresses: vec![IpAddr::from([198, 18, 1, 2])],
        node: "node-1".to_owned(),
        tunnel: Tunnel::Hbone,
        policies: vec![],
        health: Health::Healthy,
        services: Default::default(),
        network_policy: NetworkPolicy::Unselected,
        host_network: false,
        needs_waypoint: false,
        telemetry: Default::default(),
    }
}

fn workload_problem(change: impl FnOnce(&mut workload::Workload)) -> Option<BadField> {
    let Some(workload::address::Type::Workload(mut message)) = workload::Address::from(&any_workload()).r#type else {
        return None;
    };
    change(&mut message);
    match Record::try_from(workload::Address { r#type: Some(workload::address::Type::Workload(message)) }) {
        Err(BadAddress::Workload { problem, .. }) => Some(problem),
        _ => None,
    }
}

#[test]
fn a_workload_that_asks_for_what_we_do_not_do_is_refused_whole() {
    use BadField::*;
    assert_eq!(workload_problem(|_| {}), None);
    assert_eq!(workload_problem(|w| w.uid.clear()), Some(Missing("uid")));
    assert_eq!(workload_problem(|w| w.name.clear()), Some(Missing("name")));
    assert_eq!(
        workload_problem(|w| w.network_gateway = Some(Default::default())),
        Some(Unsupported("a network gateway"))
    );
    let tunnel = workload::ApplicationTunnel { protocol: 1, port: 0 };
    assert_eq!(workload_problem(|w| w.application_tunnel = Some(tunnel)), Some(Unsupported("an application tunnel")));
    assert_eq!(workload_problem(|w| w.tunnel_protocol = 2), Some(Unsupported("legacy Istio mTLS")));
    let unknown = |field, value| Some(UnknownValue { field, value });
    assert_eq!(workload_problem(|w| w.tunnel_protocol = 3), unknown("tunnel_protocol", 3));
    assert_eq!(workload_problem(|w| w.status = 2), unknown("status", 2));
    assert_eq!(workload_problem(|w| w.network_mode = -1), unknown("network_mode", -1));
    let address = Some(Address { field: "addresses", length: 5 });
    assert_eq!(workload_problem(|w| w.addresses = vec![vec![0; 5]]), address);
    let key = |field| Some(Key { field, text: "nameless".to_owned() });
    assert_eq!(
        workload_problem(|w| w.authorization_policies = vec!["nameless".to_owned()]),
        key("authorization_policies")
    );
    assert_eq!(
        workload_problem(|w| drop(w.services.insert("nameless".to_owned(), Default::default()))),
        key("services")
    );
    let list = |service_port, target_port| workload::PortList {
        ports: vec![workload::Port { service_port, target_port, app_protocol: 0 }],
    };
    let no_port = |field, value| Some(Port { field, value });
    assert_eq!(workload_problem(|w| drop(w.services.insert("a/b".to_owned(), list(0, 1)))), no_port("service_port", 0));
    assert_eq!(
        workload_problem(|w| drop(w.services.insert("a/b".to_owned(), list(1, 65_536)))),
        no_port("target_port", 65_536)
    );
    assert!(matches!(workload_problem(|w| w.service_account = "A B".to_owned()), Some(Identity(_))));
    assert!(matches!(workload_problem(|w| w.trust_domain = "spiffe://x".to_owned()), Some(Identity(_))));
}

#[test]
fn what_is_left_out_has_istios_defaults_and_an_unknown_network_policy_is_one_that_selects() {
    let message = workload::Workload {
        uid: "c//Pod/shop/cart".to_owned(),
        name: "cart".to_owned(),
        namespace: "shop".to_owned(),
        ..Default::default()
    };
    let address = workload::Address { r#type: Some(workload::address::Type::Workload(message)) };
    let Ok(Record::Workload(workload)) = Record::try_from(address) else { panic!("a bare workload is one") };
    assert_eq!(workload.service_account, "default");
    assert_eq!(workload.trust_domain.as_str(), "cluster.local");
    assert_eq!(workload.network_policy, NetworkPolicy::Selected);
    assert_eq!(workload.tunnel, Tunnel::Clear);
}

#[test]
fn our_extension_must_be_readable_and_there_once() {
    let broken = |config: Option<Vec<u8>>| workload::Extension {
        name: WORKLOAD_EXTENSION.to_owned(),
        config: config.map(|value| prost_types::Any { type_url: String::new(), value }),
    };
    let is_extension = |problem| matches!(problem, Some(BadField::Extension { .. }));
    assert!(is_extension(workload_problem(|w| w.extensions = vec![broken(Some(vec![0xff]))])));
    assert!(is_extension(workload_problem(|w| w.extensions = vec![broken(None), broken(None)])));
    let unknown = culvert::Extension { network_policy: 7, ..Default::default() }.encode_to_vec();
    let expected = Some(BadField::UnknownValue { field: "network_policy", value: 7 });
    assert_eq!(workload_problem(|w| w.extensions = vec![broken(Some(unknown))]), expected);
    let uid =
        culvert::Extension { network_policy: 1, pod_uid: "../x".to_owned(), ..Default::default() }.encode_to_vec();
    assert!(is_extension(workload_problem(|w| w.extensions = vec![broken(Some(uid))])));
    // Another's extension is its own affair.
    let other = workload::Extension { name: "example.com/x".to_owned(), config: None };
    assert_eq!(workload_problem(|w| w.extensions.push(other)), None);
}

#[test]
fn a_record_with_a_waypoint_is_kept_and_marked() {
    let read = |address: workload::Address| Record::try_from(address).expect("a record");
    let Some(workload::address::Type::Workload(mut message)) = workload::Address::from(&any_workload()).r#type else {
        panic!("a workload");
    };
    message.waypoint = Some(Default::default());
    let Record::Workload(kept) = read(workload::Address { r#type: Some(workload::address::Type::Workload(message)) })
    else {
        panic!("a workload");
    };
    assert_eq!(kept, Workload { needs_waypoint: true, ..any_workload() });
    let weighted = |s: &mut workload::Service| s.weighted_waypoints = vec![Default::default()];
    let changes: [fn(&mut workload::Service); 2] = [weighted, |s| s.waypoint = Some(Default::default())];
    for change in changes {
        let mut message = workload::Service {
            name: "cart".to_owned(),
            namespace: "shop".to_owned(),
            hostname: "cart.shop.svc.cluster.local".to_owned(),
            ..Default::default()
        };
        change(&mut message);
        let Record::Service(kept) = read(workload::Address { r#type: Some(workload::address::Type::Service(message)) })
        else {
            panic!("a service");
        };
        assert!(kept.needs_waypoint);
    }
}

#[test]
fn a_port_that_leads_nowhere_is_left_out_and_the_workload_stays() {
    let Some(workload::address::Type::Workload(mut message)) = workload::Address::from(&any_workload()).r#type else {
        panic!("a workload");
    };
    let pair = |service_port, target_port| workload::Port { service_port, target_port, app_protocol: 0 };
    message.services.insert("shop/a".to_owned(), workload::PortList { ports: vec![pair(80, 0), pair(81, 8081)] });
    let address = workload::Address { r#type: Some(workload::address::Type::Workload(message)) };
    let Ok(Record::Workload(kept)) = Record::try_from(address) else { panic!("a workload") };
    assert_eq!(kept.services.values().map(|endpoint| &endpoint.ports[..]).collect::<Vec<_>>(), [&[(81, 8081)]]);
}

#[test]
fn whoever_does_not_know_our_extension_leads_nobody_to_an_endpoint_that_comes_to_its_end() {
    let listed = |health, readiness| {
        let key: ServiceKey = "shop/cart.shop.svc.cluster.local".parse().expect("a key");
        let endpoint = Endpoint { readiness, ..Endpoint::at([(80, 8080)]) };
        let workload = Workload { health, services: [(key, endpoint)].into(), ..any_workload() };
        match workload::Address::from(&workload).r#type {
            Some(workload::address::Type::Workload(message)) => (message.services.len(), message.status),
            _ => panic!("a workload"),
        }
    };
    let (healthy, unhealthy) = (0, 1);
    assert_eq!(listed(Health::Healthy, Readiness::Unsaid), (1, healthy));
    assert_eq!(listed(Health::Healthy, Readiness::Ending), (0, healthy));
    // Listed as Istio lists those that are not ready.
    assert_eq!(listed(Health::Unhealthy, Readiness::Unsaid), (1, unhealthy));
    assert_eq!(listed(Health::Unhealthy, Readiness::Ending), (1, unhealthy));
}

fn service_problem(change: impl FnOnce(&mut workload::Service)) -> Option<BadField> {
    let mut message = workload::Service {
        name: "cart".to_owned(),
        namespace: "shop".to_owned(),
        hostname: "cart.shop.svc.cluster.local".to_owned(),
        ..Default::default()
    };
    change(&mut message);
    match Record::try_from(workload::Address { r#type: Some(workload::address::Type::Service(message)) }) {
        Err(BadAddress::Service { problem, .. }) => Some(problem),
        _ => None,
    }
}

#[test]
fn a_service_that_asks_for_what_we_do_not_do_is_refused_whole() {
    use BadField::*;
    assert_eq!(service_problem(|_| {}), None);
    assert_eq!(service_problem(|s| s.hostname.clear()), Some(Missing("hostname")));
    let vip = |length| workload::NetworkAddress { network: String::new(), address: vec![10, 0, 0, 0], length };
    assert_eq!(service_problem(|s| s.addresses = vec![vip(None), vip(Some(32))]), None);
    let block = Some(Unsupported("a block of service addresses"));
    assert_eq!(service_problem(|s| s.addresses = vec![vip(Some(8))]), block);
    let balancing =
        |mode, scopes: &[i32]| workload::LoadBalancing { routing_preference: scopes.to_vec(), mode, health_policy: 0 };
    assert_eq!(service_problem(|s| s.load_balancing = Some(balancing(2, &[1, 2]))), None);
    let strict = Some(Unsupported("strict routing other than to the own node"));
    assert_eq!(service_problem(|s| s.load_balancing = Some(balancing(1, &[5]))), strict);
    assert_eq!(
        service_problem(|s| s.load_balancing = Some(balancing(3, &[]))),
        Some(Unsupported("a passthrough service"))
    );
    let unknown = |field, value| Some(UnknownValue { field, value });
    assert_eq!(service_problem(|s| s.load_balancing = Some(balancing(9, &[]))), unknown("mode", 9));
    assert_eq!(service_problem(|s| s.load_balancing = Some(balancing(2, &[9]))), unknown("routing_preference", 9));
    assert_eq!(service_problem(|s| s.ip_families = 4), unknown("ip_families", 4));
    let ours = |config: culvert::Service| workload::Extension {
        name: SERVICE_EXTENSION.to_owned(),
        config: Some(prost_types::Any { type_url: String::new(), value: config.encode_to_vec() }),
    };
    let external = |length, preference| {
        ours(culvert::Service {
            external_addresses: vec![vec![1; length]],
            external_preference: preference,
            ..Default::default()
        })
    };
    assert_eq!(service_problem(|s| s.extensions = vec![external(4, 2)]), None);
    assert_eq!(service_problem(|s| s.extensions = vec![external(4, 3)]), unknown("external_preference", 3));
    let address = Some(Address { field: "external_addresses", length: 3 });
    assert_eq!(service_problem(|s| s.extensions = vec![external(3, 0)]), address);
    let twice = vec![ours(Default::default()), ours(Default::default())];
    assert!(matches!(service_problem(|s| s.extensions = twice), Some(Extension { .. })));
    // Istio's one exception: an unknown visibility is PUBLIC.
    assert_eq!(service_problem(|s| s.visibility = 9), None);
    assert!(matches!(service_problem(|s| s.subject_alt_names = vec!["spiffe://x".to_owned()]), Some(Identity(_))));
}

fn allow() -> security::Authorization {
    security::Authorization { name: "p".to_owned(), namespace: "shop".to_owned(), scope: 1, ..Default::default() }
}

fn with_match(one: security::Match) -> security::Authorization {
    let clause = security::Clause { matches: vec![one] };
    security::Authorization { rules: vec![security::Rule { clauses: vec![clause] }], ..allow() }
}

#[test]
fn a_policy_with_anything_unknown_in_it_is_refused_and_stands_as_one_that_refuses() {
    let extension = security::Extension { name: "example.com/x".to_owned(), config: None };
    let cases = [
        ("scope", security::Authorization { scope: 3, ..allow() }),
        ("action", security::Authorization { action: 2, ..allow() }),
        ("extension", security::Authorization { extensions: vec![extension.clone()], ..allow() }),
        ("match extension", with_match(security::Match { extensions: vec![extension], ..Default::default() })),
        ("string", with_match(security::Match { namespaces: vec![Default::default()], ..Default::default() })),
        ("port", with_match(security::Match { destination_ports: vec![65_536], ..Default::default() })),
        ("port 0", with_match(security::Match { not_destination_ports: vec![0], ..Default::default() })),
        (
            "block",
            with_match(security::Match {
                source_ips: vec![security::Address { address: vec![10, 0, 0, 0], length: 33 }],
                ..Default::default()
            }),
        ),
        (
            "address",
            with_match(security::Match {
                source_ips: vec![security::Address { address: vec![10, 0, 0], length: 8 }],
                ..Default::default()
            }),
        ),
        (
            "account",
            with_match(security::Match {
                service_accounts: vec![security::ServiceAccountMatch {
                    namespace: "a".to_owned(),
                    service_account: String::new(),
                }],
                ..Default::default()
            }),
        ),
    ];
    for (what, message) in cases {
        let body = message.encode_to_vec();
        let error = decode(AUTHORIZATION_TYPE, "shop/p", &body);
        assert!(matches!(error, Err(BadResource::Policy { .. })), "{what}: {error:?}");
        let stands = refusing_policy("shop/p", &body, None);
        let scope = if what == "scope" { Scope::Global } else { Scope::Namespace };
        assert_eq!(stands, Policy::invalid("shop/p".parse().expect("a key"), scope), "{what}");
    }
}

#[test]
fn a_policy_with_a_field_from_a_later_version_is_refused_rather_than_read_without_it() {
    let mut body = allow().encode_to_vec();
    assert!(decode(AUTHORIZATION_TYPE, "shop/p", &body).is_ok());
    // Field 14, a string.
    body.extend_from_slice(&[0x72, 1, b'x']);
    let unknown = BadResource::UnknownFields { name: "shop/p".to_owned() };
    assert_eq!(decode(AUTHORIZATION_TYPE, "shop/p", &body), Err(unknown));
}

#[test]
fn whom_an_unreadable_policy_refuses_is_read_then_remembered_then_everyone() {
    let readable = security::Authorization { scope: 2, action: 9, ..allow() }.encode_to_vec();
    let garbage = [0xff, 0xff];
    let known = Policy { invalid: false, ..Policy::invalid("shop/p".parse().expect("a key"), Scope::Namespace) };
    assert_eq!(refusing_policy("shop/p", &readable, Some(&known)).scope, Scope::Selector);
    assert_eq!(refusing_policy("shop/p", &garbage, Some(&known)).scope, Scope::Namespace);
    assert_eq!(refusing_policy("shop/p", &garbage, None).scope, Scope::Global);
    let nameless = refusing_policy("nameless", &garbage, None);
    assert_eq!(nameless.key, PolicyKey { namespace: String::new(), name: "nameless".to_owned() });
}

#[test]
fn a_broken_dry_run_is_still_only_a_dry_run() {
    let body = security::Authorization { dry_run: true, action: 9, ..allow() }.encode_to_vec();
    assert!(refusing_policy("shop/p", &body, None).dry_run);
}

#[test]
fn an_invalid_policy_denies_everything_to_a_proxy_that_does_not_know_our_mark() {
    let policy = Policy::invalid("shop/p".parse().expect("a key"), Scope::Namespace);
    let mut message = security::Authorization::from(&policy);
    message.extensions.clear();
    let read = Policy::try_from(message).expect("a plain policy");
    assert_eq!((read.action, read.rules.len(), read.rules[0].clauses.len()), (Action::Deny, 1, 0));
}

#[test]
fn a_resource_under_another_name_is_refused() {
    let body = allow().encode_to_vec();
    let error = BadResource::Name { name: "shop/q".to_owned(), holds: "shop/p".to_owned() };
    assert_eq!(decode(AUTHORIZATION_TYPE, "shop/q", &body), Err(error));
    let resource = workload_resource(&any_workload());
    assert!(matches!(
        decode(ADDRESS_TYPE, "Kubernetes//Pod/shop/other", &resource.body),
        Err(BadResource::Name { .. })
    ));
    assert_eq!(
        decode(ADDRESS_TYPE, "x", &[]).err().map(|error| error.to_string()),
        Some("resource \"x\" cannot be used".to_owned())
    );
}

#[test]
fn an_address_block_is_read_in_the_form_it_was_sent_in() {
    let read = |address: Vec<u8>, length| {
        let message = with_match(security::Match {
            source_ips: vec![security::Address { address, length }],
            ..Default::default()
        });
        let policy = Policy::try_from(message).expect("a policy");
        policy.rules[0].clauses[0].matches[0].source_ips[0].to_string()
    };
    assert_eq!(read(vec![10, 1, 2, 3], 8), "10.0.0.0/8");
    let mapped = IpAddr::from(std::net::Ipv4Addr::new(10, 1, 2, 3).to_ipv6_mapped());
    let IpAddr::V6(mapped) = mapped else { panic!("a mapped address is IPv6") };
    assert_eq!(read(mapped.octets().to_vec(), 104), "10.0.0.0/8");
    assert_eq!(read(mapped.octets().to_vec(), 128), "10.1.2.3/32");
}

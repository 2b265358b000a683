//! Any value that the model can hold goes out and comes back; damaged ones are refused or read whole.

use super::*;

fn name() -> impl Strategy<Value = String> {
    "[a-z]([a-z0-9-]{0,8}[a-z0-9])?"
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(|b| IpAddr::from(b).to_canonical())]
}

fn port() -> impl Strategy<Value = u16> {
    1..=u16::MAX
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    (name(), name())
        .prop_map(|(namespace, host)| ServiceKey { namespace, hostname: format!("{host}.svc.cluster.local") })
}

fn policy_key() -> impl Strategy<Value = PolicyKey> {
    (name(), name()).prop_map(|(namespace, name)| PolicyKey { namespace, name })
}

fn workload() -> impl Strategy<Value = Workload> {
    let pod = (name(), name()).prop_map(|(namespace, name)| PodName { namespace, name });
    let names = (pod, prop::option::of("[a-f0-9-]{1,36}"), name(), name(), name());
    let services = prop::collection::btree_map(service_key(), endpoint(), 0..3);
    let policies = prop::collection::vec(policy_key(), 0..3);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let telemetry = prop::array::uniform6("[a-z0-9.-]{0,20}").prop_map(
        |[workload_name, canonical_name, canonical_revision, region, zone, subzone]| Telemetry {
            workload_name,
            canonical_name,
            canonical_revision,
            region,
            zone,
            subzone,
        },
    );
    (names, prop::collection::vec(ip(), 0..3), services, policies, flags, telemetry).prop_map(
        |((pod, pod_uid, service_account, domain, node), addresses, services, policies, flags, telemetry)| Workload {
            uid: WorkloadUid::of_pod("Kubernetes", &pod),
            pod,
            pod_uid: pod_uid.map(|text| PodUid::parse(&text).expect("a uid")),
            service_account,
            trust_domain: TrustDomain::parse(&domain).expect("a trust domain"),
            addresses,
            node,
            tunnel: if flags.0 { Tunnel::Hbone } else { Tunnel::Clear },
            policies,
            health: if flags.1 { Health::Healthy } else { Health::Unhealthy },
            services,
            network_policy: if flags.2 { NetworkPolicy::Selected } else { NetworkPolicy::Unselected },
            host_network: flags.3,
            needs_waypoint: flags.4,
            telemetry: telemetry.into(),
        },
    )
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let readiness = prop::sample::select(vec![Readiness::Unsaid, Readiness::Ready, Readiness::Ending]);
    let hint = || prop::collection::vec(name(), 0..2);
    let hints = (hint(), hint()).prop_map(|(zones, nodes)| Hints { zones, nodes });
    (prop::collection::vec((port(), port()), 0..3), readiness, hints).prop_map(|(ports, readiness, hints)| Endpoint {
        ports,
        readiness,
        hints,
    })
}

fn external() -> impl Strategy<Value = External> {
    let near = prop::sample::select(vec![Near::Any, Near::PreferZone, Near::PreferNode]);
    (prop::collection::vec(ip(), 1..3), near).prop_map(|(vips, near)| External { vips, near })
}

fn service() -> impl Strategy<Value = Service> {
    let spoken = prop::sample::select(vec![
        AppProtocol::Unknown,
        AppProtocol::Http11,
        AppProtocol::Http2,
        AppProtocol::Grpc,
        AppProtocol::Tcp,
        AppProtocol::Tls,
    ]);
    let ports = (port(), prop::option::of(port()), spoken)
        .prop_map(|(service_port, target_port, app_protocol)| ServicePort { service_port, target_port, app_protocol });
    let families = prop::sample::select(vec![IpFamilies::Automatic, IpFamilies::V4, IpFamilies::V6, IpFamilies::Dual]);
    let identity = (name(), name()).prop_map(|(namespace, account)| {
        Identity::parse(&format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")).expect("an identity")
    });
    let lists =
        (prop::collection::vec(ip(), 0..3), prop::collection::vec(ports, 0..3), prop::collection::vec(identity, 0..2));
    let near = prop::sample::select(vec![Near::Any, Near::PreferZone, Near::PreferNode, Near::OnlyNode]);
    let beyond = (
        prop::option::of(external()),
        prop::option::of((1..=86_400_u64).prop_map(Duration::from_secs)),
        families,
        any::<bool>(),
    );
    (service_key(), name(), lists, any::<bool>(), near, beyond).prop_map(
        |(key, name, (vips, ports, subject_alt_names), publish_not_ready, near, beyond)| {
            let (external, session_affinity, ip_families, needs_waypoint) = beyond;
            Service {
                key,
                name,
                vips,
                ports,
                subject_alt_names,
                publish_not_ready,
                near,
                external,
                session_affinity,
                ip_families,
                needs_waypoint,
            }
        },
    )
}

fn string() -> impl Strategy<Value = StringMatch> {
    ("[a-z/*.]{0,6}", 0..4u8).prop_map(|(text, form)| match form {
        0 => StringMatch::Exact(text),
        1 => StringMatch::Prefix(text),
        2 => StringMatch::Suffix(text),
        _ => StringMatch::Presence,
    })
}

fn matches() -> impl Strategy<Value = Match> {
    let strings = || prop::collection::vec(string(), 0..3);
    let block = || (ip(), 0..=128u32).prop_filter_map("length fits", |(ip, length)| address_block(ip, length).ok());
    let blocks = || prop::collection::vec(block(), 0..3);
    let ports = || prop::collection::vec(port(), 0..3);
    let account =
        || (name(), name()).prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account });
    let accounts = || prop::collection::vec(account(), 0..2);
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

fn policy() -> impl Strategy<Value = Policy> {
    let clause = prop::collection::vec(matches(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let scope = prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::Selector]);
    let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
    let rules = prop::collection::vec(rule, 0..3);
    (policy_key(), scope, action, rules, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
        |(key, scope, action, rules, dry_run, invalid)| match invalid {
            true => Policy { dry_run, ..Policy::invalid(key, scope) },
            false => Policy { key, scope, action, rules, dry_run, invalid },
        },
    )
}

fn resource() -> impl Strategy<Value = (Resource, SavedResource)> {
    prop_oneof![
        workload().prop_map(|workload| (workload_resource(&workload), Resource::Workload(workload))),
        service().prop_map(|service| (service_resource(&service), Resource::Service(service))),
        policy().prop_map(|policy| (policy_resource(&policy), Resource::Policy(policy))),
    ]
    .prop_map(|(encoded, resource)| (resource, encoded))
}

proptest! {
    #[test]
    fn what_goes_out_comes_back((resource, encoded) in resource()) {
        prop_assert_eq!(&encoded.name, &resource.name());
        prop_assert_eq!(decode(&encoded.type_url, &encoded.name, &encoded.body), Ok(resource));
        // Through the discovery message too.
        let carried = discovery::Resource::from(encoded.clone());
        prop_assert_eq!(SavedResource::try_from(carried), Ok(encoded));
    }

    #[test]
    fn the_version_tells_apart_what_differs_and_nothing_else(a in policy(), b in policy()) {
        let (first, again, other) = (policy_resource(&a), policy_resource(&a), policy_resource(&b));
        prop_assert_eq!(&first.version, &again.version);
        prop_assert_eq!(a == b, first.version == other.version);
    }

    #[test]
    fn garbage_is_refused_or_read_and_never_a_panic(
        body in prop::collection::vec(any::<u8>(), 0..200),
        kind in prop::sample::select(vec![ADDRESS_TYPE, AUTHORIZATION_TYPE, "type.googleapis.com/other"]),
    ) {
        let _ = decode(kind, "shop/p", &body);
        let refusing = refusing_policy("shop/p", &body, None);
        prop_assert!(refusing.invalid);
        prop_assert_eq!(refusing.key.to_string(), "shop/p");
    }

    #[test]
    fn a_damaged_resource_is_refused_or_read_whole((_, encoded) in resource(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        prop_assume!(!encoded.body.is_empty());
        let mut body = encoded.body.clone();
        *at.get_mut(&mut body) = value;
        if let Ok(Resource::Policy(policy)) = decode(&encoded.type_url, &encoded.name, &body) {
            // Read whole: as many bytes go out as came in, so nothing was passed over, except in what our mark carries and in the
            // rules beside it, which say the same, and in the spelling of an address block.
            let again = policy_resource(&policy).body.len();
            prop_assert!(again <= body.len());
        }
    }
}

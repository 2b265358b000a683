//! Model → wire, for the control plane. Never fails: the model holds nothing that the wire cannot say.

use std::net::IpAddr;
use std::time::Duration;

use mesh_model::policy::{
    Action, AddressBlock, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch, block_parts,
};
use mesh_model::{
    AppProtocol, Endpoint, External, Health, Hints, IpFamilies, Near, NetworkPolicy, Readiness, Service, Telemetry,
    Tunnel, Workload,
};
use prost::Message;

use super::{POLICY_EXTENSION, SERVICE_EXTENSION, WORKLOAD_EXTENSION, culvert, security, workload as wire};

impl From<&Workload> for wire::Address {
    fn from(workload: &Workload) -> Self {
        let Workload {
            uid,
            pod,
            pod_uid,
            service_account,
            trust_domain,
            addresses,
            node,
            tunnel,
            policies,
            health,
            services,
            network_policy,
            host_network,
            needs_waypoint,
            telemetry,
        } = workload;
        let extension = culvert::Extension {
            network_policy: match network_policy {
                NetworkPolicy::Selected => culvert::NetworkPolicy::Selected,
                NetworkPolicy::Unselected => culvert::NetworkPolicy::Unselected,
            }
            .into(),
            pod_uid: pod_uid.as_ref().map(ToString::to_string).unwrap_or_default(),
            endpoints: services
                .iter()
                .filter_map(|(key, endpoint)| Some((key.to_string(), endpoint_beyond(endpoint, *health)?)))
                .collect(),
        };
        let message = wire::Workload {
            uid: uid.to_string(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            addresses: addresses.iter().copied().map(ip_bytes).collect(),
            tunnel_protocol: match tunnel {
                Tunnel::Clear => wire::TunnelProtocol::None,
                Tunnel::Hbone => wire::TunnelProtocol::Hbone,
            }
            .into(),
            trust_domain: trust_domain.to_string(),
            service_account: service_account.clone(),
            node: node.clone(),
            workload_type: wire::WorkloadType::Pod.into(),
            workload_name: telemetry.workload_name.clone(),
            canonical_name: telemetry.canonical_name.clone(),
            canonical_revision: telemetry.canonical_revision.clone(),
            locality: locality(telemetry),
            authorization_policies: policies.iter().map(ToString::to_string).collect(),
            status: match health {
                Health::Healthy => wire::WorkloadStatus::Healthy,
                Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
            }
            .into(),
            // A key begins with it, whatever it is a key of.
            cluster_id: uid.0.split('/').next().unwrap_or_default().to_owned(),
            waypoint: needs_waypoint.then(wire::GatewayAddress::default),
            services: services
                .iter()
                .filter(|(_, endpoint)| is_listed(endpoint, *health))
                .map(|(key, endpoint)| (key.to_string(), port_list(&endpoint.ports)))
                .collect(),
            network_mode: if *host_network { wire::NetworkMode::HostNetwork } else { wire::NetworkMode::Standard }
                .into(),
            extensions: vec![wire::Extension {
                name: WORKLOAD_EXTENSION.to_owned(),
                config: Some(any("culvert.workload.v1.Extension", &extension)),
            }],
            ..wire::Workload::default()
        };
        Self { r#type: Some(wire::address::Type::Workload(message)) }
    }
}

fn locality(telemetry: &Telemetry) -> Option<wire::Locality> {
    let Telemetry { region, zone, subzone, .. } = telemetry;
    let locality = wire::Locality { region: region.clone(), zone: zone.clone(), subzone: subzone.clone() };
    (locality != wire::Locality::default()).then_some(locality)
}

/// Whether the workload's own list has the service. Whoever does not know our extension leads callers to what is listed there and healthy.
fn is_listed(endpoint: &Endpoint, health: Health) -> bool {
    endpoint.readiness != Readiness::Ending || health == Health::Unhealthy
}

/// What Istio's fields cannot say of an endpoint, if there is anything.
fn endpoint_beyond(endpoint: &Endpoint, health: Health) -> Option<culvert::Endpoint> {
    let Endpoint { ports, readiness, hints: Hints { zones, nodes } } = endpoint;
    let port =
        |&(service, target): &(u16, u16)| culvert::Port { service_port: service.into(), target_port: target.into() };
    let beyond = culvert::Endpoint {
        readiness: match readiness {
            Readiness::Unsaid => culvert::Readiness::Unsaid,
            Readiness::Ready => culvert::Readiness::Ready,
            Readiness::Ending => culvert::Readiness::Ending,
        }
        .into(),
        ports: if is_listed(endpoint, health) { Vec::new() } else { ports.iter().map(port).collect() },
        zones: zones.clone(),
        nodes: nodes.clone(),
    };
    (beyond != culvert::Endpoint::default()).then_some(beyond)
}

fn port_list(ports: &[(u16, u16)]) -> wire::PortList {
    let pair = |&(service, target): &(u16, u16)| wire::Port {
        service_port: service.into(),
        target_port: target.into(),
        app_protocol: wire::AppProtocol::Unknown.into(),
    };
    wire::PortList { ports: ports.iter().map(pair).collect() }
}

impl From<&Service> for wire::Address {
    fn from(service: &Service) -> Self {
        use wire::load_balancing::{HealthPolicy, Mode, Scope};
        let Service {
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
        } = service;
        // As istiod says it: every scope down to the one that is meant.
        let zone = [Scope::Network, Scope::Region, Scope::Zone];
        let (scopes, mode) = match near {
            Near::Any => (Vec::new(), Mode::UnspecifiedMode),
            Near::PreferZone => (zone.to_vec(), Mode::Failover),
            Near::PreferNode => ([&zone[..], &[Scope::Subzone, Scope::Node]].concat(), Mode::Failover),
            Near::OnlyNode => (vec![Scope::Node], Mode::Strict),
        };
        let balancing = wire::LoadBalancing {
            routing_preference: scopes.into_iter().map(Into::into).collect(),
            mode: mode.into(),
            health_policy: if *publish_not_ready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy }.into(),
        };
        let message = wire::Service {
            name: name.clone(),
            namespace: key.namespace.clone(),
            hostname: key.hostname.clone(),
            addresses: vips
                .iter()
                .map(|vip| wire::NetworkAddress { network: String::new(), address: ip_bytes(*vip), length: None })
                .collect(),
            ports: ports
                .iter()
                .map(|port| wire::Port {
                    service_port: port.service_port.into(),
                    target_port: port.target_port.unwrap_or_default().into(),
                    app_protocol: app_protocol(port.app_protocol).into(),
                })
                .collect(),
            subject_alt_names: subject_alt_names.iter().map(ToString::to_string).collect(),
            load_balancing: (balancing != wire::LoadBalancing::default()).then_some(balancing),
            ip_families: match ip_families {
                IpFamilies::Automatic => wire::IpFamilies::Automatic,
                IpFamilies::V4 => wire::IpFamilies::Ipv4Only,
                IpFamilies::V6 => wire::IpFamilies::Ipv6Only,
                IpFamilies::Dual => wire::IpFamilies::Dual,
            }
            .into(),
            extensions: service_beyond(*session_affinity, external.as_ref()).into_iter().collect(),
            // Of all that may have its host name it is the one that Kubernetes means: every service here is a Service.
            canonical: true,
            waypoint: needs_waypoint.then(wire::GatewayAddress::default),
            ..wire::Service::default()
        };
        Self { r#type: Some(wire::address::Type::Service(message)) }
    }
}

fn app_protocol(spoken: AppProtocol) -> wire::AppProtocol {
    match spoken {
        AppProtocol::Unknown => wire::AppProtocol::Unknown,
        AppProtocol::Http11 => wire::AppProtocol::Http11,
        AppProtocol::Http2 => wire::AppProtocol::Http2,
        AppProtocol::Grpc => wire::AppProtocol::Grpc,
        AppProtocol::Tcp => wire::AppProtocol::Tcp,
        AppProtocol::Tls => wire::AppProtocol::Tls,
    }
}

/// What Istio's fields cannot say of a service, if there is anything.
fn service_beyond(session_affinity: Option<Duration>, external: Option<&External>) -> Option<wire::Extension> {
    let mut beyond = culvert::Service {
        // A day is the most that Kubernetes takes.
        session_affinity_seconds: session_affinity.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX)),
        ..culvert::Service::default()
    };
    if let Some(External { vips, near }) = external {
        beyond.external_addresses = vips.iter().copied().map(ip_bytes).collect();
        beyond.set_external_preference(match near {
            // Nothing ties these to the own node.
            Near::Any | Near::OnlyNode => culvert::Preference::None,
            Near::PreferZone => culvert::Preference::Zone,
            Near::PreferNode => culvert::Preference::Node,
        });
    }
    (beyond != culvert::Service::default()).then(|| wire::Extension {
        name: SERVICE_EXTENSION.to_owned(),
        config: Some(any("culvert.workload.v1.Service", &beyond)),
    })
}

/// The bytes of an address on the wire.
fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

impl From<&Policy> for security::Authorization {
    fn from(policy: &Policy) -> Self {
        let Policy { key, scope, action, rules, dry_run, invalid } = policy;
        let mut message = Self {
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            scope: match scope {
                Scope::Global => security::Scope::Global,
                Scope::Namespace => security::Scope::Namespace,
                Scope::Selector => security::Scope::WorkloadSelector,
            }
            .into(),
            dry_run: *dry_run,
            ..Self::default()
        };
        if *invalid {
            // "Deny everything", so that a proxy that does not know our mark refuses as well.
            message.set_action(security::Action::Deny);
            message.rules = vec![security::Rule::default()];
            let mark = any("culvert.workload.v1.Policy", &culvert::Policy { invalid: true });
            message.extensions = vec![security::Extension { name: POLICY_EXTENSION.to_owned(), config: Some(mark) }];
        } else {
            message.set_action(match action {
                Action::Allow => security::Action::Allow,
                Action::Deny => security::Action::Deny,
            });
            message.rules = rules.iter().map(wire_rule).collect();
        }
        message
    }
}

fn wire_rule(rule: &Rule) -> security::Rule {
    let clause = |clause: &mesh_model::policy::Clause| security::Clause {
        matches: clause.matches.iter().map(wire_match).collect(),
    };
    security::Rule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn wire_match(conditions: &Match) -> security::Match {
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
    let strings = |all: &[StringMatch]| all.iter().map(wire_string).collect();
    let accounts = |all: &[ServiceAccountMatch]| all.iter().map(wire_account).collect();
    let blocks = |all: &[AddressBlock]| all.iter().map(wire_block).collect();
    let ports = |all: &[u16]| all.iter().copied().map(u32::from).collect();
    security::Match {
        namespaces: strings(namespaces),
        not_namespaces: strings(not_namespaces),
        principals: strings(principals),
        not_principals: strings(not_principals),
        source_ips: blocks(source_ips),
        not_source_ips: blocks(not_source_ips),
        destination_ips: blocks(destination_ips),
        not_destination_ips: blocks(not_destination_ips),
        destination_ports: ports(destination_ports),
        not_destination_ports: ports(not_destination_ports),
        service_accounts: accounts(service_accounts),
        not_service_accounts: accounts(not_service_accounts),
        extensions: Vec::new(),
    }
}

fn wire_string(text: &StringMatch) -> security::StringMatch {
    use security::string_match::MatchType;
    let match_type = match text {
        StringMatch::Exact(text) => MatchType::Exact(text.clone()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.clone()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.clone()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    security::StringMatch { match_type: Some(match_type) }
}

fn wire_account(account: &ServiceAccountMatch) -> security::ServiceAccountMatch {
    let ServiceAccountMatch { namespace, service_account } = account;
    security::ServiceAccountMatch { namespace: namespace.clone(), service_account: service_account.clone() }
}

fn wire_block(block: &AddressBlock) -> security::Address {
    let (address, length) = block_parts(block);
    security::Address { address: ip_bytes(address), length }
}

/// A message as an `Any` of this type.
fn any(type_name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec() }
}

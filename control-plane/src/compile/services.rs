//! Services: host name, virtual addresses, TCP ports. Who stands behind them is told by the endpoint slices.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ClientIPConfig, ServicePort as CorePort, ServiceSpec, SessionAffinityConfig};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_api::manifests::{Key, Kind, ObjectRef};
use mesh_model::{External, IpFamilies, Near, Service, ServiceKey, ServicePort};

use super::addresses::Addresses;
use super::place::Place;
use super::{CompileConfig, Problem, app_protocol};

/// Seconds for which a client stays with an endpoint where a Service does not say it (Service, `timeoutSeconds`: "Default value is
/// 10800 (for 3 hours)"), and the most that it may say.
const AFFINITY: u32 = 10_800;
const LONGEST_AFFINITY: u32 = 86_400;

/// Istio's annotation of Services.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// All services of the namespace but those that are only a DNS alias. Anyone who may write one may name any address in `externalIPs`
/// (CVE-2020-8554): what is a pod's or another Service's own is theirs.
pub(super) fn services(place: &Place<'_>, addresses: &Addresses, problems: &mut Vec<Problem>) -> Vec<Service> {
    let mut services = Vec::new();
    for (key, object) in place.own(&place.objects.services) {
        let Some(spec) = &object.spec else { continue };
        // Taken apart: a new field must be thought about here, and have a row in `tests::fields`.
        let ServiceSpec {
            type_,
            ports,
            publish_not_ready_addresses,
            internal_traffic_policy,
            traffic_distribution,
            session_affinity,
            session_affinity_config,
            external_ips,
            // With its list form, by `cluster_ips`.
            cluster_ip: _,
            cluster_ips: _,
            // Who stands behind it is what the slices say, which the EndpointSlice controller makes by it; policies look at it themselves.
            selector: _,
            // The alias is DNS's alone.
            external_name: _,
            ip_families,
            // How addresses are given to it is the API server's business.
            ip_family_policy: _,
            // Of clients that come from outside of the cluster, by a node's port or a load balancer. Those that come from pods are led to
            // every endpoint (as kube-proxy does it: "traffic sent to an External IP … from within the cluster will always get "Cluster"
            // semantics").
            external_traffic_policy: _,
            health_check_node_port: _,
            allocate_load_balancer_node_ports: _,
            load_balancer_class: _,
            load_balancer_ip: _,
            load_balancer_source_ranges: _,
        } = spec;
        if type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let this = ObjectRef { kind: Kind::Service, namespace: key.0.clone(), name: key.1.clone() };
        let mut complain = |text: String| problems.push(Problem::new(Kind::Service, key, text));
        let (mut vips, mut external): (Vec<IpAddr>, Vec<IpAddr>) = (Vec::new(), Vec::new());
        let own = cluster_ips(spec).map(|text| (text, true));
        for (text, own) in own.chain(external_ips.iter().flatten().map(|text| (text, false))) {
            let Ok(ip) = text.parse::<IpAddr>().map(|ip| ip.to_canonical()) else {
                complain(format!("{text:?} is not an address and is left out"));
                continue;
            };
            match addresses.owner(ip).filter(|owner| !own && *owner != this) {
                Some(owner) => complain(format!(
                    "its external address {ip} is that of {owner} and is left out: connections to it go there"
                )),
                None if vips.contains(&ip) => {}
                None => {
                    vips.push(ip);
                    external.extend((!own).then_some(ip));
                }
            }
        }
        let ports = ports.iter().flatten().filter_map(|port| service_port(port, &mut complain)).collect();
        let annotation = object.metadata.annotations.as_ref().and_then(|all| all.get(TRAFFIC_DISTRIBUTION));
        let preferred = preferred(traffic_distribution.as_deref(), annotation.map(String::as_str), &mut complain);
        // What only the own node may serve stays there, whatever else is preferred (as kube-proxy reads the two).
        let near = if is_local(internal_traffic_policy.as_deref(), &mut complain) { Near::OnlyNode } else { preferred };
        services.push(Service {
            key: service_key(key, place.config),
            name: key.1.clone(),
            vips,
            ports,
            subject_alt_names: Vec::new(),
            publish_not_ready: publish_not_ready_addresses.unwrap_or(false),
            near,
            external: (near != preferred && !external.is_empty())
                .then_some(External { vips: external, near: preferred }),
            ip_families: families(ip_families.iter().flatten()),
            needs_waypoint: false,
            session_affinity: affinity(session_affinity.as_deref(), session_affinity_config.as_ref(), &mut complain),
        });
    }
    services.sort_by(|a, b| a.key.cmp(&b.key));
    services
}

/// A port, if it is one of TCP; others pass by the mesh.
fn service_port(port: &CorePort, complain: &mut impl FnMut(String)) -> Option<ServicePort> {
    let CorePort {
        port,
        protocol,
        target_port,
        name,
        app_protocol,
        // For clients from outside: kube-proxy's.
        node_port: _,
    } = port;
    if !is_tcp(protocol.as_deref()) {
        return None;
    }
    let Some(service_port) = number(*port) else {
        complain(format!("port {port} is not a TCP port and is left out"));
        return None;
    };
    let target_port = match target_port {
        None | Some(IntOrString::Int(0)) => Some(service_port),
        Some(IntOrString::Int(target)) => number(*target),
        // A named port is looked up at each endpoint.
        Some(IntOrString::String(_)) => None,
    };
    let app_protocol = app_protocol::of(app_protocol.as_deref(), name.as_deref());
    Some(ServicePort { service_port, target_port, app_protocol })
}

/// Which endpoints are preferred, by the field, else by Istio's annotation from before there was one. A value that Kubernetes does not know
/// yet prefers nothing: every endpoint is right.
fn preferred(field: Option<&str>, annotation: Option<&str>, complain: &mut impl FnMut(String)) -> Near {
    let (said, by) = match field.filter(|said| !said.is_empty()) {
        Some(field) => (field, "trafficDistribution"),
        None => (annotation.unwrap_or_default(), TRAFFIC_DISTRIBUTION),
    };
    match said.to_ascii_lowercase().as_str() {
        // Of one network they are all.
        "" | "prefersamenetwork" => Near::Any,
        "prefersamenode" => Near::PreferNode,
        "prefersamezone" | "preferclose" => Near::PreferZone,
        _ => {
            complain(format!("{by} {said:?} is not known: no endpoint is preferred"));
            Near::Any
        }
    }
}

fn families<'s>(named: impl Iterator<Item = &'s String>) -> IpFamilies {
    let (mut v4, mut v6) = (false, false);
    for family in named {
        v4 |= family == "IPv4";
        v6 |= family == "IPv6";
    }
    match (v4, v6) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::V4,
        (false, true) => IpFamilies::V6,
        (false, false) => IpFamilies::Automatic,
    }
}

/// Whether clients of its cluster addresses are led to endpoints of their own node alone.
fn is_local(policy: Option<&str>, complain: &mut impl FnMut(String)) -> bool {
    match policy {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            complain(format!("internalTrafficPolicy {other:?} is not known: endpoints of every node are used"));
            false
        }
    }
}

/// Whether clients stay with an endpoint, and for how long after their last connection.
fn affinity(
    affinity: Option<&str>,
    config: Option<&SessionAffinityConfig>,
    complain: &mut impl FnMut(String),
) -> Option<Duration> {
    match affinity {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            complain(format!("sessionAffinity {other:?} is not known: clients stay with no endpoint"));
            return None;
        }
    }
    let asked = config.and_then(|SessionAffinityConfig { client_ip }| client_ip.as_ref());
    let seconds = match asked.and_then(|ClientIPConfig { timeout_seconds }| *timeout_seconds) {
        None => AFFINITY,
        Some(seconds) => u32::try_from(seconds).ok().filter(|seconds| (1..=LONGEST_AFFINITY).contains(seconds)).unwrap_or_else(|| {
            complain(format!(
                "sessionAffinityConfig.clientIP.timeoutSeconds {seconds} is not between 1 and {LONGEST_AFFINITY}: it is {AFFINITY}"
            ));
            AFFINITY
        }),
    };
    Some(Duration::from_secs(seconds.into()))
}

/// The addresses that the API server gave it. `clusterIPs` is the list form of `clusterIP`; hand-written manifests may have only the
/// latter.
fn cluster_ips(spec: &ServiceSpec) -> impl Iterator<Item = &String> {
    spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter(|text| !matches!(text.as_str(), "" | "None"))
}

/// The namespace's Services with the addresses that the API server gave them.
pub(super) fn claims(place: &Place<'_>) -> Vec<(Key, IpAddr)> {
    let specs = place.own(&place.objects.services).filter_map(|(key, object)| Some((key, object.spec.as_ref()?)));
    let parsed = |text: &String| text.parse().map(|ip: IpAddr| ip.to_canonical()).ok();
    specs.flat_map(|(key, spec)| cluster_ips(spec).filter_map(parsed).map(|ip| (key.clone(), ip))).collect()
}

/// The external addresses of the namespace's Services: others may come to have them.
pub(super) fn external(place: &Place<'_>) -> Vec<IpAddr> {
    let specs = place.own(&place.objects.services).filter_map(|(_, object)| object.spec.as_ref());
    specs
        .flat_map(|spec| spec.external_ips.iter().flatten())
        .filter_map(|text| text.parse().ok())
        .map(|ip: IpAddr| ip.to_canonical())
        .collect()
}

/// `name.namespace.svc.<cluster domain>`.
pub(super) fn service_key((namespace, name): &Key, config: &CompileConfig) -> ServiceKey {
    let hostname = format!("{name}.{namespace}.svc.{}", config.cluster_domain);
    ServiceKey { namespace: namespace.clone(), hostname }
}

/// TCP is the default.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("" | "TCP"))
}

/// A port that can be one.
pub(super) fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

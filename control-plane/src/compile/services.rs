//! Services: host name, virtual addresses, TCP ports. Who stands behind them is told by the endpoint slices.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::ServiceSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_api::manifests::{Key, Kind, ObjectRef};
use mesh_model::{Near, Service, ServiceKey, ServicePort};

use super::addresses::Addresses;
use super::place::Place;
use super::{CompileConfig, Problem};

/// All services of the namespace but those that are only a DNS alias. Anyone who may write one may name any address in `externalIPs`
/// (CVE-2020-8554): what is a pod's or another Service's own is theirs.
pub(super) fn services(place: &Place<'_>, addresses: &Addresses, problems: &mut Vec<Problem>) -> Vec<Service> {
    let mut services = Vec::new();
    for (key, object) in place.own(&place.objects.services) {
        let Some(spec) = &object.spec else { continue };
        if spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let this = ObjectRef { kind: Kind::Service, namespace: key.0.clone(), name: key.1.clone() };
        let mut complain = |text: String| problems.push(Problem::new(Kind::Service, key, text));
        let mut vips: Vec<IpAddr> = Vec::new();
        let own = cluster_ips(spec).map(|text| (text, true));
        for (text, own) in own.chain(spec.external_ips.iter().flatten().map(|text| (text, false))) {
            let Ok(ip) = text.parse::<IpAddr>().map(|ip| ip.to_canonical()) else {
                complain(format!("{text:?} is not an address and is left out"));
                continue;
            };
            match addresses.owner(ip).filter(|owner| !own && *owner != this) {
                Some(owner) => complain(format!(
                    "its external address {ip} is that of {owner} and is left out: connections to it go there"
                )),
                None if vips.contains(&ip) => {}
                None => vips.push(ip),
            }
        }
        let ports = spec.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref())).filter_map(|port| {
            let Some(service_port) = number(port.port) else {
                complain(format!("port {} is not a TCP port and is left out", port.port));
                return None;
            };
            let target_port = match &port.target_port {
                None | Some(IntOrString::Int(0)) => Some(service_port),
                Some(IntOrString::Int(target)) => number(*target),
                // A named port is looked up at each endpoint.
                Some(IntOrString::String(_)) => None,
            };
            Some(ServicePort { service_port, target_port })
        });
        services.push(Service {
            ports: ports.collect(),
            key: service_key(key, place.config),
            name: key.1.clone(),
            vips,
            subject_alt_names: Vec::new(),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            near: near(spec),
        });
    }
    services.sort_by(|a, b| a.key.cmp(&b.key));
    services
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

/// What only the own node may serve stays there, whatever else is preferred (as kube-proxy reads the two). A value that Kubernetes does not
/// know yet prefers nothing: every endpoint is right.
fn near(spec: &ServiceSpec) -> Near {
    match (spec.internal_traffic_policy.as_deref(), spec.traffic_distribution.as_deref()) {
        (Some("Local"), _) => Near::OnlyNode,
        (_, Some("PreferSameNode")) => Near::PreferNode,
        (_, Some("PreferSameZone" | "PreferClose")) => Near::PreferZone,
        _ => Near::Any,
    }
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

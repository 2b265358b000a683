//! Services: wire → model. As with workloads, one that asks for something this mesh does not do is refused as a whole.

use std::net::IpAddr;
use std::time::Duration;

use mesh_model::{AppProtocol, External, Identity, IpFamilies, Near, Service, ServiceKey, ServicePort};

use super::field::{BadField, extension, filled, ip, known, port};
use super::{SERVICE_EXTENSION, culvert, workload as wire};

/// What a service record says.
pub(super) fn service(message: wire::Service) -> Result<Service, BadField> {
    let wire::Service {
        name,
        namespace,
        hostname,
        addresses,
        ports,
        subject_alt_names,
        waypoint,
        load_balancing,
        ip_families,
        weighted_waypoints,
        extensions,
        // A preference in lookups by host name, which L4 does not make.
        canonical: _,
        visibility: _,
        // For gateways.
        ingress_use_waypoint: _,
    } = message;
    let (publish_not_ready, near) = load_balancing.map_or(Ok((false, Near::Any)), balancing)?;
    let extension: culvert::Service = extension(SERVICE_EXTENSION, &extensions)?;
    let culvert::Service { session_affinity_seconds, external_addresses, external_preference } = extension;
    Ok(Service {
        key: ServiceKey { namespace: filled("namespace", namespace)?, hostname: filled("hostname", hostname)? },
        name,
        vips: addresses.into_iter().map(vip).collect::<Result<_, _>>()?,
        ports: ports.into_iter().map(service_port).collect::<Result<_, _>>()?,
        subject_alt_names: subject_alt_names.iter().map(|uri| Identity::parse(uri)).collect::<Result<_, _>>()?,
        publish_not_ready,
        near,
        external: external(external_addresses, external_preference)?,
        session_affinity: match session_affinity_seconds {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.into())),
        },
        ip_families: match known("ip_families", ip_families)? {
            wire::IpFamilies::Automatic => IpFamilies::Automatic,
            wire::IpFamilies::Ipv4Only => IpFamilies::V4,
            wire::IpFamilies::Ipv6Only => IpFamilies::V6,
            wire::IpFamilies::Dual => IpFamilies::Dual,
        },
        needs_waypoint: waypoint.is_some() || !weighted_waypoints.is_empty(),
    })
}

/// Addresses to which the service's own load balancing does not apply.
fn external(addresses: Vec<Vec<u8>>, preference: i32) -> Result<Option<External>, BadField> {
    let near = match known("external_preference", preference)? {
        culvert::Preference::None => Near::Any,
        culvert::Preference::Zone => Near::PreferZone,
        culvert::Preference::Node => Near::PreferNode,
    };
    let vips: Vec<IpAddr> = addresses.iter().map(|bytes| ip("external_addresses", bytes)).collect::<Result<_, _>>()?;
    Ok((!vips.is_empty()).then_some(External { vips, near }))
}

/// (not ready endpoints too, which are preferred).
fn balancing(message: wire::LoadBalancing) -> Result<(bool, Near), BadField> {
    use wire::load_balancing::{HealthPolicy, Mode, Scope};
    let wire::LoadBalancing { routing_preference, mode, health_policy } = message;
    let scopes: Vec<Scope> =
        routing_preference.into_iter().map(|scope| known("routing_preference", scope)).collect::<Result<_, _>>()?;
    let near = match known("mode", mode)? {
        // Preferences only: any endpoint will do, and those of the narrowest place that we know come first.
        Mode::Failover if scopes.contains(&Scope::Node) => Near::PreferNode,
        Mode::Failover if scopes.contains(&Scope::Zone) => Near::PreferZone,
        Mode::UnspecifiedMode | Mode::Failover => Near::Any,
        Mode::Strict if scopes.is_empty() => Near::Any,
        Mode::Strict if scopes.contains(&Scope::Node) => Near::OnlyNode,
        Mode::Strict => return Err(BadField::Unsupported("strict routing other than to the own node")),
        Mode::Passthrough => return Err(BadField::Unsupported("a passthrough service")),
    };
    let publish_not_ready = match known("health_policy", health_policy)? {
        HealthPolicy::OnlyHealthy => false,
        HealthPolicy::AllowAll => true,
    };
    Ok((publish_not_ready, near))
}

fn vip(address: wire::NetworkAddress) -> Result<IpAddr, BadField> {
    let wire::NetworkAddress { network: _, address, length } = address;
    let ip_address = ip("addresses", &address)?;
    match length {
        Some(length) if length as usize != address.len() * 8 => {
            Err(BadField::Unsupported("a block of service addresses"))
        }
        _ => Ok(ip_address),
    }
}

fn service_port(message: wire::Port) -> Result<ServicePort, BadField> {
    let wire::Port { service_port, target_port, app_protocol } = message;
    Ok(ServicePort {
        service_port: port("service_port", service_port)?,
        target_port: if target_port == 0 { None } else { Some(port("target_port", target_port)?) },
        app_protocol: match known("app_protocol", app_protocol)? {
            wire::AppProtocol::Unknown => AppProtocol::Unknown,
            wire::AppProtocol::Http11 => AppProtocol::Http11,
            wire::AppProtocol::Http2 => AppProtocol::Http2,
            wire::AppProtocol::Grpc => AppProtocol::Grpc,
            wire::AppProtocol::Tcp => AppProtocol::Tcp,
            wire::AppProtocol::Tls => AppProtocol::Tls,
        },
    })
}

//! Address resources: wire → model. Workloads here, services in [`super::service`].
//!
//! A record that asks for something this mesh does not do (gateways between networks, address blocks, unknown values) is refused as a
//! whole. To serve the part we understand would send traffic past what the record demands. One with a waypoint is kept: its own pod is
//! served by it, and whoever wants to reach it is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_model::policy::PolicyKey;
use mesh_model::{
    Endpoint, Health, Hints, NetworkPolicy, PodName, PodUid, Readiness, Service, ServiceKey, Telemetry, TrustDomain,
    Tunnel, Workload, WorkloadUid,
};

use super::field::{BadField, clip, extension, filled, ip, known, port};
use super::service::service;
use super::{WORKLOAD_EXTENSION, culvert, workload as wire};

/// What an address resource holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A workload.
    Workload(Workload),
    /// A service.
    Service(Service),
}

impl Record {
    /// The name of its resource: the workload's uid, or `namespace/hostname`.
    pub fn name(&self) -> String {
        match self {
            Record::Workload(workload) => workload.uid.to_string(),
            Record::Service(service) => service.key.to_string(),
        }
    }
}

/// An address resource cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// It holds neither.
    #[error("address resource is neither a workload nor a service")]
    Neither,
    /// A workload that cannot be used.
    #[error("workload {uid:?} cannot be used")]
    Workload {
        /// Its key.
        uid: String,
        /// Why.
        #[source]
        problem: BadField,
    },
    /// A service that cannot be used.
    #[error("service {key:?} cannot be used")]
    Service {
        /// `namespace/hostname`.
        key: String,
        /// Why.
        #[source]
        problem: BadField,
    },
}

impl TryFrom<wire::Address> for Record {
    type Error = BadAddress;

    fn try_from(address: wire::Address) -> Result<Self, BadAddress> {
        match address.r#type.ok_or(BadAddress::Neither)? {
            wire::address::Type::Workload(message) => {
                let uid = clip(&message.uid);
                workload(message).map(Record::Workload).map_err(|problem| BadAddress::Workload { uid, problem })
            }
            wire::address::Type::Service(message) => {
                let key = clip(&format!("{}/{}", message.namespace, message.hostname));
                service(message).map(Record::Service).map_err(|problem| BadAddress::Service { key, problem })
            }
        }
    }
}

fn workload(message: wire::Workload) -> Result<Workload, BadField> {
    // Taken apart: a new field must be thought about here.
    let wire::Workload {
        uid,
        name,
        namespace,
        addresses,
        tunnel_protocol,
        trust_domain,
        service_account,
        waypoint,
        node,
        authorization_policies,
        status,
        services,
        application_tunnel,
        network_gateway,
        network_mode,
        extensions,
        // A workload known only by host name has no address here and is never chosen.
        hostname: _,
        // Told apart by the gateway alone, which we refuse; the name itself decides nothing.
        network: _,
        // What a server does with its own tunnel does not concern a client.
        native_tunnel: _,
        canonical_name,
        canonical_revision,
        workload_name,
        locality,
        // The key names the cluster too; the kind of what made it is in no metric; weights are not used.
        cluster_id: _,
        workload_type: _,
        capacity: _,
    } = message;
    if network_gateway.is_some() {
        return Err(BadField::Unsupported("a network gateway"));
    }
    if application_tunnel.is_some_and(|tunnel| tunnel != wire::ApplicationTunnel::default()) {
        return Err(BadField::Unsupported("an application tunnel"));
    }
    let extension: culvert::Extension = extension(WORKLOAD_EXTENSION, &extensions)?;
    let culvert::Extension { network_policy, pod_uid, endpoints } = extension;
    let locality = locality.unwrap_or_default();
    let workload = Workload {
        uid: WorkloadUid(filled("uid", uid)?),
        pod: PodName { namespace: filled("namespace", namespace)?, name: filled("name", name)? },
        pod_uid: match pod_uid.as_str() {
            "" => None,
            text => {
                let bad = |bad: mesh_model::pod::BadPodUid| BadField::Extension {
                    name: WORKLOAD_EXTENSION,
                    problem: bad.to_string(),
                };
                Some(PodUid::parse(text).map_err(bad)?)
            }
        },
        service_account: or(service_account, "default"),
        trust_domain: TrustDomain::parse(&or(trust_domain, "cluster.local"))?,
        addresses: addresses.iter().map(|bytes| ip("addresses", bytes)).collect::<Result<_, _>>()?,
        node,
        tunnel: match known("tunnel_protocol", tunnel_protocol)? {
            wire::TunnelProtocol::None => Tunnel::Clear,
            wire::TunnelProtocol::Hbone => Tunnel::Hbone,
            wire::TunnelProtocol::LegacyIstioMtls => return Err(BadField::Unsupported("legacy Istio mTLS")),
        },
        policies: authorization_policies.iter().map(|text| policy_key(text)).collect::<Result<_, _>>()?,
        health: match known("status", status)? {
            wire::WorkloadStatus::Healthy => Health::Healthy,
            wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
        },
        services: services_of(services, endpoints)?,
        network_policy: match known("network_policy", network_policy)? {
            // Not known is taken as selected: the short way past the CNI's enforcement must be earned.
            culvert::NetworkPolicy::Unknown | culvert::NetworkPolicy::Selected => NetworkPolicy::Selected,
            culvert::NetworkPolicy::Unselected => NetworkPolicy::Unselected,
        },
        host_network: match known("network_mode", network_mode)? {
            wire::NetworkMode::Standard => false,
            wire::NetworkMode::HostNetwork => true,
        },
        telemetry: Arc::new(Telemetry {
            workload_name: clip(&workload_name),
            canonical_name: clip(&canonical_name),
            canonical_revision: clip(&canonical_revision),
            region: clip(&locality.region),
            zone: clip(&locality.zone),
            subzone: clip(&locality.subzone),
        }),
        needs_waypoint: waypoint.is_some(),
    };
    // It must be able to show an identity, or be none of the mesh's.
    if workload.tunnel == Tunnel::Hbone {
        workload.identity()?;
    }
    Ok(workload)
}

/// The services that a workload lists, and those behind which it stands by our extension.
fn services_of(
    listed: BTreeMap<String, wire::PortList>,
    beyond: BTreeMap<String, culvert::Endpoint>,
) -> Result<BTreeMap<ServiceKey, Endpoint>, BadField> {
    let mut services = BTreeMap::new();
    for (key, list) in listed {
        let pairs = list.ports.iter().map(|pair| (pair.service_port, pair.target_port));
        services.insert(service_key("services", &key)?, Endpoint::at(port_pairs(pairs)?));
    }
    for (key, endpoint) in beyond {
        let culvert::Endpoint { readiness, ports, zones, nodes } = endpoint;
        let known_as: &mut Endpoint = services.entry(service_key("endpoints", &key)?).or_default();
        known_as.ports.extend(port_pairs(ports.iter().map(|pair| (pair.service_port, pair.target_port)))?);
        known_as.readiness = match known("readiness", readiness)? {
            culvert::Readiness::Unsaid => Readiness::Unsaid,
            culvert::Readiness::Ready => Readiness::Ready,
            culvert::Readiness::Ending => Readiness::Ending,
        };
        known_as.hints = Hints { zones, nodes };
    }
    Ok(services)
}

fn service_key(field: &'static str, text: &str) -> Result<ServiceKey, BadField> {
    text.parse().map_err(|_| BadField::Key { field, text: clip(text) })
}

/// A pair without a port at the workload leads nowhere, and is no reason to do without the workload.
fn port_pairs(pairs: impl Iterator<Item = (u32, u32)>) -> Result<Vec<(u16, u16)>, BadField> {
    let pairs = pairs.filter(|(_, target)| *target != 0);
    pairs.map(|(service, target)| Ok((port("service_port", service)?, port("target_port", target)?))).collect()
}

fn policy_key(text: &str) -> Result<PolicyKey, BadField> {
    text.parse().map_err(|_| BadField::Key { field: "authorization_policies", text: clip(text) })
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

//! Endpoint slices: which workloads stand behind which service, at which ports, and whether callers are led there.
//!
//! The slice decides that for its service, as kube-proxy reads it: whoever is ready, and while there is none, whoever comes to its end and
//! still serves. What is not ready is remembered for policies, which are in force at a pod ready or not. An endpoint is a pod by
//! reference, else by address; one that is no pod (the API server, for example) becomes a workload of its own that is reached in clear
//! and is never found by its address.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice};
use mesh_api::manifests::{Key, Kind};
use mesh_model::{Health, Hints, NetworkPolicy, PodName, Telemetry, Tunnel, Workload, WorkloadUid};

use super::addresses::{Addresses, Wanted};
use super::behind::{Behind, Ports, Stand, State};
use super::place::Place;
use super::services::{is_tcp, number, service_key};
use super::workloads::{self, Compiling, Pods};
use super::{Problem, telemetry};

/// The label that names a slice's service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Pods of other namespaces, and the services of this one that they stand behind.
pub(super) type Lent = BTreeMap<Key, Behind>;

/// What the slices of a namespace have to do with other namespaces.
#[derive(Debug, Default)]
pub(super) struct Abroad {
    /// What was looked for there, found or not.
    pub(super) wanted: HashSet<Wanted>,
    pub(super) lent: Lent,
}

/// Attaches the namespace's services to its workloads.
pub(super) fn attach(place: &Place<'_>, addresses: &Addresses, pods: &mut Pods, problems: &mut Vec<Problem>) -> Abroad {
    let mut abroad = Abroad::default();
    for (key, slice) in place.own(&place.objects.endpoint_slices) {
        // Taken apart: a new field must be thought about here.
        let EndpointSlice { address_type, endpoints, metadata, ports } = slice;
        let Some(name) = metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) else { continue };
        let service_object = (key.0.clone(), name.clone());
        let Some(service) = place.objects.services.get(&service_object) else { continue };
        let mut complain = |text: String| problems.push(Problem::new(Kind::EndpointSlice, key, text));
        if !matches!(address_type.as_str(), "IPv4" | "IPv6") {
            complain(format!("addressType {address_type:?}: only IPv4 and IPv6 lead anywhere; the slice is left out"));
            continue;
        }
        let ports = match shared_ports(ports.iter().flatten(), service) {
            Ok(ports) => ports,
            Err(text) => {
                complain(text);
                continue;
            }
        };
        let service_key = service_key(&service_object, place.config);
        let unready_too = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
        if endpoints.iter().flatten().any(|endpoint| endpoint.deprecated_topology.is_some()) {
            complain("deprecatedTopology is not read: zone and nodeName say where an endpoint is".to_owned());
        }
        for endpoint in endpoints.iter().flatten() {
            let stand = Stand { ports: ports.clone(), state: state(endpoint), hints: hints(endpoint), unready_too };
            for address in &endpoint.addresses {
                let Ok(ip) = address.parse::<IpAddr>().map(|ip| ip.to_canonical()) else {
                    complain(format!("{address:?} is not an address"));
                    continue;
                };
                let found = referred(endpoint, ip, place, pods, &mut abroad.wanted)
                    .or_else(|| claiming(ip, place, addresses, &mut abroad.wanted));
                let behind = match found {
                    Some(pod) if pod.0 != place.namespace => abroad.lent.entry(pod).or_default(),
                    Some((_, name)) => match workloads::find_mut(place, pods, &name) {
                        Some(pod) => &mut pod.behind,
                        None => continue,
                    },
                    None if stand.state == State::Unready => continue,
                    None => &mut other(endpoint, key, ip, place, pods).behind,
                };
                behind.add(&service_key, &stand);
            }
        }
    }
    abroad
}

/// (service port, port at the endpoint), for each TCP port that service and slice share by name.
fn shared_ports<'s>(
    offered: impl Iterator<Item = &'s EndpointPort> + Clone,
    service: &Service,
) -> Result<Ports, String> {
    let mut pairs = Vec::new();
    let wanted = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    for port in wanted.filter(|port| is_tcp(port.protocol.as_deref())) {
        let name = port.name.as_deref().unwrap_or_default();
        let target = offered.clone().find(|candidate| {
            is_tcp(candidate.protocol.as_deref()) && candidate.name.as_deref().unwrap_or_default() == name
        });
        // A slice has only those ports that its endpoints have.
        let Some(target) = target.and_then(|target| target.port) else { continue };
        let (Some(service_port), Some(target)) = (number(port.port), number(target)) else {
            return Err(format!("port {target} of {name:?} is not a TCP port; the slice is left out"));
        };
        pairs.push((service_port, target));
    }
    Ok(pairs)
}

/// How an endpoint stands by its conditions. Absent means ready; serving is what ready is where it says nothing; not terminating.
fn state(endpoint: &Endpoint) -> State {
    let EndpointConditions { ready, serving, terminating } = endpoint.conditions.clone().unwrap_or_default();
    let ready = ready.unwrap_or(true);
    match (ready, serving.unwrap_or(ready) && terminating.unwrap_or(false)) {
        (true, _) => State::Ready,
        (false, true) => State::Ending,
        (false, false) => State::Unready,
    }
}

/// Whose clients it is meant for.
fn hints(endpoint: &Endpoint) -> Hints {
    let EndpointHints { for_nodes, for_zones } = endpoint.hints.clone().unwrap_or_default();
    Hints {
        zones: for_zones.into_iter().flatten().map(|zone| zone.name).collect(),
        nodes: for_nodes.into_iter().flatten().map(|node| node.name).collect(),
    }
}

/// The pod that an endpoint refers to, if that is the pod meant and the address is its own or not reported yet.
fn referred(
    endpoint: &Endpoint,
    ip: IpAddr,
    place: &Place<'_>,
    pods: &Pods,
    wanted: &mut HashSet<Wanted>,
) -> Option<Key> {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
    let key = (target.namespace.clone().unwrap_or_else(|| place.namespace.to_owned()), target.name.clone()?);
    if key.0 != place.namespace {
        wanted.insert(Wanted::Pod(key.clone()));
    }
    let pod = workloads::find(place, pods, &key)?;
    let workload = &pod.workload;
    let same_pod = match (&target.uid, &workload.pod_uid) {
        (Some(wanted), Some(is)) => wanted == is.as_str(),
        _ => true,
    };
    let same_address = workload.addresses.is_empty() || workload.addresses.contains(&ip);
    (same_pod && same_address).then_some(key)
}

/// The pod that has the address of an endpoint which refers to none, or to another one.
fn claiming(ip: IpAddr, place: &Place<'_>, addresses: &Addresses, wanted: &mut HashSet<Wanted>) -> Option<Key> {
    let found = addresses.at(ip);
    if found.is_none_or(|pod| pod.0 != place.namespace) {
        wanted.insert(Wanted::Address(ip));
    }
    found.cloned()
}

/// A workload for an endpoint that is no pod. It is where its node is; its zone is what the slice says, if it says any.
fn other<'p>(endpoint: &Endpoint, slice: &Key, ip: IpAddr, place: &Place<'_>, pods: &'p mut Pods) -> &'p mut Compiling {
    let Place { objects, config, .. } = *place;
    let (namespace, name) = slice;
    let node = endpoint.node_name.clone().unwrap_or_default();
    let of_node = |label: &str| telemetry::of_node(&node, label, objects).unwrap_or_default().to_owned();
    let zone = endpoint.zone.clone().filter(|zone| !zone.is_empty());
    let (region, zone) = (of_node(telemetry::REGION), zone.unwrap_or_else(|| of_node(telemetry::ZONE)));
    let subzone = of_node(telemetry::SUBZONE);
    let uid = WorkloadUid(format!("{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{ip}", config.cluster_id));
    let workload = Workload {
        uid: uid.clone(),
        pod: PodName { namespace: namespace.clone(), name: name.clone() },
        pod_uid: None,
        service_account: "default".to_owned(),
        trust_domain: config.trust_domain.clone(),
        addresses: vec![ip],
        node,
        tunnel: Tunnel::Clear,
        policies: Vec::new(),
        health: Health::Healthy,
        services: BTreeMap::new(),
        network_policy: NetworkPolicy::Selected,
        // Whoever may write a slice must not thereby say in whose name an address of the cluster answers.
        host_network: true,
        needs_waypoint: false,
        telemetry: Telemetry {
            workload_name: name.clone(),
            canonical_name: name.clone(),
            canonical_revision: "latest".to_owned(),
            region,
            zone,
            subzone,
        }
        .into(),
    };
    pods.entry(uid).or_insert(Compiling { workload, behind: Behind::default(), labels: BTreeMap::new(), ends: None })
}

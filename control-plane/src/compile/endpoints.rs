//! Endpoint slices: which workloads stand behind which service, at which ports.
//!
//! Only endpoints that are ready are attached (a slice says ready for every endpoint of a service that publishes unready ones), so
//! the slice decides for its service. An endpoint is a pod by reference, else by address; one that is no pod (the API server, for
//! example) becomes a workload of its own that is reached in clear and is never found by its address.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use mesh_api::manifests::{Key, Kind, Objects};
use mesh_model::{Health, NetworkPolicy, PodName, ServiceKey, Telemetry, Tunnel, Workload, WorkloadUid};

use super::services::{is_tcp, number, service_key};
use super::workloads::{Compiling, Pods};
use super::{CompileConfig, Problem};

/// The label that names a slice's service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Attaches services to workloads.
pub(super) fn attach(objects: &Objects, config: &CompileConfig, pods: &mut Pods, problems: &mut Vec<Problem>) {
    let by_address: HashMap<IpAddr, WorkloadUid> = pods
        .values()
        .filter(|pod| !pod.workload.host_network)
        .flat_map(|pod| pod.workload.addresses.iter().map(|ip| (*ip, pod.workload.uid.clone())))
        .collect();
    for (key, slice) in &objects.endpoint_slices {
        let labels = slice.metadata.labels.as_ref();
        let Some(name) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else { continue };
        let service_object = (key.0.clone(), name.clone());
        let Some(service) = objects.services.get(&service_object) else { continue };
        let ports = match ports(slice, service) {
            Ok(ports) => ports,
            Err(text) => {
                problems.push(Problem::new(Kind::EndpointSlice, key, text));
                continue;
            }
        };
        let service_key = service_key(&service_object, config);
        for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)) {
            for address in &endpoint.addresses {
                let Ok(ip) = address.parse::<IpAddr>().map(|ip| ip.to_canonical()) else {
                    problems.push(Problem::new(Kind::EndpointSlice, key, format!("{address:?} is not an address")));
                    continue;
                };
                let uid = pod_of(endpoint, key, ip, config, pods, &by_address)
                    .unwrap_or_else(|| other(endpoint, key, ip, config, pods));
                add(pods, &uid, &service_key, &ports);
            }
        }
    }
}

/// (service port, port at the endpoint), for each TCP port that service and slice share by name.
fn ports(slice: &EndpointSlice, service: &k8s_openapi::api::core::v1::Service) -> Result<Vec<(u16, u16)>, String> {
    let mut pairs = Vec::new();
    let wanted = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    for port in wanted.filter(|port| is_tcp(port.protocol.as_deref())) {
        let name = port.name.as_deref().unwrap_or_default();
        let target = slice.ports.iter().flatten().find(|candidate| {
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

/// Absent means ready (EndpointConditions, `ready`: "a nil value should be interpreted as true").
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
}

/// The pod behind an endpoint: the one it refers to, if that is the pod meant and the address is its own or not reported yet; else
/// the one that has the address.
fn pod_of(
    endpoint: &Endpoint,
    slice: &Key,
    ip: IpAddr,
    config: &CompileConfig,
    pods: &Pods,
    by_address: &HashMap<IpAddr, WorkloadUid>,
) -> Option<WorkloadUid> {
    let referred =
        endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod")).and_then(|target| {
            let name = PodName {
                namespace: target.namespace.clone().unwrap_or_else(|| slice.0.clone()),
                name: target.name.clone()?,
            };
            let uid = WorkloadUid::of_pod(&config.cluster_id, &name);
            let workload = &pods.get(&uid)?.workload;
            let same_pod = match (&target.uid, &workload.pod_uid) {
                (Some(wanted), Some(is)) => wanted == is.as_str(),
                _ => true,
            };
            let same_address = workload.addresses.is_empty() || workload.addresses.contains(&ip);
            (same_pod && same_address).then_some(uid)
        });
    referred.or_else(|| by_address.get(&ip).cloned())
}

/// A workload for an endpoint that is no pod.
fn other(endpoint: &Endpoint, slice: &Key, ip: IpAddr, config: &CompileConfig, pods: &mut Pods) -> WorkloadUid {
    let (namespace, name) = slice;
    let uid = WorkloadUid(format!("{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{ip}", config.cluster_id));
    let workload = Workload {
        uid: uid.clone(),
        pod: PodName { namespace: namespace.clone(), name: name.clone() },
        pod_uid: None,
        service_account: "default".to_owned(),
        trust_domain: config.trust_domain.clone(),
        addresses: vec![ip],
        node: endpoint.node_name.clone().unwrap_or_default(),
        tunnel: Tunnel::Clear,
        policies: Vec::new(),
        health: Health::Healthy,
        services: BTreeMap::new(),
        network_policy: NetworkPolicy::Selected,
        // Whoever may write a slice must not thereby say in whose name an address of the cluster answers.
        host_network: true,
        telemetry: Telemetry {
            workload_name: name.clone(),
            canonical_name: name.clone(),
            canonical_revision: "latest".to_owned(),
            region: String::new(),
            zone: endpoint.zone.clone().unwrap_or_default(),
        }
        .into(),
    };
    pods.entry(uid.clone()).or_insert(Compiling { workload, labels: BTreeMap::new(), ends: None });
    uid
}

fn add(pods: &mut Pods, uid: &WorkloadUid, service: &ServiceKey, ports: &[(u16, u16)]) {
    let Some(pod) = pods.get_mut(uid) else { return };
    let have = pod.workload.services.entry(service.clone()).or_default();
    for pair in ports {
        if !have.contains(pair) {
            have.push(*pair);
        }
    }
}

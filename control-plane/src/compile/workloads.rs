//! Pods as workloads. A workload is there as soon as its pod is bound to a node, with the policies that select it and no address:
//! waiting for the address would leave a new pod unknown to its own node while it starts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::{self, Enrolment, Kind, Objects, Pod};
use mesh_model::{Health, NetworkPolicy, PodName, Tunnel, Workload, WorkloadUid};

use super::selector::Labels;
use super::{CompileConfig, Problem, telemetry};

/// A workload on its way, with what only compiling needs.
pub(super) struct Compiling {
    pub(super) workload: Workload,
    pub(super) labels: Labels,
    /// When it must be over, if it is on its way out.
    pub(super) ends: Option<Timestamp>,
}

/// By key.
pub(super) type Pods = BTreeMap<WorkloadUid, Compiling>;

/// All pods that are bound to a node and not over.
pub(super) fn workloads(objects: &Objects, config: &CompileConfig, problems: &mut Vec<Problem>) -> Pods {
    let mut pods = Pods::new();
    for (key, pod) in &objects.pods {
        let (namespace, name) = key;
        let Some(node) = manifests::node_name(pod) else { continue };
        if manifests::is_terminal(pod) {
            continue;
        }
        let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        let pod_name = PodName { namespace: namespace.clone(), name: name.clone() };
        let uid = WorkloadUid::of_pod(&config.cluster_id, &pod_name);
        let mut workload = Workload {
            uid: uid.clone(),
            pod: pod_name,
            pod_uid: manifests::pod_uid(pod),
            service_account: manifests::service_account(pod).to_owned(),
            trust_domain: config.trust_domain.clone(),
            addresses: manifests::pod_ips(pod),
            node: node.to_owned(),
            tunnel: tunnel(objects, config, namespace, pod),
            policies: Vec::new(),
            health: health(pod),
            services: BTreeMap::new(),
            network_policy: NetworkPolicy::Selected,
            host_network,
            telemetry: telemetry::of(pod, node, objects).into(),
        };
        if workload.tunnel == Tunnel::Hbone
            && let Err(error) = workload.identity()
        {
            problems.push(Problem::new(Kind::Pod, key, format!("stays outside the mesh: {error}")));
            workload.tunnel = Tunnel::Clear;
        }
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let ends = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
        pods.insert(uid, Compiling { workload, labels, ends });
    }
    pods
}

/// The pods of a namespace, whose keys stand beside each other: a policy must not look at all pods of a large mesh.
pub(super) fn of_namespace<'a>(
    pods: &'a mut Pods,
    config: &CompileConfig,
    namespace: &str,
) -> impl Iterator<Item = &'a mut Compiling> + use<'a> {
    let nobody = PodName { namespace: namespace.to_owned(), name: String::new() };
    let first = WorkloadUid::of_pod(&config.cluster_id, &nobody);
    // It ends with a slash, behind which comes a zero.
    let end = WorkloadUid(format!("{}0", first.0.trim_end_matches('/')));
    pods.range_mut(first..end).map(|(_, pod)| pod)
}

/// Two pods with one address: a mistake, or the moment in which an address is used again. Proxies take it for the one that
/// [`mesh_model::Mesh::workload_at`] names, and whoever answers there with another identity is refused; so nobody gets more than he
/// had, and the others are told that they are not reached.
pub(super) fn shared_addresses(pods: &Pods, problems: &mut Vec<Problem>) {
    let mut claims: BTreeMap<IpAddr, Vec<&Compiling>> = BTreeMap::new();
    // The address of a host-network pod is its node's, which it shares with others rightly.
    for pod in pods.values().filter(|pod| !pod.workload.host_network) {
        for ip in &pod.workload.addresses {
            claims.entry(ip.to_canonical()).or_default().push(pod);
        }
    }
    for (ip, claims) in claims.iter_mut().filter(|(_, claims)| claims.len() > 1) {
        claims.sort_by(|one, other| one.workload.claim_order(&other.workload));
        let Some((first, others)) = claims.split_first() else { continue };
        // One that leaves has had its address: that is how addresses are used again.
        for other in others.iter().filter(|other| other.ends.is_none()) {
            let pod = &other.workload.pod;
            let key = (pod.namespace.clone(), pod.name.clone());
            let text = format!(
                "reports the address {ip}, which Pod {} reports as well: connections to it are taken for that pod's, and this one is \
                 not reached there until one of the two is gone",
                first.workload.pod
            );
            problems.push(Problem::new(Kind::Pod, &key, text));
        }
    }
}

/// HBONE exactly where the node captures the pod: both sides decide by the same function.
fn tunnel(objects: &Objects, config: &CompileConfig, namespace: &str, pod: &Pod) -> Tunnel {
    match manifests::enrolled(objects.namespaces.get(namespace), pod, &config.excluded_namespaces) {
        Enrolment::Enrolled => Tunnel::Hbone,
        Enrolment::Plain(_) => Tunnel::Clear,
    }
}

/// A pod that is on its way out is not chosen; one that says nothing about its readiness is.
fn health(pod: &Pod) -> Health {
    let leaving = pod.metadata.deletion_timestamp.is_some();
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let said = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    if leaving || said.is_some_and(|condition| condition.status != "True") {
        Health::Unhealthy
    } else {
        Health::Healthy
    }
}

//! Pods as workloads. A workload is there as soon as its pod is bound to a node, with the policies that select it and no address:
//! waiting for the address would leave a new pod unknown to its own node while it starts.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::{self, Enrolment, Key, Kind, Objects, Pod};
use mesh_model::{Health, NetworkPolicy, PodName, Tunnel, Workload, WorkloadUid};

use super::behind::Behind;
use super::place::Place;
use super::selector::Labels;
use super::{CompileConfig, Problem, telemetry};

/// A workload on its way, with what only compiling needs.
#[derive(Clone)]
pub(super) struct Compiling {
    pub(super) workload: Workload,
    /// The services behind which it stands.
    pub(super) behind: Behind,
    pub(super) labels: Labels,
    /// When it must be over, if it is on its way out.
    pub(super) ends: Option<Timestamp>,
}

/// Those of one namespace, by key.
pub(super) type Pods = BTreeMap<WorkloadUid, Compiling>;

/// All pods of the namespace that are bound to a node and not over.
pub(super) fn workloads(place: &Place<'_>, problems: &mut Vec<Problem>) -> Pods {
    let pods = place.own(&place.objects.pods).filter_map(|(key, pod)| one(place, key, pod, problems));
    pods.map(|pod| (pod.workload.uid.clone(), pod)).collect()
}

/// A pod of any namespace, those of this one being known. What is wrong with another one is told where it is.
pub(super) fn find<'p>(place: &Place<'_>, pods: &'p Pods, key: &Key) -> Option<Cow<'p, Compiling>> {
    if key.0 == place.namespace {
        return pods.get(&uid(place, &key.1)).map(Cow::Borrowed);
    }
    one(place, key, place.objects.pods.get(key)?, &mut Vec::new()).map(Cow::Owned)
}

/// A pod of this namespace.
pub(super) fn find_mut<'p>(place: &Place<'_>, pods: &'p mut Pods, name: &str) -> Option<&'p mut Compiling> {
    pods.get_mut(&uid(place, name))
}

fn uid(place: &Place<'_>, name: &str) -> WorkloadUid {
    let pod = PodName { namespace: place.namespace.to_owned(), name: name.to_owned() };
    WorkloadUid::of_pod(&place.config.cluster_id, &pod)
}

fn one(place: &Place<'_>, key: &Key, pod: &Pod, problems: &mut Vec<Problem>) -> Option<Compiling> {
    let (namespace, name) = key;
    let node = manifests::node_name(pod)?;
    if manifests::is_terminal(pod) {
        return None;
    }
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let pod_name = PodName { namespace: namespace.clone(), name: name.clone() };
    let mut workload = Workload {
        uid: WorkloadUid::of_pod(&place.config.cluster_id, &pod_name),
        pod: pod_name,
        pod_uid: manifests::pod_uid(pod),
        service_account: manifests::service_account(pod).to_owned(),
        trust_domain: place.config.trust_domain.clone(),
        addresses: manifests::pod_ips(pod),
        node: node.to_owned(),
        tunnel: tunnel(place.objects, place.config, namespace, pod),
        policies: Vec::new(),
        health: health(pod),
        services: BTreeMap::new(),
        network_policy: NetworkPolicy::Selected,
        host_network,
        needs_waypoint: false,
        telemetry: telemetry::of(pod, node, place.objects).into(),
    };
    if workload.tunnel == Tunnel::Hbone
        && let Err(error) = workload.identity()
    {
        problems.push(Problem::new(Kind::Pod, key, format!("stays outside the mesh: {error}")));
        workload.tunnel = Tunnel::Clear;
    }
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let ends = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    Some(Compiling { workload, behind: Behind::default(), labels, ends })
}

/// HBONE exactly where the node captures the pod: both sides decide by the same function.
fn tunnel(objects: &Objects, config: &CompileConfig, namespace: &str, pod: &Pod) -> Tunnel {
    match manifests::enrolled(objects.namespaces.get(namespace), pod, &config.outside) {
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

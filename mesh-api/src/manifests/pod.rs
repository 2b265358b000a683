//! What the mesh reads from a pod.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_model::{PodName, PodUid};

/// On the object that kubelet makes in the API for a static pod.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

/// Namespace and name.
pub fn pod_name(pod: &Pod) -> PodName {
    PodName {
        namespace: pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name: pod.metadata.name.clone().unwrap_or_default(),
    }
}

/// Its uid, where it has a usable one.
pub fn pod_uid(pod: &Pod) -> Option<PodUid> {
    PodUid::parse(pod.metadata.uid.as_deref()?).ok()
}

/// What a mirror pod says its static pod is called: the hash of its file, by which kubelet names cgroups and calls the runtime, while
/// the object has a uid of the API server's. kubelet writes it twice, and this is the one that the API server lets nobody add, change
/// or remove later. Whoever may create pods may still create one that says so: it is a claim, not a proof.
pub fn static_uid(pod: &Pod) -> Option<PodUid> {
    PodUid::parse(pod.metadata.annotations.as_ref()?.get(MIRROR)?).ok()
}

/// The node it is bound to.
pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// The service account it runs as; `default` if the pod names none.
pub fn service_account(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    let named = spec.and_then(|spec| spec.service_account_name.as_deref().or(spec.service_account.as_deref()));
    named.filter(|name| !name.is_empty()).unwrap_or("default")
}

/// Its addresses as the API knows them, in their order, each once; `podIP` where there is no list. What is not an address is left out.
pub fn pod_ips(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = pod.status.as_ref() else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
    let mut seen = BTreeSet::new();
    let all = listed.chain(status.pod_ip.as_deref()).filter_map(|text| text.parse::<IpAddr>().ok());
    all.map(|ip| ip.to_canonical()).filter(|ip| seen.insert(*ip)).collect()
}

/// Whether it has ended for good: then its addresses may be another's already.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether it says of itself that it is ready, and is not being deleted.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready =
        conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none() && !is_terminal(pod)
}

/// The TCP ports that kubelet connects to on this pod: probes and lifecycle hooks, of init containers too (sidecars have probes);
/// ascending, each once. A handler with a `host` of its own goes elsewhere, unless that is the pod's address.
pub fn probe_ports(pod: &Pod) -> Vec<u16> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let addresses = pod_ips(pod);
    let mut ports = BTreeSet::new();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        ports.extend(wanted(container, &addresses).filter_map(|port| resolve(container, &port)));
    }
    ports.into_iter().collect()
}

fn wanted<'a>(container: &'a Container, addresses: &'a [IpAddr]) -> impl Iterator<Item = IntOrString> + 'a {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let hooks = container.lifecycle.as_ref().map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
    let probes = probes.into_iter().flatten().flat_map(|probe| of_probe(probe, addresses));
    probes.chain(hooks.into_iter().flatten().flatten().flat_map(|hook| of_hook(hook, addresses)))
}

fn of_probe(probe: &Probe, addresses: &[IpAddr]) -> Vec<IntOrString> {
    let http = probe.http_get.as_ref().and_then(|http| of_http(http, addresses));
    let tcp =
        probe.tcp_socket.as_ref().filter(|tcp| is_here(tcp.host.as_deref(), addresses)).map(|tcp| tcp.port.clone());
    let grpc = probe.grpc.as_ref().map(|grpc| IntOrString::Int(grpc.port));
    [http, tcp, grpc].into_iter().flatten().collect()
}

fn of_hook(hook: &LifecycleHandler, addresses: &[IpAddr]) -> Vec<IntOrString> {
    let http = hook.http_get.as_ref().and_then(|http| of_http(http, addresses));
    let tcp =
        hook.tcp_socket.as_ref().filter(|tcp| is_here(tcp.host.as_deref(), addresses)).map(|tcp| tcp.port.clone());
    [http, tcp].into_iter().flatten().collect()
}

fn of_http(http: &HTTPGetAction, addresses: &[IpAddr]) -> Option<IntOrString> {
    is_here(http.host.as_deref(), addresses).then(|| http.port.clone())
}

fn is_here(host: Option<&str>, addresses: &[IpAddr]) -> bool {
    match host {
        None | Some("") => true,
        Some(host) => host.parse::<IpAddr>().is_ok_and(|ip| addresses.contains(&ip.to_canonical())),
    }
}

/// A number, or the name of a TCP port of the same container.
fn resolve(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| {
                port.name.as_deref() == Some(name) && port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
            });
            named.map(|port| port.container_port).or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    #[test]
    fn probe_and_hook_ports_are_found_wherever_they_are() {
        let pod = pod(json!({
            "metadata": {"name": "x"},
            "spec": {
                "containers": [{
                    "name": "app",
                    "ports": [{"name": "web", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}],
                    "livenessProbe": {"httpGet": {"port": "web"}},
                    "readinessProbe": {"tcpSocket": {"port": 8081}},
                    "startupProbe": {"grpc": {"port": 8082}},
                    "lifecycle": {"postStart": {"httpGet": {"port": 8083}}, "preStop": {"tcpSocket": {"port": "8084"}}},
                }, {
                    "name": "other",
                    "livenessProbe": {"httpGet": {"port": "web"}},
                    "readinessProbe": {"exec": {"command": ["true"]}},
                    "startupProbe": {"httpGet": {"port": "dns"}},
                }],
                "initContainers": [{"name": "sidecar", "readinessProbe": {"httpGet": {"port": 8085}}}],
            },
        }));
        assert_eq!(probe_ports(&pod), [8080, 8081, 8082, 8083, 8084, 8085]);
    }

    #[test]
    fn a_probe_of_another_host_or_of_no_port_counts_for_nothing() {
        let pod = pod(json!({
            "metadata": {"name": "x"},
            "spec": {"containers": [{
                "name": "app",
                "livenessProbe": {"httpGet": {"port": 1, "host": "example.com"}},
                "readinessProbe": {"httpGet": {"port": 2, "host": "198.18.1.2"}},
                "startupProbe": {"tcpSocket": {"port": 70000}},
                "lifecycle": {"preStop": {"httpGet": {"port": 0}}},
            }]},
            "status": {"podIP": "198.18.1.2"},
        }));
        assert_eq!(probe_ports(&pod), [2]);
    }

    #[test]
    fn the_service_account_is_named_or_default() {
        let account = |spec: Value| service_account(&pod(json!({"metadata": {}, "spec": spec}))).to_owned();
        assert_eq!(account(json!({"containers": [], "serviceAccountName": "cart"})), "cart");
        assert_eq!(account(json!({"containers": [], "serviceAccount": "old"})), "old");
        assert_eq!(account(json!({"containers": [], "serviceAccountName": ""})), "default");
        assert_eq!(service_account(&Pod::default()), "default");
    }

    #[test]
    fn only_a_mirror_pod_names_a_static_pod_and_only_by_what_can_be_a_uid() {
        let named = |annotations: Value| {
            let pod = pod(json!({"metadata": {"uid": "u1", "annotations": annotations}}));
            static_uid(&pod).map(|uid| uid.to_string())
        };
        let hash = "5b0e2a1c9d3f4e6a8b7c6d5e4f3a2b1c";
        assert_eq!(named(json!({"kubernetes.io/config.mirror": hash})).as_deref(), Some(hash));
        // Anybody may write these onto a pod that runs.
        assert_eq!(named(json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.source": "file"})), None);
        assert_eq!(named(json!({"kubernetes.io/config.mirror": "../x"})), None);
        assert_eq!(named(json!({"kubernetes.io/config.mirror": ""})), None);
    }

    #[test]
    fn addresses_are_canonical_and_each_there_once() {
        let ips = |status: Value| pod_ips(&pod(json!({"metadata": {}, "status": status})));
        let two = json!({"podIP": "198.18.1.2", "podIPs": [{"ip": "198.18.1.2"}, {"ip": "fd77::2"}]});
        assert_eq!(ips(two), ["198.18.1.2".parse::<IpAddr>(), "fd77::2".parse()].map(|ip| ip.expect("an address")));
        assert_eq!(ips(json!({"podIP": "::ffff:198.18.1.2"})), ["198.18.1.2".parse::<IpAddr>().expect("an address")]);
        assert_eq!(ips(json!({"podIPs": [{"ip": "none"}]})), Vec::<IpAddr>::new());
        assert_eq!(pod_ips(&Pod::default()), Vec::<IpAddr>::new());
    }

    #[test]
    fn a_pod_is_ready_when_it_says_so_and_is_not_on_its_way_out() {
        let with = |metadata: Value, status: Value| pod(json!({"metadata": metadata, "status": status}));
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        assert!(is_ready(&with(json!({}), ready.clone())));
        assert!(!is_ready(&with(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), ready)));
        assert!(!is_ready(&with(json!({}), json!({"conditions": [{"type": "Ready", "status": "False"}]}))));
        assert!(!is_ready(&Pod::default()));
        assert!(is_terminal(&with(json!({}), json!({"phase": "Succeeded"}))));
        assert!(!is_terminal(&with(json!({}), json!({"phase": "Running"}))));
    }
}

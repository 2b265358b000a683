//! The cluster's objects as manifests in a directory: the lab's stand-in for the API server, its endpoint controller, and
//! the `/etc/hosts` that stands in for cluster DNS.
//!
//! Everything here is a pure function from what the lab knows to text; `lab` writes it by temporary file and rename.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::plan::{self, Families};
use crate::pod::PodRecord;

/// The label that puts a namespace or a pod into the mesh (`enabled`) or a pod out of it (`disabled`).
pub const MESH: &str = "culvert.io/mesh";

/// A Service to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Pods with all of these labels are its endpoints.
    pub selector: BTreeMap<String, String>,
    /// (port, target port)
    pub ports: Vec<(u16, u16)>,
    /// No virtual address: its name stands for its pods.
    pub headless: bool,
}

impl Service {
    /// A service whose pods carry the label `app: <name>`.
    pub fn new(namespace: &str, name: &str) -> Service {
        Service {
            namespace: namespace.into(),
            name: name.into(),
            selector: BTreeMap::from([("app".into(), name.into())]),
            ports: Vec::new(),
            headless: false,
        }
    }

    /// With a port.
    pub fn port(mut self, port: u16, target: u16) -> Service {
        self.ports.push((port, target));
        self
    }

    /// Without a virtual address.
    pub fn headless(mut self) -> Service {
        self.headless = true;
        self
    }

    /// With another selector.
    pub fn selector(mut self, label: &str, value: &str) -> Service {
        self.selector = BTreeMap::from([(label.into(), value.into())]);
        self
    }

    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
    }
}

/// A Service that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// As asked for.
    pub service: Service,
    /// Its virtual addresses; none when headless.
    pub ips: Vec<IpAddr>,
}

/// A label map from pairs.
pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(crate) fn namespace(name: &str, labels: &BTreeMap<String, String>) -> Value {
    let mut labels = labels.clone();
    labels.insert("kubernetes.io/metadata.name".into(), name.into());
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

pub(crate) fn service_account(namespace: &str, name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": namespace, "name": name } })
}

pub(crate) fn pod(record: &PodRecord) -> Value {
    let PodRecord { pod, uid, node, ips, ready, ending, running, .. } = record;
    let name_of = |ip: &IpAddr| json!({ "ip": ip });
    let ports: Vec<Value> = pod.app.ports().iter().map(|p| json!({ "containerPort": p, "protocol": "TCP" })).collect();
    let mut container = json!({ "name": "app", "image": "localhost/app", "ports": ports });
    let mut containers = Vec::new();
    for (index, port) in pod.probe_ports.iter().enumerate() {
        let probe = json!({ "tcpSocket": { "port": port }, "periodSeconds": 1 });
        match index {
            0 => container["readinessProbe"] = probe,
            1 => container["livenessProbe"] = probe,
            _ => containers
                .push(json!({ "name": format!("probed-{port}"), "image": "localhost/app", "readinessProbe": probe })),
        }
    }
    containers.insert(0, container);
    let mut metadata = json!({
        "namespace": pod.namespace, "name": pod.name, "uid": uid, "labels": pod.labels, "annotations": pod.annotations,
    });
    if *ending {
        // When it must be over: it has all the time that a test lets it have.
        metadata["deletionTimestamp"] = json!("2100-01-01T00:00:00Z");
    }
    let condition = |kind: &str, on: bool| json!({ "type": kind, "status": if on { "True" } else { "False" } });
    let mut status = json!({
        "phase": if *running { "Running" } else { "Pending" },
        "conditions": [condition("PodScheduled", true), condition("Ready", *ready && !*ending)],
        "hostIP": plan::node_v4(*node),
    });
    if let Some(first) = ips.first() {
        status["podIP"] = json!(first);
        status["podIPs"] = ips.iter().map(name_of).collect();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "nodeName": plan::node_name(*node), "serviceAccountName": pod.service_account,
            "hostNetwork": pod.host_network, "containers": containers,
        },
        "status": status,
    })
}

pub(crate) fn service(record: &ServiceRecord, families: Families) -> Value {
    let ServiceRecord { service, ips } = record;
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|(port, target)| json!({ "name": format!("p{port}"), "port": port, "targetPort": target, "protocol": "TCP" }))
        .collect();
    let mut names: Vec<&str> = Vec::new();
    names.extend(families.v4().then_some("IPv4"));
    names.extend(families.v6().then_some("IPv6"));
    let cluster_ips: Vec<String> =
        if service.headless { vec!["None".into()] } else { ips.iter().map(IpAddr::to_string).collect() };
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": service.namespace, "name": service.name },
        "spec": {
            "selector": service.selector, "ports": ports, "clusterIP": cluster_ips.first(), "clusterIPs": cluster_ips,
            "ipFamilies": names, "type": "ClusterIP",
        },
    })
}

/// The endpoint controller: one slice per family, as Kubernetes makes them.
pub(crate) fn endpoint_slices(record: &ServiceRecord, pods: &[PodRecord], families: Families) -> Vec<Value> {
    let service = &record.service;
    let chosen = || pods.iter().filter(|p| p.pod.namespace == service.namespace && service.selects(&p.pod.labels));
    let mut slices = Vec::new();
    for v4 in [true, false] {
        if !(if v4 { families.v4() } else { families.v6() }) {
            continue;
        }
        let endpoints: Vec<Value> = chosen()
            .filter_map(|p| Some((p, p.ips.iter().find(|ip| ip.is_ipv4() == v4)?)))
            .map(|(p, ip)| {
                json!({
                    "addresses": [ip], "nodeName": plan::node_name(p.node),
                    "conditions": { "ready": p.ready && !p.ending, "serving": p.ready, "terminating": p.ending },
                    "targetRef": { "kind": "Pod", "namespace": p.pod.namespace, "name": p.pod.name, "uid": p.uid },
                })
            })
            .collect();
        let ports: Vec<Value> = service
            .ports
            .iter()
            .map(|(port, target)| json!({ "name": format!("p{port}"), "port": target, "protocol": "TCP" }))
            .collect();
        let family = if v4 { "ipv4" } else { "ipv6" };
        slices.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": service.namespace, "name": format!("{}-{family}", service.name),
                "labels": { "kubernetes.io/service-name": service.name },
            },
            "addressType": if v4 { "IPv4" } else { "IPv6" }, "endpoints": endpoints, "ports": ports,
        }));
    }
    slices
}

/// The /etc/hosts of a pod: itself, every service by its four names, headless ones by their ready pods.
pub(crate) fn hosts(of: &PodRecord, services: &[ServiceRecord], pods: &[PodRecord]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned();
    for ip in &of.ips {
        text += &format!("{ip} {}\n", of.pod.name);
    }
    for record in services {
        let Service { namespace, name, headless, .. } = &record.service;
        let mut names = format!("{name}.{namespace}.svc.cluster.local {name}.{namespace}.svc {name}.{namespace}");
        if *namespace == of.pod.namespace {
            names += &format!(" {name}");
        }
        let of_pods = pods
            .iter()
            .filter(|p| p.ready && !p.ending && p.pod.namespace == *namespace && record.service.selects(&p.pod.labels));
        let ips: Vec<IpAddr> =
            if *headless { of_pods.flat_map(|p| p.ips.clone()).collect() } else { record.ips.clone() };
        for ip in ips {
            text += &format!("{ip} {names}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Pod;

    fn ready(name: &str, ip: &str) -> PodRecord {
        let mut record = PodRecord::new(Pod::new("shop", name).label("app", "web"), 1);
        record.ips = vec![ip.parse().expect("an address")];
        record.ready = true;
        record
    }

    #[test]
    fn a_pod_that_is_going_away_is_terminating_and_not_ready() {
        let record = ServiceRecord { service: Service::new("shop", "web").port(80, 8080), ips: Vec::new() };
        let mut going = ready("b", "198.18.1.3");
        going.ending = true;
        let slices = endpoint_slices(&record, &[ready("a", "198.18.1.2"), going], Families::V4);
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0]["endpoints"][0]["conditions"]["ready"], true);
        assert_eq!(slices[0]["endpoints"][1]["conditions"]["ready"], false);
        assert_eq!(slices[0]["endpoints"][1]["conditions"]["terminating"], true);
        assert_eq!(slices[0]["ports"][0]["port"], 8080);
    }

    #[test]
    fn a_headless_name_stands_for_the_ready_pods_and_the_short_name_only_in_its_namespace() {
        let headless = ServiceRecord { service: Service::new("shop", "web").headless(), ips: Vec::new() };
        let pods = [ready("a", "198.18.1.2")];
        let inside = hosts(&pods[0], std::slice::from_ref(&headless), &pods);
        assert!(inside.contains("198.18.1.2 web.shop.svc.cluster.local web.shop.svc web.shop web\n"), "{inside}");
        let outside = hosts(&PodRecord::new(Pod::new("other", "x"), 1), &[headless], &pods);
        assert!(outside.contains("web.shop\n"), "{outside}");
    }
}

//! Every field of Service and EndpointSlice: what proxies are told differs by it, or somebody else carries it out and the mesh is not in the
//! way, or its use is told by an Event. A field that a new version of Kubernetes brings does not compile here until it has a row.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    ClientIPConfig, ObjectReference, Service, ServicePort, ServiceSpec, SessionAffinityConfig,
};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_api::xds::{policy_resource, service_resource, workload_resource};

use super::{compiled, object, pod};

/// What becomes of a field.
enum Row {
    /// Metadata and status.
    Aside,
    /// Its own fields have rows.
    Within,
    /// Proxies are told something else by the change.
    Carried(Change),
    /// The same, where the first change is made already.
    CarriedWith(Change, Change),
    /// By whom it is carried out; proxies are told the same, and nobody has to know.
    Elsewhere(&'static str, Change),
    /// What the Event says.
    Told(&'static str, Change),
}

use Row::{Aside, Carried, CarriedWith, Elsewhere, Told, Within};

/// At most so many fields may be told of and not carried out.
const MOST_TOLD: usize = 10;

type Change = fn(&mut World);

macro_rules! fields {
    ($($of:ident { $($field:ident),+ $(,)? })+) => {
        /// Type and field, all there are.
        const FIELDS: &[(&str, &str)] = &[$($((stringify!($of), stringify!($field))),+),+];
        $(const _: fn($of) = |value| { let $of { $($field: _),+ } = value; };)+
    };
}

fields! {
    Service { metadata, spec, status }
    ServiceSpec {
        allocate_load_balancer_node_ports, cluster_ip, cluster_ips, external_ips, external_name, external_traffic_policy,
        health_check_node_port, internal_traffic_policy, ip_families, ip_family_policy, load_balancer_class, load_balancer_ip,
        load_balancer_source_ranges, ports, publish_not_ready_addresses, selector, session_affinity, session_affinity_config,
        traffic_distribution, type_,
    }
    ServicePort { app_protocol, name, node_port, port, protocol, target_port }
    SessionAffinityConfig { client_ip }
    ClientIPConfig { timeout_seconds }
    EndpointSlice { address_type, endpoints, metadata, ports }
    Endpoint { addresses, conditions, deprecated_topology, hints, hostname, node_name, target_ref, zone }
    EndpointConditions { ready, serving, terminating }
    EndpointHints { for_nodes, for_zones }
    ForNode { name }
    ForZone { name }
    EndpointPort { app_protocol, name, port, protocol }
    ObjectReference { api_version, field_path, kind, name, namespace, resource_version, uid }
}

const CLOUD: &str = "the API server and the load balancer's controller: for clients from outside";
const DNS: &str = "the cluster's DNS";

const ROWS: &[(&str, &str, Row)] = &[
    ("Service", "metadata", Aside),
    ("Service", "spec", Within),
    ("Service", "status", Aside),
    (
        "ServiceSpec",
        "allocate_load_balancer_node_ports",
        Elsewhere(CLOUD, |w| w.spec().allocate_load_balancer_node_ports = Some(true)),
    ),
    (
        "ServiceSpec",
        "cluster_ip",
        CarriedWith(|w| w.spec().cluster_ips = None, |w| w.spec().cluster_ip = text("198.18.9.9")),
    ),
    (
        "ServiceSpec",
        "cluster_ips",
        Carried(|w| w.spec().cluster_ips = Some(vec!["198.18.9.2".into(), "fd77::9".into()])),
    ),
    ("ServiceSpec", "external_ips", Carried(|w| w.spec().external_ips = Some(vec!["203.0.113.9".into()]))),
    ("ServiceSpec", "external_name", Elsewhere(DNS, |w| w.spec().external_name = text("example.com"))),
    (
        "ServiceSpec",
        "external_traffic_policy",
        Elsewhere("kube-proxy, for clients from outside: those of the cluster are led to every endpoint", |w| {
            w.spec().external_ips = None;
            w.spec().external_traffic_policy = text("Local");
        }),
    ),
    (
        "ServiceSpec",
        "health_check_node_port",
        Elsewhere("kube-proxy, for load balancers", |w| w.spec().health_check_node_port = Some(30_001)),
    ),
    ("ServiceSpec", "internal_traffic_policy", Carried(|w| w.spec().internal_traffic_policy = text("Local"))),
    ("ServiceSpec", "ip_families", Carried(|w| w.spec().ip_families = Some(vec!["IPv4".into()]))),
    (
        "ServiceSpec",
        "ip_family_policy",
        Elsewhere("the API server, which gives addresses by it", |w| w.spec().ip_family_policy = text("SingleStack")),
    ),
    ("ServiceSpec", "load_balancer_class", Elsewhere(CLOUD, |w| w.spec().load_balancer_class = text("example.com/lb"))),
    ("ServiceSpec", "load_balancer_ip", Elsewhere(CLOUD, |w| w.spec().load_balancer_ip = text("203.0.113.9"))),
    (
        "ServiceSpec",
        "load_balancer_source_ranges",
        Elsewhere("the load balancer, and kube-proxy at its addresses", |w| {
            w.spec().load_balancer_source_ranges = Some(vec!["203.0.113.0/24".into()])
        }),
    ),
    ("ServiceSpec", "ports", Within),
    ("ServiceSpec", "publish_not_ready_addresses", Carried(|w| w.spec().publish_not_ready_addresses = Some(true))),
    ("ServiceSpec", "selector", Carried(|w| w.spec().selector = Some([("app".to_owned(), "web".to_owned())].into()))),
    ("ServiceSpec", "session_affinity", Carried(|w| w.spec().session_affinity = text("ClientIP"))),
    ("ServiceSpec", "session_affinity_config", Within),
    ("ServiceSpec", "traffic_distribution", Carried(|w| w.spec().traffic_distribution = text("PreferSameZone"))),
    ("ServiceSpec", "type_", Carried(|w| w.spec().type_ = text("ExternalName"))),
    ("ServicePort", "app_protocol", Carried(|w| w.port().app_protocol = text("kubernetes.io/h2c"))),
    ("ServicePort", "name", Carried(|w| w.port().name = text("another"))),
    (
        "ServicePort",
        "node_port",
        Elsewhere("kube-proxy, at the nodes' addresses", |w| w.port().node_port = Some(30_000)),
    ),
    ("ServicePort", "port", Carried(|w| w.port().port = 81)),
    ("ServicePort", "protocol", Carried(|w| w.port().protocol = text("UDP"))),
    ("ServicePort", "target_port", Carried(|w| w.port().target_port = Some(IntOrString::Int(8081)))),
    ("SessionAffinityConfig", "client_ip", Within),
    (
        "ClientIPConfig",
        "timeout_seconds",
        CarriedWith(
            |w| w.spec().session_affinity = text("ClientIP"),
            |w| {
                let client_ip = Some(ClientIPConfig { timeout_seconds: Some(60) });
                w.spec().session_affinity_config = Some(SessionAffinityConfig { client_ip });
            },
        ),
    ),
    ("EndpointSlice", "address_type", Told("addressType \"FQDN\"", |w| w.slice.address_type = "FQDN".into())),
    ("EndpointSlice", "endpoints", Within),
    ("EndpointSlice", "metadata", Aside),
    ("EndpointSlice", "ports", Within),
    ("Endpoint", "addresses", Carried(|w| w.no_pod().addresses = vec!["203.0.113.8".into()])),
    ("Endpoint", "conditions", Within),
    (
        "Endpoint",
        "deprecated_topology",
        Told("deprecatedTopology is not read", |w| {
            w.pod().deprecated_topology = Some([("zone".to_owned(), "a".to_owned())].into())
        }),
    ),
    ("Endpoint", "hints", Within),
    ("Endpoint", "hostname", Elsewhere(DNS, |w| w.pod().hostname = text("cart-0"))),
    ("Endpoint", "node_name", Carried(|w| w.no_pod().node_name = text("node-2"))),
    ("Endpoint", "target_ref", Within),
    ("Endpoint", "zone", Carried(|w| w.no_pod().zone = text("b"))),
    ("EndpointConditions", "ready", Carried(|w| w.conditions().ready = Some(false))),
    (
        "EndpointConditions",
        "serving",
        CarriedWith(
            |w| *w.conditions() = EndpointConditions { ready: Some(false), serving: None, terminating: Some(true) },
            |w| w.conditions().serving = Some(true),
        ),
    ),
    (
        "EndpointConditions",
        "terminating",
        CarriedWith(
            |w| *w.conditions() = EndpointConditions { ready: Some(false), serving: Some(true), terminating: None },
            |w| w.conditions().terminating = Some(true),
        ),
    ),
    ("EndpointHints", "for_nodes", Within),
    ("EndpointHints", "for_zones", Within),
    ("ForNode", "name", Carried(|w| w.hints().for_nodes = Some(vec![ForNode { name: "node-1".into() }]))),
    ("ForZone", "name", Carried(|w| w.hints().for_zones = Some(vec![ForZone { name: "a".into() }]))),
    (
        "EndpointPort",
        "app_protocol",
        Elsewhere("applications that read it; the Service's own says the same", |w| {
            w.offered().app_protocol = text("http")
        }),
    ),
    ("EndpointPort", "name", Carried(|w| w.offered().name = text("another"))),
    ("EndpointPort", "port", Carried(|w| w.offered().port = Some(8081))),
    ("EndpointPort", "protocol", Carried(|w| w.offered().protocol = text("SCTP"))),
    (
        "ObjectReference",
        "api_version",
        Elsewhere("nobody: a kind, a name and a uid say which pod", |w| w.reference().api_version = text("v1")),
    ),
    (
        "ObjectReference",
        "field_path",
        Elsewhere("nobody: an endpoint is the whole of its pod", |w| w.reference().field_path = text("spec")),
    ),
    ("ObjectReference", "kind", Carried(|w| w.reference().kind = text("Node"))),
    ("ObjectReference", "name", Carried(|w| w.reference().name = text("gone"))),
    ("ObjectReference", "namespace", Carried(|w| w.reference().namespace = text("near"))),
    (
        "ObjectReference",
        "resource_version",
        Elsewhere("nobody: a pod is the same one in every version", |w| w.reference().resource_version = text("7")),
    ),
    ("ObjectReference", "uid", Carried(|w| w.reference().uid = text("of-another"))),
];

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// A Service with its slice: of a pod with an address, of one that has none yet, and of what is no pod.
struct World {
    service: Service,
    slice: EndpointSlice,
}

impl World {
    fn new() -> Self {
        let pod = |name: &str| serde_json::json!({"kind": "Pod", "namespace": "shop", "name": name, "uid": format!("uid-{name}")});
        let service = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "type": "ClusterIP", "clusterIP": "198.18.9.2", "clusterIPs": ["198.18.9.2"], "selector": {"app": "cart"},
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            },
        }))
        .expect("a Service");
        let slice = serde_json::from_value(serde_json::json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["198.18.1.2"], "conditions": {"ready": true}, "nodeName": "node-1", "targetRef": pod("cart")},
                {"addresses": ["198.18.1.4"], "conditions": {"ready": true}, "nodeName": "node-1", "targetRef": pod("late")},
                {"addresses": ["203.0.113.7"], "nodeName": "node-1", "zone": "a"},
            ],
        }))
        .expect("a slice");
        Self { service, slice }
    }

    fn spec(&mut self) -> &mut ServiceSpec {
        self.service.spec.as_mut().expect("a spec")
    }

    fn port(&mut self) -> &mut ServicePort {
        &mut self.spec().ports.as_mut().expect("ports")[0]
    }

    fn endpoint(&mut self, at: usize) -> &mut Endpoint {
        &mut self.slice.endpoints.as_mut().expect("endpoints")[at]
    }

    fn pod(&mut self) -> &mut Endpoint {
        self.endpoint(0)
    }

    fn conditions(&mut self) -> &mut EndpointConditions {
        self.pod().conditions.as_mut().expect("conditions")
    }

    fn hints(&mut self) -> &mut EndpointHints {
        self.pod().hints.get_or_insert_default()
    }

    fn reference(&mut self) -> &mut ObjectReference {
        self.endpoint(1).target_ref.as_mut().expect("a reference")
    }

    fn no_pod(&mut self) -> &mut Endpoint {
        self.endpoint(2)
    }

    fn offered(&mut self) -> &mut EndpointPort {
        &mut self.slice.ports.as_mut().expect("ports")[0]
    }

    /// What every proxy is told, byte by byte, and what Events say of the two.
    fn told(&self) -> (BTreeSet<(String, Vec<u8>)>, Vec<String>) {
        let documents = [serde_json::to_string(&self.service), serde_json::to_string(&self.slice)];
        let documents = documents.map(|json| format!("---\n{}\n", json.expect("json"))).concat();
        let pods = [pod("cart", "198.18.1.2"), pod("web", "198.18.1.3"), pod("late", "").replace("{ip: }", "")];
        let policy = "{targetRefs: [{kind: Service, name: web}], rules: [{}]}";
        let policy = object("AuthorizationPolicy", "shop", "p", policy);
        let all = compiled(&[pods.concat(), policy, documents].concat());
        let resources = all.workloads.iter().map(workload_resource);
        let resources = resources.chain(all.services.iter().map(service_resource));
        let resources = resources.chain(all.policies.iter().map(policy_resource));
        let events = all.problems.iter().filter(|problem| !problem.object.kind.is_policy());
        (resources.map(|one| (one.name, one.body)).collect(), events.map(|problem| problem.text.clone()).collect())
    }
}

#[test]
fn every_field_of_service_and_endpoint_slice_is_carried_out_or_told() {
    let rows: Vec<(&str, &str)> = ROWS.iter().map(|(of, field, _)| (*of, *field)).collect();
    assert_eq!(rows, FIELDS, "a row for each field, in the order of the fields");
    let (base, nothing_told) = World::new().told();
    assert_eq!(nothing_told, Vec::<String>::new());
    for (of, field, row) in ROWS {
        let after = |changes: &[Change]| {
            let mut world = World::new();
            changes.iter().for_each(|change| change(&mut world));
            world.told()
        };
        match row {
            Aside | Within => {}
            Carried(change) => assert_ne!(after(&[*change]).0, base, "{of}.{field} makes no difference"),
            CarriedWith(first, change) => {
                let (before, after) = (after(&[*first]).0, after(&[*first, *change]).0);
                assert_ne!(before, after, "{of}.{field} makes no difference");
            }
            Elsewhere(by, change) => {
                let (told, events) = after(&[*change]);
                assert_eq!(
                    (told == base, events),
                    (true, vec![]),
                    "{of}.{field} makes a difference, and is left to {by}"
                );
            }
            Told(wanted, change) => {
                let (_, events) = after(&[*change]);
                assert!(events.iter().any(|text| text.contains(wanted)), "{of}.{field} is not told: {events:?}");
            }
        }
    }
    let told = ROWS.iter().filter(|(_, _, row)| matches!(row, Told(..))).count();
    assert!(told <= MOST_TOLD, "{told}");
}

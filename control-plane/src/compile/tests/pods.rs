//! Pods and what selects them.

use super::*;

/// Whether cart and web are marked under these NetworkPolicy specs of shop.
fn marked(yaml: &str) -> (bool, bool) {
    let all = compiled(&[&pod("cart", "198.18.1.2"), &pod("web", "198.18.1.3"), yaml].concat());
    let of =
        |name: &str| all.workloads.iter().any(|w| w.pod.name == name && w.network_policy == NetworkPolicy::Selected);
    (of("cart"), of("web"))
}

#[test]
fn pods_that_a_network_policy_selects_are_marked_and_so_are_those_in_doubt() {
    let policy = |namespace: &str, spec: &str| object("NetworkPolicy", namespace, "np", spec);
    assert_eq!(marked(""), (false, false));
    assert_eq!(marked(&policy("shop", "{podSelector: {}}")), (true, true));
    assert_eq!(marked(&policy("other", "{podSelector: {}}")), (false, false));
    assert_eq!(
        marked(&policy("shop", "{podSelector: {matchLabels: {app: cart}}, policyTypes: [Egress]}")),
        (true, false)
    );
    let expression = "{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [cart]}]}}";
    assert_eq!(marked(&policy("shop", expression)), (false, true));
    let unknown = "{podSelector: {matchExpressions: [{key: app, operator: Near, values: [cart]}]}}";
    assert_eq!(marked(&policy("shop", unknown)), (true, true));
    // One that cannot be read may have selected anything of its namespace; a document that is nothing, anything.
    assert_eq!(marked(&policy("shop", "{podSelector: 5}")), (true, true));
    assert_eq!(marked(&policy("other", "{podSelector: 5}")), (false, false));
    assert_eq!(marked("---\n{ what: is this"), (true, true));
}

#[test]
fn a_workload_is_there_as_soon_as_its_pod_is_bound_and_until_it_is_over() {
    let pod = |spec: &str, status: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop, uid: u, labels: {{culvert.io/mesh: enabled}}}}\n\
             spec: {spec}\nstatus: {status}\n"
        )
    };
    let count = |spec: &str, status: &str| compiled(&pod(spec, status)).workloads.len();
    let bound = "{nodeName: node-1, containers: []}";
    assert_eq!(count("{containers: []}", "{}"), 0, "not bound");
    assert_eq!(count(bound, "{}"), 1, "bound, no address yet");
    assert_eq!(count(bound, "{phase: Succeeded}"), 0);
    assert_eq!(count(bound, "{phase: Failed, podIPs: [{ip: 198.18.1.2}]}"), 0);
    let one = |spec: &str, status: &str| compiled(&pod(spec, status)).workloads.remove(0);
    assert_eq!(one(bound, "{}").tunnel, Tunnel::Hbone);
    assert!(one(bound, "{}").addresses.is_empty());
    assert_eq!(one(bound, "{}").health, Health::Healthy, "says nothing of its readiness");
    assert_eq!(one(bound, "{conditions: [{type: Ready, status: 'False'}]}").health, Health::Unhealthy);
    assert_eq!(one(bound, "{conditions: [{type: Ready, status: 'Unknown'}]}").health, Health::Unhealthy);
    assert_eq!(one(bound, "{conditions: [{type: Ready, status: 'True'}]}").health, Health::Healthy);
    let host = one("{nodeName: node-1, hostNetwork: true, containers: []}", "{podIPs: [{ip: 198.18.1.2}]}");
    assert_eq!((host.tunnel, host.host_network), (Tunnel::Clear, true));
}

#[test]
fn two_pods_with_one_address_are_told_and_the_one_that_proxies_find_is_named() {
    let both = compiled(&[pod("cart", "198.18.1.2"), pod("web", "198.18.1.2"), pod("other", "198.18.1.3")].concat());
    let problems: Vec<_> = both.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("Pod shop/web: reports the address 198.18.1.2"), "{problems:?}");
    assert!(problems[0].contains("shop/cart"), "{problems:?}");
    // The one that is named is the one that a proxy finds, also where the first by name is not in the mesh.
    let plain = pod("cart", "fd77::2").replace("culvert.io/mesh: enabled", "culvert.io/mesh: disabled");
    let both = compiled(&[plain, pod("web", "fd77::2")].concat());
    let mut mesh = mesh_model::Mesh::default();
    for workload in &both.workloads {
        mesh.apply_workload(workload.clone());
    }
    let found = mesh.workload_at("fd77::2".parse().expect("an address")).expect("one of the two");
    assert_eq!(found.pod.name, "web");
    assert!(
        both.problems[0].object.to_string() == "Pod shop/cart" && both.problems[0].text.contains("shop/web"),
        "{:?}",
        both.problems
    );
    // An address is given away again while its last owner leaves: nobody has to be told.
    let leaves =
        pod("cart", "198.18.1.2").replace("metadata: {", "metadata: {deletionTimestamp: '2026-01-01T00:00:00Z', ");
    let both = compiled(&[leaves, pod("web", "198.18.1.2")].concat());
    assert!(both.problems.is_empty(), "{:?}", both.problems);
    // One that is over has no address any more, and a node's address is shared rightly.
    let over = pod("web", "198.18.1.2").replace("status: {", "status: {phase: Succeeded, ");
    assert!(compiled(&[pod("cart", "198.18.1.2"), over].concat()).problems.is_empty());
    let host = |name: &str| pod(name, "198.19.0.1").replace("spec: {", "spec: {hostNetwork: true, ");
    assert!(compiled(&[host("cart"), host("web")].concat()).problems.is_empty());
}

#[test]
fn a_workload_is_named_by_what_made_it_and_placed_by_its_node() {
    let named = |metadata: &str, node: &str| {
        let pod = format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, uid: u, {metadata}}}\n\
             spec: {{nodeName: node-1, containers: []}}\n"
        );
        let names = compiled(&format!("{pod}{node}")).workloads.remove(0).telemetry;
        let mesh_model::Telemetry { workload_name, canonical_name, canonical_revision, region, zone, subzone } =
            (*names).clone();
        [workload_name, canonical_name, canonical_revision, region, zone, subzone].join(" ").trim_end().to_owned()
    };
    let owned = |kind: &str, owner: &str, labels: &str| {
        let owners = format!("[{{apiVersion: v1, kind: {kind}, name: {owner}, uid: x, controller: true}}]");
        named(&format!("name: p, labels: {{{labels}}}, ownerReferences: {owners}"), "")
    };
    assert_eq!(named("name: p", ""), "p p latest");
    assert_eq!(owned("ReplicaSet", "web-5d9c", "pod-template-hash: 5d9c"), "web web latest");
    assert_eq!(owned("ReplicaSet", "web-5d9c", ""), "web-5d9c web-5d9c latest", "a ReplicaSet of its own");
    assert_eq!(owned("Job", "tidy-28123456", ""), "tidy tidy latest");
    assert_eq!(owned("Job", "once-3", ""), "once-3 once-3 latest");
    assert_eq!(owned("StatefulSet", "db", "app: store, version: v2"), "db store v2");
    let labels = "labels: {app: a, app.kubernetes.io/name: b, version: '1', app.kubernetes.io/version: '2'}";
    assert_eq!(named(&format!("name: p, {labels}"), ""), "p b 2");
    let istio = "labels: {app: a, service.istio.io/canonical-name: c, service.istio.io/canonical-revision: r}";
    assert_eq!(named(&format!("name: p, {istio}"), ""), "p c r");
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-1, labels: \
                {topology.kubernetes.io/region: north, topology.kubernetes.io/zone: north-a}}\n\
                status: {allocatable: {cpu: 4}}\n";
    assert_eq!(named("name: p", node), "p p latest north north-a");
    let node = node.replace("region: north", "region: north, topology.istio.io/subzone: rack-1");
    assert_eq!(named("name: p", &node), "p p latest north north-a rack-1");
    let istio = "labels: {app: a, service.istio.io/workload-name: w}";
    assert_eq!(named(&format!("name: p, {istio}"), ""), "w a latest");
    let of_pod = "name: p, labels: {topology.kubernetes.io/zone: south-b}";
    assert_eq!(named(of_pod, ""), "p p latest  south-b", "as Kubernetes since 1.35 writes it");
}

#[test]
fn an_endpoint_that_is_no_pod_is_where_its_node_is_and_in_the_zone_that_its_slice_says() {
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/region: north, \
                topology.kubernetes.io/zone: a}}\n";
    let place = |endpoint: &str| {
        let service = object("Service", "shop", "db", "{ports: [{port: 80}]}");
        let slice = format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: db-x, namespace: shop, \
             labels: {{kubernetes.io/service-name: db}}}}\naddressType: IPv4\nports: [{{port: 80}}]\n\
             endpoints: [{{addresses: [198.18.0.9], {endpoint}}}]\n"
        );
        let telemetry = compiled(&[node, &service, &slice].concat()).workloads.remove(0).telemetry;
        (telemetry.region.clone(), telemetry.zone.clone())
    };
    let at = |region: &str, zone: &str| (region.to_owned(), zone.to_owned());
    assert_eq!(place("nodeName: n1, zone: a"), at("north", "a"));
    assert_eq!(place("nodeName: n1"), at("north", "a"));
    assert_eq!(place("nodeName: n1, zone: b"), at("north", "b"));
    assert_eq!(place("nodeName: nobody, zone: a"), at("", "a"));
    assert_eq!(place("zone: a"), at("", "a"), "nobody knows the region");
}

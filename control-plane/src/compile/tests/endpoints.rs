//! What slices and Services say of where clients are led.

use super::*;

/// The pod cart of shop with this status (flow YAML), behind the Service web of shop with this spec, by a slice with these conditions.
fn behind_web(status: &str, spec: &str, conditions: &str) -> Compiled {
    let pod = pod("cart", "198.18.1.2").replace("podIPs: [{ip: 198.18.1.2}]", status);
    compiled(&[pod, object("Service", "shop", "web", spec), slice(conditions)].concat())
}

fn slice(conditions: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-x, namespace: shop, \
         labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\n\
         endpoints: [{{addresses: [198.18.1.2], conditions: {conditions}, \
         targetRef: {{kind: Pod, name: cart, namespace: shop}}}}]\n"
    )
}

#[test]
fn a_slice_decides_for_its_service_and_proxies_are_told_what_the_pods_health_does_not_say() {
    let status =
        |ready: &str| format!("podIPs: [{{ip: 198.18.1.2}}], conditions: [{{type: Ready, status: '{ready}'}}]");
    let told = |ready: &str, spec: &str, conditions: &str| {
        let all = behind_web(&status(ready), spec, conditions);
        let endpoints: Vec<String> = all.workloads[0].services.values().map(render_endpoint).collect();
        endpoints.first().map_or("-".to_owned(), |text| text.trim_start_matches("[(80, 8080)]").trim().to_owned())
    };
    let (plain, unready_too) = ("{ports: [{port: 80}]}", "{ports: [{port: 80}], publishNotReadyAddresses: true}");
    for (pod, spec, conditions, wanted) in [
        // As the pod says.
        ("True", plain, "{}", ""),
        ("True", plain, "{ready: true}", ""),
        ("False", plain, "{ready: false}", ""),
        ("False", unready_too, "{ready: true}", ""),
        // Not as the pod says.
        ("False", plain, "{}", "ready"),
        ("False", plain, "{ready: true}", "ready"),
        ("True", plain, "{ready: false}", "-"),
        ("True", plain, "{ready: false, serving: true}", "-"),
        ("False", unready_too, "{ready: false}", "-"),
        // On its way out.
        ("True", plain, "{ready: false, serving: true, terminating: true}", "ending"),
        ("False", plain, "{ready: false, serving: true, terminating: true}", "ending"),
        ("False", plain, "{ready: false, serving: false, terminating: true}", ""),
        ("False", plain, "{ready: false, terminating: true}", ""),
        ("False", unready_too, "{ready: true, serving: false, terminating: true}", ""),
    ] {
        assert_eq!(told(pod, spec, conditions), wanted, "pod {pod}, service {spec}, slice {conditions}");
    }
}

#[test]
fn an_endpoint_that_is_no_pod_is_told_while_it_is_ready_or_comes_to_its_end() {
    let told = |conditions: &str| {
        let all = compiled(&[object("Service", "shop", "web", "{ports: [{port: 80}]}"), slice(conditions)].concat());
        let one = |workload: &Workload| {
            let endpoints: Vec<String> = workload.services.values().map(render_endpoint).collect();
            format!("{:?} {}", workload.health, endpoints.join(" "))
        };
        all.workloads.iter().map(one).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(told("{ready: true}"), "Healthy [(80, 8080)]");
    assert_eq!(told("{ready: false, serving: true, terminating: true}"), "Unhealthy [(80, 8080)] ending");
    assert_eq!(told("{ready: false}"), "");
}

#[test]
fn session_affinity_has_the_timeout_that_is_asked_for_or_three_hours() {
    let sticky = |spec: &str| {
        let all = compiled(&object(
            "Service",
            "shop",
            "web",
            &format!("{{clusterIP: 198.18.9.1, ports: [{{port: 80}}]{spec}}}"),
        ));
        let told: Vec<&str> = all.problems.iter().map(|problem| problem.text.as_str()).collect();
        (all.services[0].session_affinity.map(|time| time.as_secs()), told.join("; "))
    };
    let none = || String::new();
    assert_eq!(sticky(""), (None, none()));
    assert_eq!(
        sticky(", sessionAffinity: None, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}"),
        (None, none())
    );
    assert_eq!(sticky(", sessionAffinity: ClientIP"), (Some(10_800), none()));
    assert_eq!(
        sticky(", sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}"),
        (Some(5), none())
    );
    let (time, told) = sticky(", sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}");
    assert_eq!(time, Some(10_800));
    assert!(told.contains("timeoutSeconds 0"), "{told}");
    let (time, told) = sticky(", sessionAffinity: Cookie");
    assert_eq!(time, None);
    assert!(told.contains("sessionAffinity \"Cookie\" is not known"), "{told}");
}

#[test]
fn internal_traffic_policy_says_nothing_of_external_addresses() {
    let told = |spec: &str| {
        let ips = "clusterIP: 198.18.9.1, externalIPs: [203.0.113.9, \"2001:db8::9\", 198.18.9.1]";
        let all = compiled(&object("Service", "shop", "web", &format!("{{{ips}, ports: [{{port: 80}}]{spec}}}")));
        render(&all)
            .trim()
            .trim_start_matches("shop/web.shop.svc.cluster.local [198.18.9.1, 203.0.113.9, 2001:db8::9] 80->80")
            .to_owned()
    };
    let except = " except [203.0.113.9, 2001:db8::9]";
    assert_eq!(told(""), "");
    assert_eq!(told(", trafficDistribution: PreferSameNode"), " prefers-node");
    assert_eq!(told(", internalTrafficPolicy: Local"), format!(" local-only{except}"));
    let both = ", internalTrafficPolicy: Local, externalTrafficPolicy: Local, trafficDistribution: PreferSameZone";
    assert_eq!(told(both), format!(" local-only{except} prefers-zone"));
}

#[test]
fn what_istios_fields_say_of_a_service_is_said() {
    use mesh_api::xds::workload::{self as wire, Address, address::Type};
    let spec = "{clusterIP: 198.18.9.1, ipFamilies: [IPv4, IPv6], ports: [{name: http-web, port: 80}, {name: db, port: 81, appProtocol: tcp}]}";
    let all = compiled(&[object("Service", "shop", "web", spec), slice("{}")].concat());
    let Some(Type::Service(service)) = Address::from(&all.services[0]).r#type else { panic!("a service") };
    assert_eq!((service.canonical, service.ip_families), (true, wire::IpFamilies::Dual.into()));
    let spoken: Vec<i32> = service.ports.iter().map(|port| port.app_protocol).collect();
    assert_eq!(spoken, [wire::AppProtocol::Http11 as i32, wire::AppProtocol::Tcp as i32]);
    let Some(Type::Workload(endpoint)) = Address::from(&all.workloads[0]).r#type else { panic!("a workload") };
    assert_eq!(endpoint.cluster_id, "Kubernetes", "also of what is no pod");
}

#[test]
fn istios_annotation_prefers_endpoints_where_the_field_says_nothing() {
    let near = |annotation: &str, field: &str| {
        let yaml = object("Service", "shop", "web", &format!("{{ports: [{{port: 80}}]{field}}}"));
        let annotations = format!("name: web, annotations: {{networking.istio.io/traffic-distribution: {annotation}}}");
        let all = compiled(&yaml.replace("name: web", &annotations));
        (all.services[0].near, all.problems.len())
    };
    assert_eq!(near("PreferClose", ""), (Near::PreferZone, 0));
    assert_eq!(near("PreferSameNode", ""), (Near::PreferNode, 0));
    assert_eq!(near("preferSameNetwork", ""), (Near::Any, 0));
    assert_eq!(near("PreferClose", ", trafficDistribution: PreferSameNode"), (Near::PreferNode, 0));
    assert_eq!(near("Nearby", ""), (Near::Any, 1));
}

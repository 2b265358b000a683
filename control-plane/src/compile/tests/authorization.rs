//! AuthorizationPolicy.

use super::*;

/// The policy `p` of namespace shop with this spec, as it is compiled.
fn policy(spec: &str) -> String {
    let all = compiled(&object("AuthorizationPolicy", "shop", "p", spec));
    all.policies.iter().map(render_policy).collect::<Vec<_>>().join("\n")
}

#[test]
fn rules_say_what_was_written() {
    for (spec, wanted) in [
        ("{}", "allow shop/p [namespace]: "),
        ("{rules: [{}]}", "allow shop/p [namespace]: always"),
        ("{action: DENY}", "deny shop/p [namespace]: "),
        (
            "{rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b, '*', 'x*', '*x']}}]}]}",
            "allow shop/p [namespace]: id=cluster.local/ns/a/sa/b|*|x*|*x",
        ),
        (
            "{rules: [{from: [{source: {principals: ['spiffe://cluster.local/ns/a/sa/b']}}]}]}",
            "allow shop/p [namespace]: id=cluster.local/ns/a/sa/b",
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a], notNamespaces: [b]}}, {source: {ipBlocks: [10.0.0.0/8]}}]}]}",
            "allow shop/p [namespace]: ns=a !ns=b , from=10.0.0.0/8",
        ),
        (
            "{rules: [{from: [{source: {serviceAccounts: [web, other/web]}}]}]}",
            "allow shop/p [namespace]: sa=shop/web|other/web",
        ),
        (
            "{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ['80', '443']}}]}, \
             {to: [{operation: {notPorts: ['22']}}]}]}",
            "allow shop/p [namespace]: ns=a & port=80|443 ; !port=22",
        ),
        (
            "{action: DENY, rules: [{when: [{key: source.ip, values: ['fd00::/8'], notValues: ['fd00::1']}, \
             {key: destination.port, values: ['80']}, {key: source.namespace, notValues: [a]}, \
             {key: source.principal, values: ['*']}, {key: destination.ip, values: [10.1.2.3]}]}]}",
            "deny shop/p [namespace]: from=fd00::/8 !from=fd00::1/128 & port=80 & !ns=a & id=* & to=10.1.2.3/32",
        ),
    ] {
        assert_eq!(policy(spec), wanted, "{spec}");
    }
}

#[test]
fn what_needs_http_narrows_an_allow_is_dropped_and_a_deny_is_kept_without_it() {
    for (spec, wanted) in [
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}", "allow shop/p [namespace]: "),
        (
            "{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {paths: [/x], ports: ['80']}}]}, \
             {from: [{source: {namespaces: [b]}}]}]}",
            "allow shop/p [namespace]: ns=b",
        ),
        (
            "{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [POST]}}]}]}",
            "deny shop/p [namespace]: ns=a",
        ),
        (
            "{action: DENY, rules: [{to: [{operation: {notPaths: [/x], ports: ['80']}}]}]}",
            "deny shop/p [namespace]: port=80",
        ),
        // One alternative with nothing left holds always, and so does the whole.
        (
            "{action: DENY, rules: [{to: [{operation: {hosts: [a]}}, {operation: {ports: ['80']}}]}]}",
            "deny shop/p [namespace]: always",
        ),
        (
            "{action: DENY, rules: [{when: [{key: 'request.headers[x]', values: [z]}, {key: source.namespace, values: [a]}]}]}",
            "deny shop/p [namespace]: ns=a",
        ),
        ("{action: DENY, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}", "deny shop/p [namespace]: always"),
        ("{rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}]}", "allow shop/p [namespace]: "),
        ("{rules: [{when: [{key: request.auth.principal, values: [x]}]}]}", "allow shop/p [namespace]: "),
    ] {
        assert_eq!(policy(spec), wanted, "{spec}");
        let problems = compiled(&object("AuthorizationPolicy", "shop", "p", spec)).problems;
        assert!(problems.iter().any(|problem| problem.to_string().contains("HTTP")), "{spec}: {problems:?}");
    }
}

#[test]
fn what_cannot_be_understood_or_carried_out_refuses() {
    for spec in [
        "{rules: [{form: []}]}",
        "{rules: [{from: [{source: {}}]}]}",
        "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/99]}}]}]}",
        "{rules: [{to: [{operation: {ports: ['http']}}]}]}",
        "{rules: [{when: [{key: source.name, values: [x]}]}]}",
        "{action: BLOCK}",
        "{action: CUSTOM, provider: {name: x}, rules: [{}]}",
    ] {
        assert_eq!(policy(spec), "refuse shop/p [namespace]: everything", "{spec}");
    }
    assert_eq!(policy("{action: AUDIT, rules: [{}]}"), "", "AUDIT decides nothing");
}

#[test]
fn no_workload_lists_a_policy_that_is_not_there() {
    for action in ["ALLOW", "DENY", "AUDIT", "CUSTOM, provider: {name: x}", "PERHAPS"] {
        for to in ["selector: {matchLabels: {app: cart}}", "targetRefs: [{kind: Service, name: cart}]"] {
            let service = object(
                "Service",
                "shop",
                "cart",
                "{clusterIP: 198.18.128.1, selector: {app: cart}, ports: [{port: 80}]}",
            );
            let policy =
                object("AuthorizationPolicy", "shop", "p", &format!("{{{to}, action: {action}, rules: [{{}}]}}"));
            let all = compiled(&[pod("cart", "198.18.1.2"), service, policy].concat());
            let listed = all.workloads.iter().flat_map(|workload| &workload.policies);
            for key in listed {
                assert!(
                    all.policies.iter().any(|policy| policy.key == *key),
                    "{action} {to}: {key} is listed and not there"
                );
            }
        }
    }
}

#[test]
fn a_broken_policy_with_a_readable_selector_refuses_only_what_it_selects() {
    let yaml = [
        pod("cart", "198.18.1.2"),
        pod("web", "198.18.1.3"),
        object("AuthorizationPolicy", "shop", "p", "{selector: {matchLabels: {app: cart}}, rules: [{nonsense: 1}]}"),
    ]
    .concat();
    let all = compiled(&yaml);
    assert_eq!(all.policies.iter().map(render_policy).collect::<Vec<_>>(), ["refuse shop/p [listed]: everything"]);
    let lists = |name: &str| all.workloads.iter().find(|w| w.pod.name == name).map(|w| w.policies.len());
    assert_eq!((lists("cart"), lists("web")), (Some(1), Some(0)));
}

/// Which policies the pods cart and web of shop list, given these objects.
fn listed(objects: &[String]) -> (Vec<String>, Vec<String>) {
    let yaml = [pod("cart", "198.18.1.2"), pod("web", "198.18.1.3"), objects.concat()].concat();
    let all = compiled(&yaml);
    let of = |name: &str| {
        let workload = all.workloads.iter().find(|w| w.pod.name == name).expect("the pod");
        workload.policies.iter().map(ToString::to_string).collect()
    };
    (of("cart"), of("web"))
}

#[test]
fn a_selector_lists_a_policy_at_its_pods_and_one_of_the_root_namespace_at_all_namespaces() {
    let selecting = "{selector: {matchLabels: {app: cart}}}";
    let p = |namespace: &str, spec: &str| object("AuthorizationPolicy", namespace, "p", spec);
    assert_eq!(listed(&[p("shop", selecting)]), (vec!["shop/p".into()], vec![]));
    assert_eq!(listed(&[p("other", selecting)]), (vec![], vec![]));
    assert_eq!(listed(&[p("culvert-system", selecting)]), (vec!["culvert-system/p".into()], vec![]));
    assert_eq!(listed(&[p("shop", "{}")]), (vec![], vec![]), "applies to the namespace without being listed");
    let global = compiled(&p("culvert-system", "{}"));
    assert_eq!(global.policies.iter().map(|p| p.scope).collect::<Vec<_>>(), [Scope::Global]);
}

#[test]
fn a_policy_for_a_service_is_listed_at_the_pods_behind_it_ready_or_not() {
    let service =
        object("Service", "shop", "cart", "{clusterIP: 198.18.128.1, selector: {app: cart}, ports: [{port: 80}]}");
    let target = "{targetRefs: [{kind: Service, name: cart}], action: DENY, rules: [{}]}";
    let policy = object("AuthorizationPolicy", "shop", "p", target);
    assert_eq!(listed(&[service, policy]), (vec!["shop/p".into()], vec![]));
}

#[test]
fn a_target_that_is_no_service_of_the_namespace_is_told_and_left_out() {
    let service =
        object("Service", "shop", "cart", "{clusterIP: 198.18.128.1, selector: {app: cart}, ports: [{port: 80}]}");
    let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: g}";
    let foreign = "{kind: Service, name: cart, namespace: near}";
    let own = "{kind: Service, name: cart, namespace: shop}";
    let table = [
        (gateway.to_owned(), "NoEffect", vec![]),
        (foreign.to_owned(), "NoEffect", vec![]),
        (own.to_owned(), "Enforced", vec!["shop/p".to_owned()]),
        (format!("{own}, {gateway}"), "ServicesOnly", vec!["shop/p".to_owned()]),
        (format!("{own}, {foreign}"), "ServicesOnly", vec!["shop/p".to_owned()]),
    ];
    for (targets, outcome, wanted) in table {
        let policy = object("AuthorizationPolicy", "shop", "p", &format!("{{targetRefs: [{targets}], rules: [{{}}]}}"));
        let all = compiled(&[pod("cart", "198.18.1.2"), service.clone(), policy].concat());
        assert_eq!((listed_at(cart(&all)), all.told[0].outcome.as_str()), (wanted.clone(), outcome), "{targets}");
        let ends = if wanted.is_empty() { "it decides nothing" } else { "in force at the pod that it selects" };
        assert!(all.told[0].message.contains(ends), "{:?}", all.told);
    }
}

#[test]
fn a_policy_for_a_service_stays_in_force_at_an_endpoint_that_is_not_ready() {
    let spec = "{targetRefs: [{kind: Service, name: web}], action: DENY, rules: [{}]}";
    for (lender, by_name) in [("culvert-system", false), ("culvert-system", true), ("shop", false), ("shop", true)] {
        let policy = object("AuthorizationPolicy", lender, "s", spec);
        let ready = lent_to(lender, by_name);
        let unready = ready.replace("[198.18.1.2]", "[198.18.1.2], conditions: {ready: false}");
        assert_ne!(ready, unready);
        for (slice, services) in [(ready, 1), (unready, 0)] {
            let all = compiled(&[slice, policy.clone()].concat());
            assert_eq!(cart(&all).services.len(), services, "whom callers of the service are led to");
            assert_eq!(listed_at(cart(&all)), [format!("{lender}/s")], "{services} ready");
            assert_eq!(all.told[0].outcome.as_str(), "Enforced", "{:?}", all.told);
        }
    }
}

/// The pod cart of shop behind Service web of another namespace: by its address alone, or as the pod that it is.
fn lent_to(lender: &str, by_name: bool) -> String {
    let service = object("Service", lender, "web", "{ports: [{port: 80}]}");
    let slice =
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-x, namespace: LENDER, \
                 labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 8080}]\n\
                 endpoints: [{addresses: [198.18.1.2]TARGET}]\n"
            .replace("LENDER", lender)
            .replace("TARGET", if by_name { ", targetRef: {kind: Pod, name: cart, namespace: shop}" } else { "" });
    [pod("cart", "198.18.1.2"), service, slice].concat()
}

fn cart(all: &Compiled) -> &Workload {
    all.workloads.iter().find(|workload| workload.pod.name == "cart").expect("the pod")
}

fn listed_at(workload: &Workload) -> Vec<String> {
    workload.policies.iter().map(ToString::to_string).collect()
}

#[test]
fn a_policy_of_another_namespace_neither_opens_nor_shuts_a_pod_that_a_slice_there_names() {
    let own = object("AuthorizationPolicy", "shop", "only-web", "{selector: {matchLabels: {app: cart}}, rules: []}");
    for (action, by_name) in [("ALLOW", false), ("ALLOW", true), ("DENY", false), ("CUSTOM, provider: {name: x}", true)]
    {
        let spec = format!("{{targetRefs: [{{kind: Service, name: web}}], action: {action}, rules: [{{}}]}}");
        let all = compiled(
            &[lent_to("near", by_name), own.clone(), object("AuthorizationPolicy", "near", "s", &spec)].concat(),
        );
        assert_eq!(listed_at(cart(&all)), ["shop/only-web"], "{action}");
        assert_eq!(
            cart(&all).services.values().map(|endpoint| &endpoint.ports[..]).collect::<Vec<_>>(),
            [&[(80, 8080)]],
            "it is behind the service all the same"
        );
        let told = all.told.iter().find(|told| told.object.namespace == "near").expect("what becomes of it");
        assert!(!told.outcome.is_as_written(), "{told:?}");
        assert!(told.message.contains("no effect on pods of other namespaces behind Service web"), "{told:?}");
        assert!(told.message.contains("(none now)"), "{told:?}");
    }
}

#[test]
fn a_policy_for_a_service_with_pods_of_its_own_and_of_another_namespace_applies_to_its_own() {
    let own = pod("web", "198.18.1.3").replace("namespace: shop", "namespace: near");
    let slice = lent_to("near", false).replace("[198.18.1.2]}", "[198.18.1.2]}, {addresses: [198.18.1.3]}");
    let spec = "{targetRefs: [{kind: Service, name: web}], action: DENY, rules: [{}]}";
    let all = compiled(&[slice, own, object("AuthorizationPolicy", "near", "s", spec)].concat());
    let web = all.workloads.iter().find(|workload| workload.pod.name == "web").expect("the pod");
    assert_eq!((listed_at(web), listed_at(cart(&all))), (vec!["near/s".to_owned()], vec![]));
    assert_eq!(all.told[0].outcome.as_str(), "OwnPodsOnly");
    assert!(all.told[0].message.contains("in force at the pod that it selects"), "{:?}", all.told);
}

#[test]
fn a_policy_of_the_root_namespace_follows_its_service_to_pods_of_all_namespaces() {
    let root = "culvert-system";
    let for_service =
        object("AuthorizationPolicy", root, "s", "{targetRefs: [{kind: Service, name: web}], rules: [{}]}");
    let for_pods = object("AuthorizationPolicy", root, "p", "{selector: {matchLabels: {app: cart}}, rules: [{}]}");
    let all = compiled(&[lent_to(root, false), for_service, for_pods].concat());
    assert_eq!(listed_at(cart(&all)), ["culvert-system/p", "culvert-system/s"]);
    for told in &all.told {
        assert!(told.outcome.is_as_written() && told.message.contains("the pod that it selects"), "{told:?}");
    }
}

#[test]
fn what_a_policy_of_the_root_namespace_reaches_is_counted_in_all_namespaces() {
    let of_other = pod("web", "198.18.1.3").replace("namespace: shop", "namespace: other");
    let told = |name: &str, spec: &str| {
        let yaml =
            [&pod("cart", "198.18.1.2"), &of_other, &object("AuthorizationPolicy", "culvert-system", name, spec)];
        compiled(&yaml.map(String::as_str).concat()).told.remove(0).message
    };
    assert!(told("p", "{rules: [{}]}").contains("the 2 pods that it selects"));
    assert!(told("p", "{selector: {matchLabels: {app: web}}, rules: [{}]}").contains("the pod that it selects"));
    assert!(told("p", "{selector: {matchLabels: {app: none}}, rules: [{}]}").contains("(none now)"));
}

#[test]
fn a_principal_of_one_of_our_trust_domains_means_all_of_them() {
    let mut config = config();
    config.trust_domain_aliases = vec![TrustDomain::parse("old.example").expect("a trust domain")];
    let spec = "{action: DENY, rules: [{from: [{source: {principals: [old.example/ns/a/sa/b, other/ns/a/sa/b]}}]}]}";
    let all = compiled_with(&object("AuthorizationPolicy", "shop", "p", spec), &config);
    assert_eq!(
        render_policy(&all.policies[0]),
        "deny shop/p [namespace]: id=cluster.local/ns/a/sa/b|old.example/ns/a/sa/b|other/ns/a/sa/b"
    );
}

#[test]
fn dry_run_is_kept() {
    let yaml = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop, \
                annotations: {istio.io/dry-run: 'true'}}\nspec: {rules: [{}]}\n";
    assert_eq!(render_policy(&compiled(yaml).policies[0]), "allow shop/p [namespace dry-run]: always");
}

#[test]
fn a_policy_with_a_selector_is_listed_in_its_own_namespace_also_where_anothers_name_begins_alike() {
    let spec = "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}";
    let web = |namespace: &str| pod("web", "198.18.1.2").replace("namespace: shop", &format!("namespace: {namespace}"));
    let namespaces = ["sho", "shop", "shop-2", "shop.a", "shop0", "shopping"];
    let mut yaml: String = namespaces.map(web).concat();
    yaml.push_str(&object("AuthorizationPolicy", "shop", "p", spec));
    let listed: Vec<String> = compiled(&yaml)
        .workloads
        .into_iter()
        .filter(|workload| !workload.policies.is_empty())
        .map(|workload| workload.pod.namespace)
        .collect();
    assert_eq!(listed, ["shop"]);
}

//! Tables over manifests as people write them: YAML in, readable lines out. `testdata` holds a whole example with its golden output;
//! `BLESS=1 cargo test` writes it anew (read the difference before you keep it).

use std::fmt::Write as _;

use ipnetwork::IpNetwork;
use mesh_api::manifests::load_dir;
use mesh_model::policy::{Action, Match, Scope, StringMatch};
use mesh_model::{Health, NetworkPolicy, Tunnel};

use super::*;

pub(crate) fn config() -> CompileConfig {
    CompileConfig {
        cluster_id: "Kubernetes".into(),
        trust_domain: TrustDomain::parse("cluster.local").expect("a trust domain"),
        trust_domain_aliases: Vec::new(),
        cluster_domain: "cluster.local".into(),
        root_namespace: "culvert-system".into(),
        default_mode: DefaultMode::Permissive,
        excluded_namespaces: vec!["kube-system".into()],
    }
}

fn compiled_with(yaml: &str, config: &CompileConfig) -> Compiled {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("all.yaml"), yaml).expect("written");
    let (objects, rejected) = load_dir(dir.path(), &Objects::default());
    compile(&objects, &rejected, config)
}

fn compiled(yaml: &str) -> Compiled {
    compiled_with(yaml, &config())
}

/// A pod of namespace shop on node-1 with this name, also as its label `app`.
fn pod(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}, \
         labels: {{app: {name}, culvert.io/mesh: enabled}}}}\nspec: {{nodeName: node-1, serviceAccountName: {name}, \
         containers: []}}\nstatus: {{podIPs: [{{ip: {ip}}}]}}\n"
    )
}

/// The object of this kind and name in namespace `namespace`, with this spec (flow YAML).
fn object(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    let api = match kind {
        "AuthorizationPolicy" | "PeerAuthentication" => "security.istio.io/v1",
        "NetworkPolicy" => "networking.k8s.io/v1",
        _ => "v1",
    };
    format!("---\napiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n")
}

fn strings(name: &str, list: &[StringMatch], out: &mut Vec<String>) {
    let text = |one: &StringMatch| match one {
        StringMatch::Exact(text) => text.clone(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Presence => "*".into(),
    };
    if !list.is_empty() {
        out.push(format!("{name}={}", list.iter().map(text).collect::<Vec<_>>().join("|")));
    }
}

fn plain<T>(name: &str, list: &[T], text: impl Fn(&T) -> String, out: &mut Vec<String>) {
    if !list.is_empty() {
        out.push(format!("{name}={}", list.iter().map(text).collect::<Vec<_>>().join("|")));
    }
}

fn render_match(one: &Match) -> String {
    let mut out = Vec::new();
    strings("ns", &one.namespaces, &mut out);
    strings("!ns", &one.not_namespaces, &mut out);
    strings("id", &one.principals, &mut out);
    strings("!id", &one.not_principals, &mut out);
    let account = |a: &mesh_model::policy::ServiceAccountMatch| format!("{}/{}", a.namespace, a.service_account);
    plain("sa", &one.service_accounts, account, &mut out);
    plain("!sa", &one.not_service_accounts, account, &mut out);
    plain("from", &one.source_ips, IpNetwork::to_string, &mut out);
    plain("!from", &one.not_source_ips, IpNetwork::to_string, &mut out);
    plain("to", &one.destination_ips, IpNetwork::to_string, &mut out);
    plain("!to", &one.not_destination_ips, IpNetwork::to_string, &mut out);
    plain("port", &one.destination_ports, u16::to_string, &mut out);
    plain("!port", &one.not_destination_ports, u16::to_string, &mut out);
    out.join(" ")
}

/// `allow shop/x [namespace]: (a | b) & c ; (next rule)`.
fn render_policy(policy: &Policy) -> String {
    let rules: Vec<String> = policy
        .rules
        .iter()
        .map(|rule| {
            let clauses: Vec<String> = rule
                .clauses
                .iter()
                .map(|clause| clause.matches.iter().map(render_match).collect::<Vec<_>>().join(" , "))
                .collect();
            if clauses.is_empty() { "always".into() } else { clauses.join(" & ") }
        })
        .collect();
    let verb = match (policy.invalid, policy.action) {
        (true, _) => "refuse",
        (false, Action::Allow) => "allow",
        (false, Action::Deny) => "deny",
    };
    let scope = match policy.scope {
        Scope::Global => "mesh",
        Scope::Namespace => "namespace",
        Scope::Selector => "listed",
    };
    let dry = if policy.dry_run { " dry-run" } else { "" };
    let rules = if policy.invalid { "everything".into() } else { rules.join(" ; ") };
    format!("{verb} {} [{scope}{dry}]: {rules}", policy.key)
}

fn render(compiled: &Compiled) -> String {
    let mut out = String::new();
    for w in &compiled.workloads {
        let tunnel = if w.tunnel == Tunnel::Hbone { "hbone" } else { "clear" };
        let health = if w.health == Health::Healthy { "healthy" } else { "unhealthy" };
        let marked = if w.network_policy == NetworkPolicy::Selected { " networkpolicy" } else { "" };
        let host = if w.host_network { " hostnetwork" } else { "" };
        let uid = w.pod_uid.as_ref().map_or("-", |uid| uid.as_str());
        let _ =
            write!(out, "{} uid={uid} sa={} node={} {tunnel} {health}{marked}{host}", w.uid, w.service_account, w.node);
        let _ = write!(out, " at={:?}", w.addresses);
        let keys: Vec<String> = w.policies.iter().map(ToString::to_string).collect();
        let services: Vec<String> = w.services.iter().map(|(key, ports)| format!("{key} {ports:?}")).collect();
        let _ = writeln!(out, "\n    policies: {}\n    services: {}", keys.join(" "), services.join("; "));
    }
    for s in &compiled.services {
        let ports: Vec<String> = s
            .ports
            .iter()
            .map(|p| format!("{}->{}", p.service_port, p.target_port.map_or("named".into(), |t| t.to_string())))
            .collect();
        let flags = format!(
            "{}{}",
            if s.publish_not_ready { " unready-too" } else { "" },
            if s.local_only { " local-only" } else { "" }
        );
        let _ = writeln!(out, "{} {:?} {}{flags}", s.key, s.vips, ports.join(","));
    }
    for policy in &compiled.policies {
        let _ = writeln!(out, "{}", render_policy(policy));
    }
    for problem in &compiled.problems {
        let _ = writeln!(out, "problem: {problem}");
    }
    out
}

#[test]
fn the_example_compiles_to_its_golden_output() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
    let yaml = std::fs::read_to_string(format!("{dir}/shop.yaml")).expect("the example");
    let got = render(&compiled(&yaml));
    let golden = format!("{dir}/shop.golden.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&golden, &got).expect("written");
    }
    let wanted = std::fs::read_to_string(&golden).expect("the golden output; make it with BLESS=1");
    assert_eq!(got, wanted, "the compiled example changed");
}

#[test]
fn compiling_twice_gives_the_same() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
    let yaml = std::fs::read_to_string(format!("{dir}/shop.yaml")).expect("the example");
    assert_eq!(compiled(&yaml), compiled(&yaml));
}

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
    let gateway = "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]}";
    let all = compiled(&object("AuthorizationPolicy", "shop", "p", gateway));
    assert!(all.policies.is_empty() && all.problems.len() == 1, "{all:?}");
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

const STATIC: &str = "culvert-system/istio_converted_static_strict";

/// Which policies cart and web list under these PeerAuthentications (namespace, name, spec), and the policies' text.
fn peers(default: DefaultMode, all: &[(&str, &str, &str)]) -> (Vec<String>, Vec<String>, Vec<String>) {
    let objects: String =
        all.iter().map(|(namespace, name, spec)| object("PeerAuthentication", namespace, name, spec)).collect();
    let yaml = [pod("cart", "198.18.1.2"), pod("web", "198.18.1.3"), objects].concat();
    let compiled = compiled_with(&yaml, &CompileConfig { default_mode: default, ..config() });
    let of = |name: &str| {
        let workload = compiled.workloads.iter().find(|w| w.pod.name == name).expect("the pod");
        workload.policies.iter().map(ToString::to_string).collect()
    };
    (of("cart"), of("web"), compiled.policies.iter().map(render_policy).collect())
}

#[test]
fn the_nearest_peer_authentication_decides() {
    use DefaultMode::{Permissive, Strict};
    let strict = "{mtls: {mode: STRICT}}";
    let permissive = "{mtls: {mode: PERMISSIVE}}";
    let disable = "{mtls: {mode: DISABLE}}";
    let unset = "{}";
    let cart = |mode: &str| format!("{{selector: {{matchLabels: {{app: cart}}}}, mtls: {{mode: {mode}}}}}");
    let (cart_strict, cart_permissive, cart_unset) = (cart("STRICT"), cart("PERMISSIVE"), cart("UNSET"));
    type Row<'a> = (DefaultMode, &'a [(&'a str, &'a str, &'a str)], bool, bool);
    let table: &[Row<'_>] = &[
        (Permissive, &[], false, false),
        (Strict, &[], true, true),
        (Permissive, &[("shop", "a", strict)], true, true),
        (Permissive, &[("other", "a", strict)], false, false),
        (Permissive, &[("culvert-system", "a", strict)], true, true),
        (Strict, &[("culvert-system", "a", permissive)], false, false),
        (Permissive, &[("culvert-system", "a", strict), ("shop", "a", permissive)], false, false),
        (Permissive, &[("culvert-system", "a", strict), ("shop", "a", disable)], false, false),
        (Permissive, &[("culvert-system", "a", strict), ("shop", "a", unset)], true, true),
        (Permissive, &[("shop", "a", strict), ("shop", "b", &cart_permissive)], false, true),
        (Permissive, &[("shop", "a", &cart_strict)], true, false),
        (Permissive, &[("shop", "a", strict), ("shop", "b", &cart_unset)], true, true),
        // Of two for one namespace the first by name, where neither has a time.
        (Permissive, &[("shop", "a", strict), ("shop", "b", permissive)], true, true),
        // A selector of the root namespace selects there alone.
        (Permissive, &[("culvert-system", "a", &cart_strict)], false, false),
    ];
    for (default, objects, cart, web) in table {
        let (at_cart, at_web, policies) = peers(*default, objects);
        let wanted = |strict: bool| if strict { vec![STATIC.to_owned()] } else { vec![] };
        assert_eq!((at_cart, at_web), (wanted(*cart), wanted(*web)), "{default:?} {objects:?}");
        let stands = policies.contains(&format!("deny {STATIC} [listed]: !id=*"));
        assert_eq!(stands, *default == Strict || !objects.is_empty(), "{policies:?}");
    }
}

#[test]
fn the_oldest_peer_authentication_of_a_level_decides() {
    let at = |name: &str, mode: &str, time: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop, \
             creationTimestamp: '{time}'}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
        )
    };
    let young_and_old = [at("a", "PERMISSIVE", "2026-02-01T00:00:00Z"), at("b", "STRICT", "2026-01-01T00:00:00Z")];
    let all = compiled(&[pod("cart", "198.18.1.2"), young_and_old.concat()].concat());
    assert_eq!(all.workloads[0].policies.len(), 1, "b is older");
    assert_eq!(all.problems.len(), 1, "a has no effect");
}

#[test]
fn ports_that_differ_become_a_policy_of_their_own_instead_of_the_static_one() {
    let converted = "shop/converted_peer_authentication_p".to_owned();
    let spec = |mode: &str, ports: &str| {
        format!("{{selector: {{matchLabels: {{app: cart}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {ports}}}")
    };
    let (cart, web, policies) = peers(
        DefaultMode::Permissive,
        &[("shop", "p", &spec("STRICT", "{80: {mode: PERMISSIVE}, 90: {mode: DISABLE}}"))],
    );
    assert_eq!((cart, web), (vec![converted.clone()], vec![]));
    assert!(policies.contains(&format!("deny {converted} [listed]: !id=* & !port=80 & !port=90")), "{policies:?}");
    let (cart, _, policies) = peers(
        DefaultMode::Permissive,
        &[("shop", "p", &spec("PERMISSIVE", "{80: {mode: STRICT}, 90: {mode: STRICT}}"))],
    );
    assert_eq!(cart, [converted.as_str()]);
    assert!(
        policies.contains(&format!("deny {converted} [listed]: !id=* & port=80 ; !id=* & port=90")),
        "{policies:?}"
    );
    // Unset inherits; a port that says what holds anyway is no exception.
    let (cart, ..) =
        peers(DefaultMode::Strict, &[("shop", "p", &spec("UNSET", "{80: {mode: STRICT}, 90: {mode: UNSET}}"))]);
    assert_eq!(cart, [STATIC]);
    let (cart, ..) = peers(DefaultMode::Strict, &[("shop", "p", &spec("UNSET", "{80: {mode: PERMISSIVE}}"))]);
    assert_eq!(cart, [converted.as_str()]);
}

#[test]
fn a_peer_authentication_that_cannot_be_understood_refuses() {
    let (cart, web, policies) = peers(
        DefaultMode::Permissive,
        &[("shop", "p", "{selector: {matchLabels: {app: cart}}, mtls: {mode: SOMETIMES}}")],
    );
    assert_eq!((cart.len(), web.len()), (1, 0));
    assert!(
        policies.contains(&"refuse shop/converted_peer_authentication_p [listed]: everything".to_owned()),
        "{policies:?}"
    );
    let (_, _, policies) = peers(DefaultMode::Permissive, &[("shop", "p", "{mtls: {mode: SOMETIMES}}")]);
    assert!(policies.contains(&"refuse shop/converted_peer_authentication_p [namespace]: everything".to_owned()));
}

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

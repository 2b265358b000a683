//! Tables over manifests as people write them: YAML in, readable lines out. `testdata` holds a whole example with its golden output;
//! `BLESS=1 cargo test` writes it anew (read the difference before you keep it).

mod authorization;
mod endpoints;
mod fields;
mod incremental;
mod peer_authentication;
mod pods;

use std::fmt::Write as _;

use ipnetwork::IpNetwork;
use mesh_api::manifests::{Objects, Rejected, load_dir};
use mesh_model::policy::{Action, Match, Scope, StringMatch};
use mesh_model::{Endpoint, External, Health, Hints, Near, NetworkPolicy, Readiness, Tunnel};

use super::*;

pub(crate) fn config() -> CompileConfig {
    CompileConfig {
        cluster_id: "Kubernetes".into(),
        trust_domain: TrustDomain::parse("cluster.local").expect("a trust domain"),
        trust_domain_aliases: Vec::new(),
        cluster_domain: "cluster.local".into(),
        root_namespace: "culvert-system".into(),
        default_mode: DefaultMode::Permissive,
        outside: Outside { namespaces: vec!["kube-system".into()], runtimes: vec!["kata".into()] },
    }
}

/// All of it, whatever the namespaces.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Compiled {
    pub(crate) workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
    problems: Vec<Problem>,
    pub(crate) told: Vec<Told>,
}

/// From nothing.
pub(crate) fn compile(objects: &Objects, rejected: &[Rejected], config: &CompileConfig) -> Compiled {
    let mut compiler = Compiler::default();
    let Changes { whole, namespaces } = compiler.compile(objects, rejected, config);
    assert!(whole);
    gathered(namespaces.values(), &compiler)
}

fn gathered<'a>(namespaces: impl Iterator<Item = &'a Records>, compiler: &Compiler) -> Compiled {
    let mut all = Compiled::default();
    for records in namespaces {
        all.workloads.extend(records.workloads.iter().cloned());
        all.services.extend(records.services.iter().cloned());
        all.policies.extend(records.policies.iter().cloned());
    }
    all.workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    all.services.sort_by(|a, b| a.key.cmp(&b.key));
    all.policies.sort_by(|a, b| a.key.cmp(&b.key));
    all.problems.extend(compiler.problems().cloned());
    all.problems.sort();
    all.told.extend(compiler.told().cloned());
    all.told.sort_by(|a, b| a.object.cmp(&b.object));
    all
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

/// `[(80, 8080)]`, and what is said of it beside its pod's health.
fn render_endpoint(endpoint: &Endpoint) -> String {
    let Endpoint { ports, readiness, hints: Hints { zones, nodes } } = endpoint;
    let readiness = match readiness {
        Readiness::Unsaid => "",
        Readiness::Ready => " ready",
        Readiness::Ending => " ending",
    };
    let hints =
        |name, list: &[String]| if list.is_empty() { String::new() } else { format!(" {name}={}", list.join("|")) };
    format!("{ports:?}{readiness}{}{}", hints("zones", zones), hints("nodes", nodes))
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
        let services: Vec<String> =
            w.services.iter().map(|(key, endpoint)| format!("{key} {}", render_endpoint(endpoint))).collect();
        let _ = writeln!(out, "\n    policies: {}\n    services: {}", keys.join(" "), services.join("; "));
    }
    for s in &compiled.services {
        let ports: Vec<String> = s
            .ports
            .iter()
            .map(|p| format!("{}->{}", p.service_port, p.target_port.map_or("named".into(), |t| t.to_string())))
            .collect();
        let near = |near| match near {
            Near::Any => "",
            Near::PreferZone => " prefers-zone",
            Near::PreferNode => " prefers-node",
            Near::OnlyNode => " local-only",
        };
        let mut flags = format!("{}{}", if s.publish_not_ready { " unready-too" } else { "" }, near(s.near));
        if let Some(External { vips, near: there }) = &s.external {
            let _ = write!(flags, " except {vips:?}{}", near(*there));
        }
        if let Some(time) = s.session_affinity {
            let _ = write!(flags, " sticky={}s", time.as_secs());
        }
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
fn an_external_address_that_is_a_pods_or_another_services_own_stays_theirs() {
    let service = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: 80}}], {spec}}}\n"
        )
    };
    let yaml = pod("pay", "198.18.1.5")
        + &service(
            "a-taker",
            "clusterIP: 198.18.9.1, externalIPs: [198.18.1.5, \"::ffff:198.18.9.2\", 198.18.9.1, 203.0.113.7]",
        )
        + &service("web", "clusterIP: 198.18.9.2");
    let compiled = compiled(&yaml);
    let vips: Vec<String> =
        compiled.services.iter().map(|service| format!("{} {:?}", service.name, service.vips)).collect();
    assert_eq!(vips, ["a-taker [198.18.9.1, 203.0.113.7]", "web [198.18.9.2]"]);
    let told: Vec<String> = compiled.problems.iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|text| text.contains("198.18.1.5 is that of Pod shop/pay")), "{told:?}");
    assert!(told.iter().any(|text| text.contains("198.18.9.2 is that of Service shop/web")), "{told:?}");
    assert_eq!(told.len(), 2, "{told:?}");
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

//! Loading a directory: what is read, what is refused by file and line, and what stays.

use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

struct Dir {
    dir: TempDir,
    last: Objects,
}

impl Dir {
    fn new() -> Self {
        Self { dir: TempDir::new().expect("a temporary directory"), last: Objects::default() }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.dir.path().join(name), text).expect("the temporary directory can be written to");
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.dir.path().join(name)).expect("the file is there");
    }

    /// Loads as a daemon does, each time with what the load before returned; what was refused as `file:line kind name`.
    fn load(&mut self) -> Vec<String> {
        let (objects, rejected) = load_dir(self.dir.path(), &self.last);
        self.last = objects;
        let file = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        rejected
            .iter()
            .map(|one| {
                assert!(!one.error.is_empty(), "{one} says nothing");
                format!("{}:{} {} {}", file(&one.file), one.line, one.kind, one.name).trim_end().to_owned()
            })
            .collect()
    }

    fn policy(&self, name: &str) -> Option<&AuthorizationPolicy> {
        self.last.authorization_policies.get(&key("shop", name))
    }
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

const NONE: [&str; 0] = [];

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: cart
  namespace: shop
  uid: 0c2a-1
spec:
  nodeName: node-1
  containers:
  - name: app
    resources: {limits: {cpu: 1, memory: 1Gi}}
status:
  podIPs: [{ip: 198.18.1.2}, {ip: 'fd77:0:0:1::2'}]
";

const ALLOW: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: # the name follows
  name: allow
  namespace: shop
spec:
  rules:
  - from:
    - source: {namespaces: [a]}
";

#[test]
fn every_kind_is_read_from_yaml_and_json_and_lists() {
    let mut dir = Dir::new();
    dir.write("a.yaml", format!("# a comment\n---\n{POD}---\n{ALLOW}...\n---\n# nothing here\n---\n"));
    dir.write(
        "b.yml",
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {culvert.io/mesh: enabled}}}\n- {apiVersion: v1, kind: ServiceAccount, metadata: {name: cart}}\n",
    );
    dir.write(
        "c.json",
        r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "cart", "namespace": "shop", "creationTimestamp": null}, "spec": null}
           {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "n", "namespace": "shop"}, "spec": {"podSelector": {}}}"#,
    );
    dir.write(
        "d.yaml",
        "--- # with a comment\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: cart-x, namespace: shop}\naddressType: IPv4\nendpoints: []\n--- {apiVersion: security.istio.io/v1beta1, kind: PeerAuthentication, metadata: {name: default, namespace: shop}, spec: {mtls: {mode: STRICT}}}\n",
    );
    assert_eq!(dir.load(), NONE);
    let all = &dir.last;
    assert_eq!(pod_ips(&all.pods[&key("shop", "cart")]).len(), 2);
    assert!(all.namespaces.contains_key("shop"));
    assert!(all.service_accounts.contains_key(&key("default", "cart")), "no namespace means default");
    assert!(all.services.contains_key(&key("shop", "cart")));
    assert!(all.network_policies.contains_key(&key("shop", "n")));
    assert!(all.endpoint_slices.contains_key(&key("shop", "cart-x")));
    assert!(all.peer_authentications[&key("shop", "default")].spec.is_ok());
    assert!(dir.policy("allow").is_some_and(|policy| policy.spec.is_ok()));
    let pod = ObjectRef { kind: Kind::Pod, namespace: "shop".to_owned(), name: "cart".to_owned() };
    assert!(all.file_of(&pod).is_some_and(|file| file.ends_with("a.yaml")));
}

#[test]
fn what_is_no_concern_of_the_mesh_is_passed_over() {
    let mut dir = Dir::new();
    dir.write("a.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n");
    dir.write("b.yaml", "apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: x}\n");
    dir.write(TOKENS, "{not json");
    dir.write(".hidden.yaml", "{");
    dir.write("notes.txt", "{");
    dir.write("empty.yaml", "");
    std::fs::create_dir(dir.dir.path().join("sub.yaml")).expect("a directory can be made");
    assert_eq!(dir.load(), NONE);
    assert_eq!(dir.last, Objects::default());
}

#[test]
fn a_broken_document_is_refused_alone_and_named_by_file_and_line() {
    let mut dir = Dir::new();
    // The fault is in the line of the second document that does not close its bracket, line 18 of the file.
    let broken = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: b\n  labels: [x\n";
    dir.write("a.yaml", format!("{POD}---\n{broken}---\n{ALLOW}"));
    let rejected = dir.load();
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    let (place, object) = rejected[0].split_once(' ').expect("a place and an object");
    assert_eq!(object, "Pod default/b");
    let line: usize = place.strip_prefix("a.yaml:").and_then(|line| line.parse().ok()).expect("a line");
    assert!((18..=20).contains(&line), "the fault is said to be in line {line}");
    assert!(dir.last.pods.contains_key(&key("shop", "cart")) && dir.policy("allow").is_some());
}

#[test]
fn each_way_of_being_broken_is_refused_with_its_line() {
    for (text, expected) in [
        ("just text\n", "a.yaml:1"),
        ("- a\n- b\n", "a.yaml:1"),
        ("kind: Pod\nmetadata: {name: x}\n", "a.yaml:1 Pod default/x"),
        ("\n\napiVersion: v1\nkind: Pod\nmetadata: {namespace: shop}\n", "a.yaml:1 Pod"),
        ("---\napiVersion: v1\nkind: Pod\nmetadata: {name: ../x}\n", "a.yaml:1 Pod ../x"),
        ("---\napiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: A_b}\n", "a.yaml:1 Pod x"),
        ("apiVersion: v2\nkind: Pod\nmetadata: {name: x}\n", "a.yaml:1 Pod default/x"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: 7}\n", "a.yaml:1 Pod default/x"),
        ("apiVersion: v1\nkind: Pod\nkind: Pod\nmetadata: {name: x}\n", "a.yaml:3 Pod default/x"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: !!binary '?'\n", "a.yaml:4 Pod default/x"),
    ] {
        let mut dir = Dir::new();
        dir.write("a.yaml", text);
        assert_eq!(dir.load(), [expected], "{text:?}");
        assert_eq!(dir.last, Objects::default(), "{text:?}");
    }
}

#[test]
fn the_last_good_version_of_a_broken_object_stays() {
    let mut dir = Dir::new();
    dir.write("a.yaml", format!("{POD}---\n{ALLOW}"));
    assert_eq!(dir.load(), NONE);
    let good = dir.last.clone();
    // Not parsable as YAML; parsable and not a policy; with a field that is not known.
    for broken in [
        ALLOW.replace("rules:", "rules: ["),
        ALLOW.replace("namespaces: [a]", "namespaces: a"),
        ALLOW.replace("namespaces", "nampespaces"),
        ALLOW.replace("security.istio.io/v1", "security.istio.io/v3"),
    ] {
        dir.write("a.yaml", format!("{POD}---\n{broken}"));
        let rejected = dir.load();
        assert_eq!(rejected.len(), 1, "{broken}: {rejected:?}");
        assert!(rejected[0].ends_with("AuthorizationPolicy shop/allow"), "{rejected:?}");
        assert_eq!(dir.last, good, "{broken}");
    }
    dir.write("a.yaml", POD);
    assert_eq!(dir.load(), NONE);
    assert!(dir.policy("allow").is_none(), "what is taken out is gone");
}

#[test]
fn a_broken_security_policy_without_a_good_version_becomes_one_that_refuses() {
    for (broken, selects) in [
        (ALLOW.replace("rules:", "rules: ["), false),
        (ALLOW.replace("spec:", "spec: {rules: 7}\nx:"), false),
        (ALLOW.replace("  rules:", "  selector: {matchLabels: {app: cart}}\n  roles:"), true),
        (ALLOW.replace("security.istio.io/v1", "security.istio.io/v2"), false),
        (ALLOW.replace("AuthorizationPolicy", "PeerAuthentication"), false),
        (ALLOW.replace("apiVersion: security.istio.io/v1\n", ""), false),
    ] {
        let mut dir = Dir::new();
        dir.write("a.yaml", &broken);
        assert_eq!(dir.load().len(), 1, "{broken}");
        // A second load keeps it so, and its last version is not a good one to fall back on.
        assert_eq!(dir.load().len(), 1, "{broken}");
        if let Some(peer) = dir.last.peer_authentications.get(&key("shop", "allow")) {
            assert!(peer.spec.is_err());
        } else {
            let policy = dir.policy("allow").expect("the broken policy stands");
            let invalid = policy.spec.as_ref().expect_err("as one that refuses");
            assert_eq!(invalid.selector.is_some(), selects, "{broken}");
            assert!(!invalid.why.is_empty());
        }
        dir.write("a.yaml", ALLOW);
        assert_eq!(dir.load(), NONE);
        assert!(dir.policy("allow").is_some_and(|policy| policy.spec.is_ok()), "mended");
    }
}

#[test]
fn a_broken_policy_in_json_is_recognised_too() {
    let mut dir = Dir::new();
    dir.write("a.json", "{\n  \"apiVersion\": \"security.istio.io/v1\",\n  \"kind\": \"AuthorizationPolicy\",\n  \"metadata\": {\n    \"name\": \"allow\",\n    \"namespace\": \"shop\"\n  },\n  \"spec\": {\n}\n");
    assert_eq!(dir.load(), ["a.json:10 AuthorizationPolicy shop/allow"]);
    assert!(dir.policy("allow").is_some_and(|policy| policy.spec.is_err()));
}

#[test]
fn a_file_that_cannot_be_read_any_more_keeps_what_it_held() {
    let mut dir = Dir::new();
    dir.write("a.yaml", format!("{POD}---\n{ALLOW}"));
    dir.write("b.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    assert_eq!(dir.load(), NONE);
    let good = dir.last.clone();
    let large = vec![b'#'; usize::try_from(MAX_FILE).expect("it fits") + 1];
    for (bytes, place) in [(large.as_slice(), "a.yaml:0"), (b"\xff\xfe", "a.yaml:0"), (b"{ no: name", "a.yaml:1")] {
        dir.write("a.yaml", bytes);
        assert_eq!(dir.load(), [place]);
        assert_eq!(dir.last, good);
    }
    dir.remove("a.yaml");
    assert_eq!(dir.load(), NONE);
    assert_eq!((dir.last.pods.len(), dir.last.namespaces.len()), (0, 1));
}

#[test]
fn a_file_of_exactly_the_largest_size_is_read() {
    let mut dir = Dir::new();
    let mut text = ALLOW.as_bytes().to_vec();
    text.resize(usize::try_from(MAX_FILE).expect("it fits"), b'\n');
    dir.write("a.yaml", text);
    assert_eq!(dir.load(), NONE);
    assert!(dir.policy("allow").is_some());
}

#[test]
fn a_directory_that_is_gone_keeps_everything() {
    let mut dir = Dir::new();
    dir.write("a.yaml", ALLOW);
    assert_eq!(dir.load(), NONE);
    let gone = dir.dir.path().join("gone");
    let (objects, rejected) = load_dir(&gone, &dir.last);
    assert_eq!(objects, dir.last);
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].to_string().contains("read directory"), "{}", rejected[0]);
}

#[test]
fn an_object_that_is_there_twice_is_used_once_and_the_second_is_named() {
    let mut dir = Dir::new();
    dir.write("a.yaml", ALLOW);
    dir.write("b.yaml", ALLOW.replace("[a]", "[b]"));
    assert_eq!(dir.load(), ["b.yaml:1 AuthorizationPolicy shop/allow"]);
    let spec = dir.policy("allow").and_then(|policy| policy.spec.as_ref().ok()).expect("the first");
    assert_eq!(spec.rules[0].from[0].source.namespaces, ["a"]);
}

#[test]
fn a_good_version_elsewhere_wins_over_a_broken_one() {
    let mut dir = Dir::new();
    dir.write("a.yaml", ALLOW.replace("rules", "roles"));
    dir.write("b.yaml", ALLOW);
    assert_eq!(dir.load(), ["a.yaml:1 AuthorizationPolicy shop/allow"]);
    assert!(dir.policy("allow").is_some_and(|policy| policy.spec.is_ok()));
}

#[test]
fn a_document_that_blows_up_or_nests_without_end_is_refused() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    for text in [bomb.to_owned(), "[".repeat(100_000), "{a: ".repeat(1000)] {
        let mut dir = Dir::new();
        dir.write("a.yaml", &text);
        dir.write("b.json", &text);
        assert_eq!(dir.load().len(), 2);
    }
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_do_no_harm() {
    let mut dir = Dir::new();
    dir.write("a.yaml", format!("\u{feff}{POD}---\n{ALLOW}").replace('\n', "\r\n"));
    assert_eq!(dir.load(), NONE);
    assert_eq!(dir.last.pods.len(), 1);
    assert!(dir.policy("allow").is_some());
}

proptest! {
    // Each case is a few files; what is random is small.
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_policy_damaged_below_its_name_is_never_lost(
        at in any::<prop::sample::Index>(),
        byte in prop::sample::select(b" \n\t:#-[]{},&*!|>'\"%@ax0".to_vec()),
        known in any::<bool>(),
    ) {
        let start = ALLOW.find("spec:").expect("the policy has a spec");
        let mut bytes = ALLOW.as_bytes().to_vec();
        *at.get_mut(&mut bytes[start..]) = byte;
        let mut dir = Dir::new();
        if known {
            dir.write("a.yaml", ALLOW);
            dir.load();
        }
        dir.write("a.yaml", &bytes);
        let rejected = dir.load();
        let policy = dir.policy("allow");
        // Read as it now stands, or refused by name and kept or made one that refuses.
        prop_assert!(policy.is_some(), "{}", String::from_utf8_lossy(&bytes));
        prop_assert_eq!(policy.is_some_and(|policy| policy.spec.is_ok()), rejected.is_empty() || known);
    }

    #[test]
    fn garbage_is_refused_or_passed_over_and_never_a_panic(
        text in "([a-z:{}\\[\\]#&*!|>' \n-]|apiVersion: v1\n|kind: Pod\n|---\n|metadata:\n){0,60}",
        name in prop::sample::select(vec!["a.yaml", "a.json"]),
    ) {
        let mut dir = Dir::new();
        dir.write(name, text);
        dir.load();
        dir.load();
    }
}

#[test]
fn a_name_is_a_text_whatever_yaml_takes_it_for() {
    for name in ["n", "y", "no", "yes", "on", "off", "true", "false", "null", "1.0", "1.10", "007", "1e3", "0x1f", "12"]
    {
        for (form, policy) in [
            (
                "block",
                format!(
                    "kind: AuthorizationPolicy\nmetadata:\n  name: {name}   # so it is called\n  namespace: shop\n"
                ),
            ),
            ("flow", format!("kind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: {name}}}\n")),
        ] {
            let mut dir = Dir::new();
            let account = if name == "null" { "n" } else { name };
            let spec = format!(
                "spec: {{selector: {{matchLabels: {{app: {account}}}}}, action: DENY, rules: [{{from: [{{source: \
                 {{namespaces: [{account}]}}}}]}}]}}\n"
            );
            dir.write("p.yaml", format!("apiVersion: security.istio.io/v1\n{policy}{spec}"));
            dir.write(
                "pod.yaml",
                format!(
                    "apiVersion: v1\nkind: Pod\nmetadata: {{name: cart, namespace: shop, labels: {{app: {account}}}}}\n\
                     spec: {{nodeName: {account}, serviceAccountName: {account}, hostNetwork: yes, containers: []}}\n"
                ),
            );
            assert_eq!(dir.load(), NONE, "{name} {form}");
            let spec = dir.policy(name).unwrap_or_else(|| panic!("{name} {form}")).spec.as_ref().expect("understood");
            let spec = format!("{spec:?}");
            assert_eq!(spec.matches(&format!("{account:?}")).count(), 2, "{name} {form}: {spec}");
            let pod = &dir.last.pods[&key("shop", "cart")];
            let labels = pod.metadata.labels.as_ref().expect("labels");
            assert_eq!(labels["app"], account, "{form}");
            let spec = pod.spec.as_ref().expect("a spec");
            assert_eq!((spec.node_name.as_deref(), service_account(pod)), (Some(account), account), "{form}");
            assert_eq!(spec.host_network, Some(true), "what is a boolean stays one");
        }
    }
}

#[test]
fn an_object_without_a_name_is_refused_however_that_is_written() {
    for name in ["", "~", "''", "{}"] {
        let mut dir = Dir::new();
        dir.write("p.yaml", format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\n"));
        assert_eq!(dir.load(), ["p.yaml:1 Service"], "{name}");
    }
    // Where no name is said there is the default.
    let mut dir = Dir::new();
    dir.write("s.yaml", "apiVersion: v1\nkind: Service\nmetadata:\n  name: cart\n  namespace:\n");
    assert_eq!(dir.load(), NONE);
    assert!(dir.last.services.contains_key(&key("default", "cart")));
}

//! What makes a security policy invalid. Each of these would mean less, or something else, to a laxer reader.

use serde_json::{Value, json};

use super::*;

fn authorization(spec: Value) -> Result<AuthorizationPolicy, String> {
    AuthorizationPolicy::parse(
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": spec,
        }),
        Standing::default(),
    )
}

fn peer(spec: Value) -> Result<PeerAuthentication, String> {
    PeerAuthentication::parse(
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": spec,
        }),
        Standing::default(),
    )
}

#[test]
fn a_policy_reads_as_it_is_written() {
    let policy = authorization(json!({
        "selector": {"matchLabels": {"app": "cart"}},
        "action": "DENY",
        "rules": [{
            "from": [{"source": {"principals": ["cluster.local/ns/a/sa/x"], "notIpBlocks": ["10.0.0.0/8"]}}],
            "to": [{"operation": {"ports": ["80"], "paths": ["/x*"]}}],
            "when": [{"key": "source.namespace", "notValues": ["b"]}],
        }],
    }));
    let spec = policy.and_then(|policy| policy.spec.map_err(|invalid| invalid.why)).expect("a policy");
    assert_eq!(spec.action, Action::Deny);
    assert_eq!(spec.selector.expect("a selector").match_labels["app"], "cart");
    assert_eq!(spec.rules[0].from[0].source.not_ip_blocks, ["10.0.0.0/8"]);
    assert_eq!(spec.rules[0].to[0].operation.paths, ["/x*"]);
    assert_eq!(spec.rules[0].when[0].not_values, ["b"]);
}

#[test]
fn an_empty_spec_is_a_policy_that_allows_nothing() {
    let policy = authorization(json!({})).expect("a policy");
    assert_eq!(policy.spec, Ok(AuthorizationSpec::default()));
    let bare = json!({"metadata": {"name": "p"}});
    assert_eq!(
        AuthorizationPolicy::parse(bare, Standing::default()).map(|policy| policy.spec),
        Ok(Ok(AuthorizationSpec::default()))
    );
}

#[test]
fn a_policy_that_cannot_be_meant_as_written_is_invalid_and_says_where() {
    let rule = |rule: Value| json!({"rules": [rule]});
    let source = |source: Value| rule(json!({"from": [{"source": source}]}));
    let operation = |operation: Value| rule(json!({"to": [{"operation": operation}]}));
    let condition = |condition: Value| rule(json!({"when": [condition]}));
    for (spec, place) in [
        (json!({"actoin": "DENY"}), "actoin"),
        (json!({"action": "deny"}), "deny"),
        (json!({"action": "CUSTOM"}), "provider"),
        (json!({"provider": {"name": "x"}}), "provider"),
        (json!({"selector": {"matchExpressions": []}}), "matchExpressions"),
        (json!({"selector": {"matchLabels": {"app": "c*"}}}), "matchLabels"),
        (json!({"selector": {}, "targetRefs": [{"kind": "Service", "name": "x"}]}), "targetRefs"),
        (rule(json!({"form": []})), "form"),
        (rule(json!({"from": [{}]})), "source"),
        (rule(json!({"from": [null]})), "null"),
        (source(json!({})), "rules[0].from[0].source"),
        (source(json!({"principals": []})), "names nothing"),
        (source(json!({"principals": [""]})), "principals"),
        (source(json!({"principal": ["x"]})), "principal"),
        (source(json!({"principals": "x"})), "sequence"),
        (source(json!({"ipBlocks": ["10.0.0.0/33"]})), "ipBlocks"),
        (source(json!({"notIpBlocks": ["ten"]})), "notIpBlocks"),
        (source(json!({"remoteIpBlocks": ["10.0.0/8"]})), "remoteIpBlocks"),
        (source(json!({"serviceAccounts": ["a/b/c"]})), "serviceAccounts"),
        (source(json!({"serviceAccounts": ["a/*"]})), "serviceAccounts"),
        (source(json!({"serviceAccounts": ["a/b"], "namespaces": ["a"]})), "serviceAccounts"),
        (operation(json!({})), "operation"),
        (operation(json!({"ports": ["http"]})), "ports"),
        (operation(json!({"ports": ["0"]})), "ports"),
        (operation(json!({"ports": ["+80"]})), "ports"),
        (operation(json!({"ports": [80]})), "string"),
        (operation(json!({"notPorts": ["65536"]})), "notPorts"),
        (operation(json!({"verbs": ["GET"]})), "verbs"),
        (condition(json!({"key": "source.namespace"})), "neither"),
        (condition(json!({"key": "source.nampespace", "values": ["a"]})), "source.nampespace"),
        (condition(json!({"values": ["a"]})), "key"),
        (condition(json!({"key": "source.ip", "values": ["here"]})), "values"),
        (condition(json!({"key": "destination.port", "notValues": ["x"]})), "notValues"),
    ] {
        let error = authorization(spec.clone()).expect_err(&spec.to_string());
        assert!(error.contains(place), "{spec}: {error}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place_in_the_document() {
    for (spec, wanted) in [
        (
            json!({"rules": [{}, {"from": [{"source": {"namespaces": "a"}}]}]}),
            "spec.rules[1].from[0].source.namespaces: ",
        ),
        (json!({"rules": [{"from": [{"source": {"namespace": ["a"]}}]}]}), "spec.rules[0].from[0].source.namespace: "),
        (json!({"rules": [{"from": [{"source": {"ipBlocks": ["x"]}}]}]}), "spec.rules[0].from[0].source.ipBlocks: "),
        (json!({"rules": [{"to": [{}]}]}), "spec.rules[0].to[0]: missing field `operation`"),
        (json!({"selector": {"matchExpressions": []}}), "spec.selector.matchExpressions: "),
        (json!([]), "spec: "),
        (json!({"rules": [{"form": []}]}), "spec.rules[0].form: unknown field"),
        // An empty list would be read as a rule, or a source, that asks for nothing.
        (json!({"rules": [[]]}), "spec.rules[0]: a list"),
        (json!({"rules": [{"from": [{"source": [["a"]]}]}]}), "spec.rules[0].from[0].source"),
        (json!({"selector": []}), "spec.selector: a list"),
    ] {
        let error = authorization(spec.clone()).expect_err(&spec.to_string());
        assert!(error.starts_with(wanted), "{spec}: {error}");
    }
    let error =
        peer(json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"http": {}}})).expect_err("no port");
    assert!(error.starts_with("spec.portLevelMtls"), "{error}");
}

#[test]
fn a_spec_that_is_misspelt_is_not_an_empty_spec() {
    let misspelt = json!({"metadata": {"name": "p"}, "sepc": {"action": "DENY"}});
    let error = AuthorizationPolicy::parse(misspelt, Standing::default());
    assert!(error.is_err_and(|error| error.contains("sepc")));
}

#[test]
fn a_peer_authentication_reads_as_it_is_written() {
    let policy = peer(json!({
        "selector": {"matchLabels": {"app": "cart"}},
        "mtls": {"mode": "STRICT"},
        "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}, "9090": {}},
    }));
    let spec = policy.expect("a policy").spec.expect("valid");
    assert_eq!(spec.mtls, Some(Mtls { mode: Mode::Strict }));
    assert_eq!(spec.port_level_mtls[&8080].mode, Mode::Permissive);
    assert_eq!(spec.port_level_mtls[&9090].mode, Mode::Unset);
}

#[test]
fn a_peer_authentication_that_cannot_be_meant_as_written_is_invalid() {
    for spec in [
        json!({"mtls": {"mode": "strict"}}),
        json!({"mtls": "STRICT"}),
        json!({"mtls": ["STRICT"]}),
        json!({"mtsl": {"mode": "STRICT"}}),
        json!({"portLevelMtls": {"8080": {"mode": "STRICT"}}}),
        json!({"selector": {"matchLabels": {}}, "portLevelMtls": {"8080": {"mode": "STRICT"}}}),
        json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"0": {"mode": "STRICT"}}}),
        json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"65536": {"mode": "STRICT"}}}),
        json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"http": {"mode": "STRICT"}}}),
    ] {
        assert!(peer(spec.clone()).is_err(), "{spec} was accepted");
    }
}

#[test]
fn a_broken_policy_keeps_its_selector_if_that_can_be_read() {
    let object =
        ObjectRef { kind: super::super::Kind::AuthorizationPolicy, namespace: "shop".to_owned(), name: "p".to_owned() };
    let selects = |selector: Value| {
        let value = json!({"metadata": {"name": "p"}, "spec": {"selector": selector, "actoin": "x"}});
        AuthorizationPolicy::broken(&object, Some(&value), "why").selector().cloned()
    };
    let cart = WorkloadSelector { match_labels: BTreeMap::from([("app".to_owned(), "cart".to_owned())]) };
    assert_eq!(selects(json!({"matchLabels": {"app": "cart"}})), Some(cart));
    assert_eq!(selects(json!({"matchLabels": {"app": "*"}})), None);
    assert_eq!(selects(json!({"matchLabel": {"app": "cart"}})), None);
    assert_eq!(selects(json!({"matchLabels": {}})), None);
    assert_eq!(AuthorizationPolicy::broken(&object, None, "why").selector(), None);
}

#[test]
fn a_selector_wants_every_label_exactly() {
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let selector = WorkloadSelector { match_labels: labels(&[("app", "cart"), ("tier", "web")]) };
    assert!(selector.selects(Some(&labels(&[("app", "cart"), ("tier", "web"), ("x", "y")]))));
    assert!(!selector.selects(Some(&labels(&[("app", "cart")]))));
    assert!(!selector.selects(None));
    assert!(WorkloadSelector::default().selects(None));
}

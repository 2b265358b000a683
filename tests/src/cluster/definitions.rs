//! The definitions of policies on a real API server, without a mesh: what is refused already where it is written, by which words, and
//! what they let through so that its status can say more.

use anyhow::{Context as _, Result, ensure};
use cluster::Cluster;
use serde_json::{Value, json};

use crate::support::up;

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/crds.yaml");
const AUTHORIZATION: &str = "AuthorizationPolicy";
const PEER: &str = "PeerAuthentication";

/// What the API server says to it; nothing is kept.
fn create(cluster: &Cluster, version: &str, kind: &str, spec: &Value) -> Result<String> {
    let metadata = json!({"name": "one", "namespace": "default"});
    let api = format!("security.istio.io/{version}");
    let object = json!({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec});
    cluster.kubectl_with(&object.to_string(), &["create", "--dry-run=server", "-f", "-"])
}

#[test]
fn what_could_only_refuse_everything_is_refused_where_it_is_written_in_both_versions_and_no_more() -> Result<()> {
    let cluster = up("kube-definitions")?;
    cluster.kubectl(&["create", "-f", CRDS])?;
    let established = ["--for=condition=Established", "--timeout=30s"];
    let named = ["crd", "-l", "app.kubernetes.io/part-of=culvert,app.kubernetes.io/component=policy-crds"];
    cluster.kubectl(&[&["wait"], &named[..], &established[..]].concat())?;

    let (app, service) = (json!({"matchLabels": {"app": "web"}}), json!({"kind": "Service", "name": "web"}));
    let strict = json!({"8080": {"mode": "STRICT"}});
    let excluding = "selector and targetRefs exclude each other";
    let labels = "empty keys and wildcards are not allowed in matchLabels";
    let port = "portLevelMtls needs a selector with labels";
    let provider = json!({"name": "x"});
    let refused = [
        (AUTHORIZATION, json!({"selector": app, "targetRefs": [service]}), excluding),
        (AUTHORIZATION, json!({"selector": {}, "targetRef": service}), excluding),
        (AUTHORIZATION, json!({"action": "CUSTOM", "rules": [{}]}), "action CUSTOM needs a provider"),
        (AUTHORIZATION, json!({"action": "DENY", "provider": provider}), "a provider is for action CUSTOM alone"),
        (AUTHORIZATION, json!({"provider": provider}), "a provider is for action CUSTOM alone"),
        (AUTHORIZATION, json!({"selector": {"matchLabels": {"app": "w*"}}}), labels),
        (AUTHORIZATION, json!({"selector": {"matchLabels": {"a*": "web"}}}), labels),
        (PEER, json!({"selector": {"matchLabels": {"": "web"}}}), labels),
        (PEER, json!({"portLevelMtls": strict}), port),
        (PEER, json!({"selector": {"matchLabels": {}}, "portLevelMtls": strict}), port),
    ];
    let passed = [
        (AUTHORIZATION, json!({})),
        (AUTHORIZATION, json!({"selector": app, "targetRefs": []})),
        (AUTHORIZATION, json!({"targetRefs": [service], "rules": [{}]})),
        (AUTHORIZATION, json!({"selector": app, "action": "CUSTOM", "provider": provider})),
        (AUTHORIZATION, json!({"selector": app, "actoin": "DENY"})),
        (PEER, json!({"mtls": {"mode": "STRICT"}, "portLevelMtls": {}})),
        (PEER, json!({"selector": app, "portLevelMtls": strict})),
    ];
    for version in ["v1", "v1beta1"] {
        for (kind, spec, says) in &refused {
            let Err(error) = create(&cluster, version, kind, spec) else {
                anyhow::bail!("{version} {kind} {spec} was taken")
            };
            ensure!(format!("{error:#}").contains(says), "{version} {kind} {spec}: {error:#}");
        }
        for (kind, spec) in &passed {
            create(&cluster, version, kind, spec).with_context(|| format!("{version} {kind} {spec}"))?;
        }
    }
    Ok(())
}

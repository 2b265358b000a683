//! `culvert config|connections|certificates|stats|identity`: what the proxy of a node says of itself and of its pods.

use mesh_api::manifests::{Pod, is_terminal, node_name, service_account};
use mesh_daemon::table::{Column, column};
use mesh_kube::escape;
use serde_json::{Value, json};

use crate::args::{Output, Target};
use crate::ask::{self, Proxy};
use crate::failure::Failure;
use crate::mesh::{Mesh, pod_of};
use crate::names::Component;
use crate::print::{self, Answer};
use crate::ps::of_proxy;

const CONNECTIONS: [Column; 8] = [
    column("ID", "id"),
    column("DIRECTION", "direction"),
    column("CLIENT", "client"),
    column("DESTINATION", "destination"),
    column("SOURCE", "source"),
    column("SENT", "sent"),
    column("RECEIVED", "received"),
    column("STARTED", "started"),
];
const IDENTITY: [Column; 7] = [
    column("POD", "pod"),
    column("IDENTITY", "identity"),
    column("SERIAL", "serial"),
    column("AGE", "age"),
    column("EXPIRES IN", "expires_in"),
    column("FAILURES", "failures"),
    column("LAST ERROR", "last_error"),
];

/// Whom a person means.
enum Whom {
    Node(String),
    Pod(Box<Pod>),
}

/// `config`, `connections`, `certificates` and `stats`.
pub async fn run(mesh: &Mesh, output: Output, verb: &str, target: &Target) -> Result<Answer, Failure> {
    let whom = whom(mesh, &target.target).await?;
    let (node, pod) = match &whom {
        Whom::Node(node) => (node.clone(), None),
        Whom::Pod(pod) => (node_of(pod, &target.target)?, Some(pod)),
    };
    let proxy = proxy_of(mesh, &node).await?;
    let ask = |verb| ask::json(mesh, Component::NodeProxy, &proxy, verb);
    match (pod, verb) {
        (Some(pod), "connections") => {
            let name = mesh_api::manifests::pod_name(pod).to_string();
            let mut open = ask(verb).await?.as_array().cloned().unwrap_or_default();
            open.retain(|one| one["pod"].as_str() == Some(&name));
            let text = match (output, open.is_empty()) {
                (Output::Table, true) => format!("pod {name} has no connection through its proxy\n"),
                _ => print::rows(output, &CONNECTIONS, &open),
            };
            Ok(Answer::well(text))
        }
        (Some(_), "certificates") => identity(mesh, output, &target.target).await,
        // Columns are the daemon's own: it knows what it says in its version.
        _ => {
            let form = if output == Output::Json { "json" } else { "table" };
            Ok(Answer::well(ask::text(mesh, Component::NodeProxy, &proxy, verb, form).await?))
        }
    }
}

/// `identity`.
pub async fn identity(mesh: &Mesh, output: Output, name: &str) -> Result<Answer, Failure> {
    let pod = pod(mesh, name).await?.ok_or_else(|| no_pod(mesh, name))?;
    let proxy = proxy_of(mesh, &node_of(&pod, name)?).await?;
    let ask = |verb| ask::json(mesh, Component::NodeProxy, &proxy, verb);
    let (pods, certificates) = tokio::try_join!(ask("pods"), ask("certificates"))?;
    let list = |value: Value| value.as_array().cloned().unwrap_or_default();
    let known = Proxy { pods: list(pods), certificates: list(certificates), config: Value::Null };
    let row = identity_row(&pod, &known, print::now())?;
    Ok(Answer::well(match output {
        Output::Json => print::json(&row),
        Output::Table => print::rows(output, &IDENTITY, &[row]),
    }))
}

fn identity_row(pod: &Pod, proxy: &Proxy, now: u64) -> Result<Value, Failure> {
    let name = mesh_api::manifests::pod_name(pod);
    let (entry, certificate) = of_proxy(Some(proxy), pod);
    let Some(entry) = entry else {
        return Err(Failure::refused(
            format!("the proxy of its node does not serve pod {name}, so it has no identity there"),
            "see whether it is enrolled and what was observed: culvert ps --all",
        ));
    };
    let of = |key: &str| certificate.map_or(Value::Null, |one| one[key].clone());
    let seconds = |key: &str| of(key).as_u64();
    Ok(json!({
        "pod": name.to_string(),
        "service_account": service_account(pod),
        "identity": entry["identity"],
        "serial": of("serial"),
        "not_before": of("not_before"),
        "not_after": of("not_after"),
        "age": seconds("not_before").map(|from| print::span(now.saturating_sub(from))),
        "expires_in": seconds("not_after").map(|at| print::until(at, now)),
        "next_attempt_in_seconds": of("next_attempt_in"),
        "failures": of("failures"),
        "last_error": of("last_error"),
    }))
}

/// A node's name has no slash; a word without one may be either, and a node is looked for first.
async fn whom(mesh: &Mesh, text: &str) -> Result<Whom, Failure> {
    if !text.contains('/') && mesh.get(&format!("/api/v1/nodes/{}", escape(text))).await?.is_some() {
        return Ok(Whom::Node(text.to_owned()));
    }
    match pod(mesh, text).await? {
        Some(pod) => Ok(Whom::Pod(Box::new(pod))),
        None if text.contains('/') => Err(no_pod(mesh, text)),
        None => Err(Failure::refused(
            format!("there is no node {text}, and no pod {text} in namespace {}", mesh.namespace),
            "name a node (kubectl get nodes), NAMESPACE/POD, or give --namespace",
        )),
    }
}

async fn pod(mesh: &Mesh, text: &str) -> Result<Option<Pod>, Failure> {
    let (namespace, name) = pod_of(text, &mesh.namespace);
    let path = format!("/api/v1/namespaces/{}/pods/{}", escape(namespace), escape(name));
    let Some(object) = mesh.get(&path).await? else { return Ok(None) };
    let read = serde_json::from_value(object);
    read.map(Some).map_err(|error| {
        Failure::refused(
            format!("pod {namespace}/{name} cannot be read: {error}"),
            "see whether culvert knows this version of Kubernetes: culvert check --pre",
        )
    })
}

fn no_pod(mesh: &Mesh, text: &str) -> Failure {
    let (namespace, name) = pod_of(text, &mesh.namespace);
    Failure::refused(format!("there is no pod {name} in namespace {namespace}"), "see the pods of the mesh: culvert ps")
}

fn node_of(pod: &Pod, name: &str) -> Result<String, Failure> {
    if is_terminal(pod) {
        return Err(Failure::refused(format!("pod {name} has ended"), "name a running pod: culvert ps"));
    }
    let node = node_name(pod).map(str::to_owned);
    node.ok_or_else(|| {
        Failure::refused(format!("pod {name} is on no node yet"), format!("see why: kubectl describe pod {name}"))
    })
}

async fn proxy_of(mesh: &Mesh, node: &str) -> Result<String, Failure> {
    let mut proxies = ask::serving(&mesh.own_pods().await?, Component::NodeProxy);
    proxies.remove(node).ok_or_else(|| {
        Failure::refused(format!("no node-proxy runs on node {node}"), "see the components: culvert status --brief")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_comes_from_the_proxy_or_is_an_error() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "cart", "uid": "u1"},
            "spec": {"nodeName": "n1", "containers": []},
        }))
        .expect("a pod");
        let mut proxy = Proxy::default();
        let failure = identity_row(&pod, &proxy, 0).expect_err("not served");
        assert!(failure.to_string().contains("does not serve pod shop/cart"), "{failure}");
        proxy.pods.push(json!({"uid": "u1", "identity": "spiffe://x/ns/shop/sa/default"}));
        let row = identity_row(&pod, &proxy, 0).expect("served");
        assert!(row["serial"].is_null() && row["identity"].is_string(), "no certificate yet: {row:#}");
        let identity = "spiffe://x/ns/shop/sa/default";
        proxy
            .certificates
            .push(json!({"identity": identity, "serial": "ab", "not_before": 10, "not_after": 200, "failures": 0}));
        let row = identity_row(&pod, &proxy, 100).expect("served");
        assert_eq!((row["age"].as_str(), row["expires_in"].as_str()), (Some("1m30s"), Some("1m40s")));
    }
}

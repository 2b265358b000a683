//! Asks the mesh's daemons: `pods/exec` of their own binary's `admin` verb, so that nothing listens on a network.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::{Pod, is_ready, is_terminal, node_name};
use serde_json::Value;

use crate::failure::Failure;
use crate::mesh::Mesh;
use crate::names::{COMPONENT, Component, NAMESPACE};

/// Longer than the daemon's own patience of 10 s, so that its word is heard and not only silence.
const PATIENCE: Duration = Duration::from_secs(12);
/// Asked at a time: each costs the API server a connection to a kubelet.
const AT_A_TIME: usize = 16;

/// The pod to ask on each node: of those of a component the one that serves, or serves next. While one takes over from another
/// there are two; the newest that is ready has the new connections.
pub fn serving(pods: &[Pod], component: Component) -> BTreeMap<String, String> {
    let rank = |pod: &Pod| -> (bool, bool, Option<Timestamp>) {
        let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (is_ready(pod), pod.metadata.deletion_timestamp.is_none(), made)
    };
    let mut best: BTreeMap<String, &Pod> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_of(pod, component) && !is_terminal(pod)) {
        let Some(node) = node_name(pod) else { continue };
        let place = best.entry(node.to_owned()).or_insert(pod);
        if rank(pod) > rank(place) {
            *place = pod;
        }
    }
    best.into_iter().filter_map(|(node, pod)| Some((node, pod.metadata.name.clone()?))).collect()
}

/// Whether a pod is one of a component.
pub fn is_of(pod: &Pod, component: Component) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(COMPONENT)).is_some_and(|value| value == component.label())
}

/// Binary and container that answer for a component.
fn who(component: Component) -> (&'static str, &'static str) {
    match component {
        Component::PodWatcher => ("/pod-watcher", "pod-watcher"),
        // Only these two are asked; the control plane has no admin verb.
        _ => ("/node-proxy", "worker"),
    }
}

/// The output of `admin VERB` of this pod, in this form (`json`, `table`).
pub async fn text(mesh: &Mesh, component: Component, pod: &str, verb: &str, form: &str) -> Result<String, Failure> {
    let (binary, container) = who(component);
    let command = [binary, "admin", verb, "-o", form];
    let object = format!("ask {NAMESPACE}/{pod} for its {verb}");
    let patience = PATIENCE.min(mesh.left());
    let said = mesh
        .api
        .exec((NAMESPACE, pod), container, &command, patience)
        .await
        .map_err(|error| exec_failed(&object, &error))?;
    let complaint = String::from_utf8_lossy(&said.stderr).trim().to_owned();
    match said.code {
        0 => Ok(String::from_utf8_lossy(&said.stdout).into_owned()),
        1 => Err(Failure::refused(
            format!("{object}: {complaint}"),
            "see whether culvert and the daemon are of one version: culvert status",
        )),
        _ => Err(Failure::silent(format!("{object}: {complaint}"), format!("see its log: culvert logs {container}"))),
    }
}

fn exec_failed(object: &str, error: &mesh_kube::Error) -> Failure {
    match error.code() {
        Some(403) => Failure::refused(
            format!("{object}: {error}"),
            "your account needs create on pods/exec in culvert-system; or use --brief where there is one",
        ),
        Some(404) => Failure::silent(format!("{object}: {error}"), "the pod has just been replaced: try again"),
        _ => Failure::silent(
            format!("{object}: {error}"),
            "see whether the pod runs and its node is Ready: culvert status --brief",
        ),
    }
}

/// The answer to a verb, as JSON.
pub async fn json(mesh: &Mesh, component: Component, pod: &str, verb: &str) -> Result<Value, Failure> {
    let text = text(mesh, component, pod, verb, "json").await?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::refused(
            format!("{NAMESPACE}/{pod} answers {verb} with what is no JSON: {error}"),
            "see whether culvert and the daemon are of one version: culvert status",
        )
    })
}

/// What the proxy of a node says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proxy {
    /// `admin pods`.
    pub pods: Vec<Value>,
    /// `admin certificates`.
    pub certificates: Vec<Value>,
    /// `admin config`; asked for on request only: it is long.
    pub config: Value,
}

/// Asks the proxies of these nodes, several at a time. Who does not answer is in the second part.
pub async fn proxies(
    mesh: &Mesh,
    of: BTreeMap<String, String>,
    with_config: bool,
) -> (BTreeMap<String, Proxy>, Vec<String>) {
    let list = |value: Value| value.as_array().cloned().unwrap_or_default();
    let asked = stream::iter(of).map(|(node, pod)| async move {
        let answer = async {
            let ask = |verb| json(mesh, Component::NodeProxy, &pod, verb);
            let (pods, certificates) = tokio::try_join!(ask("pods"), ask("certificates"))?;
            let config = if with_config { ask("config").await? } else { Value::Null };
            Ok::<_, Failure>(Proxy { pods: list(pods), certificates: list(certificates), config })
        };
        (node, answer.await)
    });
    let mut answers = asked.buffer_unordered(AT_A_TIME);
    let (mut heard, mut silent) = (BTreeMap::new(), Vec::new());
    while let Some((node, answer)) = answers.next().await {
        match answer {
            Ok(proxy) => {
                heard.insert(node, proxy);
            }
            Err(failure) => silent.push(format!("node {node}: {failure}")),
        }
    }
    silent.sort();
    (heard, silent)
}

/// Asks the pod-watchers of these nodes, several at a time, what they saw last of their node's CNI chain.
pub async fn chains(mesh: &Mesh, of: BTreeMap<String, String>) -> BTreeMap<String, Result<Value, Failure>> {
    let asked = stream::iter(of).map(|(node, pod)| async move {
        let answer = json(mesh, Component::PodWatcher, &pod, "chain").await;
        (node, answer)
    });
    asked.buffer_unordered(AT_A_TIME).collect().await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, component: &str, made: &str, ready: bool, going: bool) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "labels": {COMPONENT: component}, "creationTimestamp": made},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        if going {
            pod["metadata"]["deletionTimestamp"] = made.into();
        }
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn of_two_proxies_of_a_node_the_newest_that_is_ready_is_asked() {
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let pods = [
            pod("a-new-not-ready", "a", "node-proxy", new, false, false),
            pod("a-old", "a", "node-proxy", old, true, false),
            pod("b-old", "b", "node-proxy", old, true, false),
            pod("b-new", "b", "node-proxy", new, true, false),
            pod("c-going", "c", "node-proxy", new, false, true),
            pod("c-next", "c", "node-proxy", old, false, false),
            pod("other", "d", "pod-watcher", old, true, false),
        ];
        let asked: Vec<(String, String)> = serving(&pods, Component::NodeProxy).into_iter().collect();
        let names = [("a", "a-old"), ("b", "b-new"), ("c", "c-next")];
        assert_eq!(asked, names.map(|(node, pod)| (node.to_owned(), pod.to_owned())));
    }
}

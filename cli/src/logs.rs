//! `culvert logs`: the logs of a component's pods side by side, each line with where it comes from.

use std::io::Write as _;

use mesh_api::manifests::{Pod, node_name};
use mesh_kube::escape;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::ask::is_of;
use crate::failure::Failure;
use crate::mesh::Mesh;
use crate::names::{Component, NAMESPACE};
use crate::print::Answer;

/// Lines that wait to be printed; who reads them from the API server waits when it is full.
const WAITING: usize = 1024;

/// Which lines.
pub struct What {
    /// Whose.
    pub component: Component,
    /// Of this node alone.
    pub node: Option<String>,
    /// From before.
    pub tail: u32,
    /// And those to come.
    pub follow: bool,
    /// Of the run before this one.
    pub previous: bool,
}

/// One container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stream {
    /// In front of each line.
    prefix: String,
    path: String,
}

/// Prints lines as they come.
pub async fn run(mesh: &Mesh, what: &What) -> Result<Answer, Failure> {
    let streams = streams(&mesh.own_pods().await?, what);
    if streams.is_empty() {
        let on = what.node.as_deref().map(|node| format!(" on node {node}")).unwrap_or_default();
        let name = what.component.label();
        return Err(Failure::refused(
            format!("no pod of {name} runs{on}"),
            "see the components: culvert status --brief",
        ));
    }
    let (tell, mut lines) = mpsc::channel::<Result<String, String>>(WAITING);
    let mut readers = JoinSet::new();
    for stream in streams {
        let (api, tell) = (mesh.api.clone(), tell.clone());
        readers.spawn(async move {
            let failed = |error| Failure::of(format!("log of {}", stream.prefix), &error).to_string();
            let mut log = match api.log(&stream.path).await {
                Ok(log) => log,
                // An error of sending: the printer has ended.
                Err(error) => return drop(tell.send(Err(failed(error))).await),
            };
            loop {
                let line = match log.next().await {
                    Ok(Some(line)) => Ok(format!("{} {line}\n", stream.prefix)),
                    Ok(None) => return,
                    Err(error) => Err(failed(error)),
                };
                let last = line.is_err();
                if tell.send(line).await.is_err() || last {
                    return;
                }
            }
        });
    }
    drop(tell);
    let mut silent = Vec::new();
    while let Some(line) = lines.recv().await {
        match line {
            Ok(line) => {
                let mut out = std::io::stdout().lock();
                if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
                    break; // whoever reads has seen enough
                }
            }
            Err(failure) => silent.push(failure),
        }
    }
    Ok(Answer { text: String::new(), well: true, silent })
}

fn streams(pods: &[Pod], what: &What) -> Vec<Stream> {
    let mut streams = Vec::new();
    for pod in pods.iter().filter(|pod| is_of(pod, what.component)) {
        let (Some(name), Some(node)) = (pod.metadata.name.as_deref(), node_name(pod)) else { continue };
        if what.node.as_deref().is_some_and(|wanted| wanted != node) {
            continue;
        }
        // Several replicas, or a proxy and its successor, may be on one node.
        let tail = name.rsplit('-').next().unwrap_or(name);
        for container in what.component.containers() {
            let query = format!(
                "container={container}&tailLines={}&follow={}&previous={}",
                what.tail, what.follow, what.previous
            );
            streams.push(Stream {
                prefix: format!("[{node} {container} {tail}]"),
                path: format!("/api/v1/namespaces/{NAMESPACE}/pods/{}/log?{query}", escape(name)),
            });
        }
    }
    streams.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    streams
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_container_of_the_component_has_a_stream_and_a_name() {
        let pod = |name: &str, node: &str, component: &str| -> Pod {
            let labels = json!({crate::names::COMPONENT: component});
            serde_json::from_value(
                json!({"metadata": {"name": name, "labels": labels}, "spec": {"nodeName": node, "containers": []}}),
            )
            .expect("a pod")
        };
        let pods = [
            pod("culvert-node-proxy-x2x", "n2", "node-proxy"),
            pod("culvert-node-proxy-x1x", "n1", "node-proxy"),
            pod("culvert-pod-watcher-w1w", "n1", "pod-watcher"),
        ];
        let what = |component, node: Option<&str>| What {
            component,
            node: node.map(str::to_owned),
            tail: 5,
            follow: false,
            previous: true,
        };
        let prefixes = |what: &What| streams(&pods, what).into_iter().map(|one| one.prefix).collect::<Vec<_>>();
        let both = ["[n1 keeper x1x]", "[n1 worker x1x]", "[n2 keeper x2x]", "[n2 worker x2x]"];
        assert_eq!(prefixes(&what(Component::NodeProxy, None)), both);
        assert_eq!(prefixes(&what(Component::Worker, Some("n2"))), ["[n2 worker x2x]"]);
        assert!(prefixes(&what(Component::ControlPlane, None)).is_empty());
        let of = streams(&pods, &what(Component::PodWatcher, None)).remove(0);
        assert_eq!(
            of.path,
            "/api/v1/namespaces/culvert-system/pods/culvert-pod-watcher-w1w/log?container=pod-watcher&tailLines=5&follow=false&previous=true"
        );
    }
}

//! A node whose pod-watcher follows an API server that is played by the test, on the node's loopback.

use std::sync::mpsc;
use std::time::Duration;

use mesh_api::manifests::Kind;
use mesh_kube::fake::Fake;
use serde_json::{Value, json};

use super::Node;

/// A node whose pod-watcher follows the API server, on IPv4 or IPv6.
pub fn node(loopback: &'static str, flags: &[&str]) -> (Node, Fake) {
    node_with(loopback, flags, |_, _| Vec::new())
}

/// The same, once something more is prepared, with flags that depend on it.
pub fn node_with(
    loopback: &'static str,
    flags: &[&str],
    prepare: impl FnOnce(&Node, &Fake) -> Vec<String>,
) -> (Node, Fake) {
    let mut fake = None;
    let node = Node::start_with(flags, |node| {
        let (send, receive) = mpsc::channel();
        let netns = node.netns.try_clone().expect("descriptor");
        // Its sockets are of the netns that their thread is in.
        std::thread::spawn(move || {
            let serve = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
                runtime.block_on(async {
                    send.send(Fake::start(loopback).await).expect("the test waits");
                    std::future::pending::<()>().await;
                });
            };
            netns.run(serve).expect("entered");
        });
        let server = receive.recv_timeout(Duration::from_secs(20)).expect("the server starts");
        for (name, mesh) in [("shop", json!({"culvert.io/mesh": "enabled"})), ("tools", json!({}))] {
            server.put(Kind::Namespace, namespace(name, mesh));
        }
        std::fs::write(node.path("kubeconfig"), server.kubeconfig()).expect("written");
        let mut flags = prepare(node, &server);
        fake = Some(server);
        let kubeconfig = node.path("kubeconfig").to_string_lossy().into_owned();
        flags.extend(["--source".to_owned(), "api".to_owned(), "--kubeconfig".to_owned(), kubeconfig]);
        flags
    });
    (node, fake.expect("set above"))
}

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}})
}

//! An API server for tests, in this process, on loopback: lists in pages, watches, bookmarks, and on request every way in which they go
//! wrong. It keeps what it is told as JSON and knows nothing of what the objects mean.

mod answer;
mod state;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_api::manifests::Kind;
use serde_json::Value;
use tokio::sync::watch;

use state::State;

/// The server. Ends when it is dropped.
pub struct Fake {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Shared,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    /// Wakes whoever watches.
    changed: watch::Sender<u64>,
    /// Counts up: open connections of before are cut.
    cut: watch::Sender<u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fake {
    /// Listens on a port of the kernel's choice of this loopback address.
    pub async fn start(loopback: &str) -> Self {
        let listener = tokio::net::TcpListener::bind((loopback, 0)).await.expect("loopback");
        let address = listener.local_addr().expect("an address");
        let (changed, _) = watch::channel(0);
        let (cut, _) = watch::channel(0);
        let shared = Shared { state: Arc::default(), changed, cut };
        let of = shared.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = of.clone();
                let mut cut = shared.cut.subscribe();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer::answer(shared.clone(), request));
                    let serve =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        _ = cut.changed() => {}
                        _ = serve => {}
                    }
                });
            }
        });
        Self { address, shared, accepting }
    }

    /// A kubeconfig for it, with a token that it asks for.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: u, user: {{token: secret}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             current-context: x\n",
            self.address
        )
    }

    /// Makes or changes an object.
    pub fn put(&self, kind: Kind, object: Value) {
        self.shared.state().put(&crate::paths::collection(kind), object);
        self.wake();
    }

    /// Makes or changes an object of any kind, by the path of its collection, all namespaces.
    pub fn put_at(&self, collection: &str, object: Value) {
        self.shared.state().put(collection, object);
        self.wake();
    }

    /// The answer to a GET of this path, whatever it is of: discovery, the version.
    pub fn say_at(&self, path: &str, answer: Value) {
        self.shared.state().say_at(path, answer);
    }

    /// The object as it is now.
    pub fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        self.shared.state().find(&crate::paths::collection(kind), namespace, name).cloned()
    }

    /// Deletes an object.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        self.shared.state().delete(&crate::paths::collection(kind), namespace, name);
        self.wake();
    }

    /// Makes or changes an object of a kind that the mesh does not compile, in the collection of all namespaces.
    pub fn put_in(&self, collection: &str, object: Value) {
        self.shared.state().put(collection, object);
        self.wake();
    }

    /// Deletes it.
    pub fn delete_in(&self, collection: &str, namespace: &str, name: &str) {
        self.shared.state().delete(collection, namespace, name);
        self.wake();
    }

    /// Sends this line to whoever watches the kind now or from an earlier version.
    pub fn say(&self, kind: Kind, line: &str) {
        self.shared.state().say(&crate::paths::collection(kind), line);
        self.wake();
    }

    /// Sends a bookmark.
    pub fn bookmark(&self, kind: Kind) {
        let version = self.shared.state().version();
        let object = serde_json::json!({"metadata": {"resourceVersion": version.to_string()}});
        self.say(kind, &serde_json::json!({"type": "BOOKMARK", "object": object}).to_string());
    }

    /// Breaks every open connection.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|cut| *cut += 1);
    }

    /// Forgets what happened: a watch from before gets 410 Gone.
    pub fn compact(&self) {
        self.shared.state().compact();
    }

    /// Watches of the kind get nothing while this holds.
    pub fn hold(&self, kind: Kind, held: bool) {
        self.shared.state().hold(&crate::paths::collection(kind), held);
        self.wake();
    }

    /// The next so many requests whose path and query contain `what` are answered by this status.
    pub fn refuse(&self, what: &str, status: u16, times: u32) {
        self.shared.state().refuse(what, status, times);
    }

    /// Refuses no more.
    pub fn forgive(&self) {
        self.shared.state().forgive();
    }

    /// Requests that were made, `METHOD path?query`, in their order.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().log().to_vec()
    }

    /// What was posted to this collection, in its order.
    pub fn posted(&self, collection: &str) -> Vec<Value> {
        self.shared.state().posted(collection)
    }

    /// Says who holds a token, as TokenReview's `status`.
    pub fn token(&self, token: &str, status: Value) {
        self.shared.state().token(token, status);
    }

    fn wake(&self) {
        self.shared.changed.send_modify(|changed| *changed += 1);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

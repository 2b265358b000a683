//! The control plane whole, in this process, asked over loopback by a real gRPC client with TLS.

mod api;
mod certificates;
mod configuration;
mod files;
mod statuses;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::Stream;
use hyper_util::rt::TokioIo;
use mesh_api::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_api::xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use mesh_kube::Place;
use mesh_kube::fake::Fake;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::args::{Callers, Keep, Settings};
use crate::serve::{Running, start};
use crate::tokens::review::Expected;

/// Long enough for a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(20);

/// A control plane over a directory of its own.
struct Lab {
    running: Running,
    dir: tempfile::TempDir,
}

impl Lab {
    /// Starts with these manifests and a token for each of two nodes.
    async fn start(manifests: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let source = dir.path().join("manifests");
        std::fs::create_dir(&source).expect("made");
        for (name, text) in manifests {
            std::fs::write(source.join(name), text).expect("written");
        }
        let tokens = r#"{"token-1": "node-1", "token-2": "node-2"}"#;
        std::fs::write(source.join("tokens.json"), tokens).expect("written");
        let settings = Settings {
            callers: Callers::File(source.join("tokens.json")),
            source: Place::Dir(source),
            ..settings(dir.path())
        };
        let running = start(settings).await.expect("started");
        Self { running, dir }
    }

    /// Starts with the API server as its source.
    async fn start_api(fake: &Fake) -> Self {
        Self::start_as(fake, "test").await
    }

    /// One of several control planes, by its name in the election.
    async fn start_as(fake: &Fake, name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, fake.kubeconfig()).expect("written");
        let account = ("culvert-system".to_owned(), "node-proxy".to_owned());
        let settings = Settings {
            callers: Callers::Reviewed(Expected { audience: "mesh-ca".to_owned(), account }),
            source: Place::Api,
            kubeconfig: Some(kubeconfig),
            pod_name: name.to_owned(),
            ..settings(dir.path())
        };
        let running = start(settings).await.expect("started");
        Self { running, dir }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    /// Puts a file in place by rename.
    fn place(&self, name: &str, text: &str) {
        place(&self.source(), name, text);
    }

    async fn channel(&self) -> Channel {
        let root = std::fs::read_to_string(self.dir.path().join("ca/root-cert.pem")).expect("the root");
        let (config, name) = mesh_tls::endpoint_client_config(&root, "control-plane.test").expect("a client");
        let address = self.running.address;
        let connector = tower::service_fn(move |_| {
            let (config, name) = (config.clone(), name.clone());
            async move {
                let tcp = tokio::net::TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
                Ok::<_, std::io::Error>(TokioIo::new(tls))
            }
        });
        // The URI is not dialled; tonic takes the authority from it.
        Endpoint::from_static("http://control-plane.test").connect_with_connector(connector).await.expect("connected")
    }

    /// What is scraped under this name with a label like this, summed.
    fn told(&self, name: &str, label: &str) -> f64 {
        let metrics = &self.running.metrics;
        let text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry.gather()).expect("encodes");
        let lines = text.lines().filter_map(|line| line.strip_prefix("culvert_control_plane_")?.strip_prefix(name));
        let of = lines.filter(|rest| rest.starts_with([' ', '{']) && rest.contains(label));
        of.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    async fn node(&self, token: &str) -> Node {
        Node::connect(self.channel().await, token, &[], &[]).await.expect("a stream")
    }
}

/// On ports of the kernel's choice, with everything that is written below this directory.
fn settings(dir: &Path) -> Settings {
    Settings {
        callers: Callers::File(dir.join("tokens.json")),
        source: Place::Dir(dir.to_owned()),
        kubeconfig: None,
        own_namespace: "culvert-system".into(),
        pod_name: "test".into(),
        listen: "127.0.0.1:0".parse().expect("an address"),
        metrics_address: "127.0.0.1:0".parse().expect("an address"),
        authority: Keep::Dir(dir.join("ca")),
        names: vec!["control-plane.test".into()],
        longest: Duration::from_secs(24 * 3600),
        compile: crate::compile::tests::config(),
        drain_for: Duration::from_secs(20),
    }
}

fn place(dir: &Path, name: &str, text: &str) {
    let temporary = dir.join(format!(".{name}.new"));
    std::fs::write(&temporary, text).expect("written");
    std::fs::rename(temporary, dir.join(name)).expect("renamed");
}

/// A request that carries a token.
fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    }
    request.metadata_mut().insert("clusterid", "Kubernetes".parse().expect("a header"));
    request
}

/// A node's proxy: applies what it is sent and acknowledges it.
struct Node {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    answers: Streaming<DeltaDiscoveryResponse>,
    /// Name → version.
    addresses: BTreeMap<String, String>,
    policies: BTreeMap<String, String>,
    /// What came, in order: `P+name`, `A-name` …
    history: Vec<String>,
}

impl Node {
    /// Opens a stream and asks for everything, saying what it has.
    async fn connect(
        channel: Channel,
        token: &str,
        addresses: &[(String, String)],
        policies: &[(String, String)],
    ) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let answers = client.delta_aggregated_resources(with_token(stream(queue), Some(token))).await?.into_inner();
        let node = Self {
            requests,
            answers,
            addresses: addresses.iter().cloned().collect(),
            policies: policies.iter().cloned().collect(),
            history: Vec::new(),
        };
        // Addresses first, as a careless client would: policies come first all the same.
        for (type_url, held) in [(ADDRESS_TYPE, &node.addresses), (AUTHORIZATION_TYPE, &node.policies)] {
            let request = DeltaDiscoveryRequest {
                type_url: type_url.into(),
                initial_resource_versions: held.clone(),
                ..DeltaDiscoveryRequest::default()
            };
            node.requests.send(request).await.expect("an open stream");
        }
        Ok(node)
    }

    /// The next answer; applied, not acknowledged.
    async fn receive(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer in time")?;
        let answer = answer.ok_or_else(|| Status::cancelled("closed"))?;
        let (letter, held) = match answer.type_url.as_str() {
            ADDRESS_TYPE => ('A', &mut self.addresses),
            _ => ('P', &mut self.policies),
        };
        for resource in &answer.resources {
            held.insert(resource.name.clone(), resource.version.clone());
            self.history.push(format!("{letter}+{}", resource.name));
        }
        for name in &answer.removed_resources {
            held.remove(name);
            self.history.push(format!("{letter}-{name}"));
        }
        Ok(answer)
    }

    async fn acknowledge(&self, answer: &DeltaDiscoveryResponse) {
        let request = DeltaDiscoveryRequest {
            type_url: answer.type_url.clone(),
            response_nonce: answer.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        // The stream may be ending.
        let _ = self.requests.send(request).await;
    }

    /// Receives and acknowledges until this holds.
    async fn until(&mut self, what: impl Fn(&Self) -> bool) -> Result<(), Status> {
        while !what(self) {
            let answer = self.receive().await?;
            self.acknowledge(&answer).await;
        }
        Ok(())
    }

    /// The first answer of each type.
    async fn synced(mut self) -> Self {
        for _ in 0..2 {
            let answer = self.receive().await.expect("an answer");
            self.acknowledge(&answer).await;
        }
        self
    }
}

fn stream<T: Send + 'static>(queue: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send + 'static {
    futures_util::stream::unfold(queue, |mut queue| async { queue.recv().await.map(|one| (one, queue)) })
}

/// Waits for a fact, looking again as often as the machine allows.
async fn eventually(what: &str, fact: impl Fn() -> bool) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while !fact() {
        assert!(tokio::time::Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A mesh pod of namespace shop.
fn pod(name: &str, node: &str, account: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}, \
         labels: {{culvert.io/mesh: enabled, {labels}}}}}\nspec: {{nodeName: {node}, serviceAccountName: {account}, \
         containers: []}}\n"
    )
}

fn deny(name: &str, selector: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{selector: {{matchLabels: {{{selector}}}}}, action: DENY, rules: [{{}}]}}\n"
    )
}

//! The way to a cluster's control plane, as a node's proxy goes it: TLS with the root that the chart publishes, a token of a proxy.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use cluster::Cluster;
use cluster::mesh::NAMESPACE;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// Where the chart has the control plane in such a cluster, and its name.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 18, 128, 15)), 15012);
const NAME: &str = "culvert-control-plane.culvert-system.svc";
/// What a token must be for.
pub(crate) const AUDIENCE: &str = "mesh-ca";

/// What the control plane is known by.
pub(crate) fn root(cluster: &Cluster) -> Result<String> {
    let root = cluster.get(&["configmap", "culvert-ca-root-cert", "-n", NAMESPACE])?;
    Ok(root["data"]["root-cert.pem"].as_str().context("the root")?.to_owned())
}

/// A connection to one of its replicas, from the network of the caller's thread.
pub(crate) async fn channel(root: &str) -> Result<Channel> {
    let (config, name) = mesh_tls::endpoint_client_config(root, NAME)?;
    let connector = tower::service_fn(move |_| {
        let (config, name) = (config.clone(), name.clone());
        async move {
            let tcp = TcpStream::connect(ADDRESS).await?;
            let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
            Ok::<_, std::io::Error>(TokioIo::new(tls))
        }
    });
    // The URI is not dialled.
    Ok(Endpoint::try_from(format!("http://{NAME}"))?.connect_with_connector(connector).await?)
}

/// A token as the API server gives it.
pub(crate) fn token(cluster: &Cluster, namespace: &str, account: &str, more: &[&str]) -> Result<String> {
    let argv = ["create", "token", account, "-n", namespace];
    Ok(cluster.kubectl(&[&argv[..], more].concat())?.trim().to_owned())
}

/// One for the control plane that is bound to a pod.
pub(crate) fn bound_token(cluster: &Cluster, namespace: &str, account: &str, pod: &str) -> Result<String> {
    let bound = ["--audience", AUDIENCE, "--bound-object-kind", "Pod", "--bound-object-name", pod];
    token(cluster, namespace, account, &bound)
}

/// The node-proxy pod of a node.
pub(crate) fn proxy(cluster: &Cluster, node: usize) -> Result<String> {
    let pods = cluster.get(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=node-proxy"])?;
    let is_there = |pod: &&Value| pod["spec"]["nodeName"] == format!("node-{node}").as_str();
    let pod = pods["items"].as_array().context("a list")?.iter().find(is_there).context("a node-proxy")?;
    Ok(pod["metadata"]["name"].as_str().context("text")?.to_owned())
}

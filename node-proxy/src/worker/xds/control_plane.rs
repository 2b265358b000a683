//! How this node reaches the control plane: address, trust, token. Used for configuration and for certificates.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Uri};

/// Time for TCP and for TLS, each.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// PING while a stream is open, and its deadline (ztunnel's values).
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// See [`PING_INTERVAL`].
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Where and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    uri: Uri,
    server_name: String,
    root: PathBuf,
    token_file: PathBuf,
    cluster: String,
}

/// A setting of the control plane cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("control plane address {address:?} is not of the form https://HOST:PORT")]
pub struct BadControlPlane {
    address: String,
}

/// The token cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file.
    #[error("token file {path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Its content, or the cluster id, is no header value.
    #[error("{what} holds characters that cannot be sent in a header")]
    Form {
        /// Which of the two.
        what: String,
    },
}

/// The connection could not be made.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("root certificates {path}: {error}")]
    Root { path: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Tls(#[from] mesh_tls::TlsError),
    #[error("connect to {to}: {error}")]
    Tcp { to: String, error: std::io::Error },
    #[error("TLS with {to}: {error}")]
    Handshake { to: String, error: std::io::Error },
    #[error("{what} with {to}: not done within {} s", CONNECT_DEADLINE.as_secs())]
    Deadline { what: &'static str, to: String },
}

impl ControlPlane {
    /// From `https://HOST:PORT`, the PEM file of its root, the name in its certificate (`None`: the host), the token file and the
    /// cluster's id. Files are read at each use, so a rotated root or token needs no restart.
    pub fn new(
        address: &str,
        root: PathBuf,
        server_name: Option<&str>,
        token_file: PathBuf,
        cluster: &str,
    ) -> Result<Self, BadControlPlane> {
        let bad = || BadControlPlane { address: address.to_owned() };
        let uri: Uri = address.parse().map_err(|_| bad())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        if uri.scheme_str() != Some("https") || uri.port_u16().is_none() || uri.path() != "/" {
            return Err(bad());
        }
        let server_name = server_name.unwrap_or(bare(host)).to_owned();
        Ok(Self { server_name, uri, root, token_file, cluster: cluster.to_owned() })
    }

    /// A channel that connects when it is first used and again whenever it broke. After a failure take a new one: it finds the
    /// address, the roots and another replica behind a balancer anew.
    pub fn channel(&self) -> Channel {
        let this = self.clone();
        Endpoint::from(self.uri.clone())
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(false)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let this = this.clone();
                async move { this.connect().await.map(TokioIo::new) }
            }))
    }

    /// Adds what every request carries. The token file is read each time: the kubelet rotates it.
    pub fn authorize(&self, metadata: &mut MetadataMap) -> Result<(), TokenError> {
        let token = std::fs::read_to_string(&self.token_file)
            .map_err(|error| TokenError::File { path: self.token_file.clone(), error })?;
        let mut bearer: tonic::metadata::AsciiMetadataValue = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| TokenError::Form { what: format!("token file {}", self.token_file.display()) })?;
        bearer.set_sensitive(true);
        let cluster = self.cluster.parse().map_err(|_| TokenError::Form { what: "the cluster id".to_owned() })?;
        metadata.insert("authorization", bearer);
        metadata.insert("clusterid", cluster);
        Ok(())
    }

    /// Where it is, for logs.
    pub fn address(&self) -> String {
        self.uri.to_string()
    }

    async fn connect(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConnectError> {
        let root = std::fs::read_to_string(&self.root)
            .map_err(|error| ConnectError::Root { path: self.root.clone(), error })?;
        let (config, name) = mesh_tls::endpoint_client_config(&root, &self.server_name)?;
        // Both are there: `new` checked.
        let (host, port) = (bare(self.uri.host().unwrap_or_default()), self.uri.port_u16().unwrap_or_default());
        let to = || self.uri.to_string();
        let tcp = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect((host, port)))
            .await
            .map_err(|_| ConnectError::Deadline { what: "connect", to: to() })?
            .map_err(|error| ConnectError::Tcp { to: to(), error })?;
        tcp.set_nodelay(true).map_err(|error| ConnectError::Tcp { to: to(), error })?;
        tokio::time::timeout(CONNECT_DEADLINE, TlsConnector::from(config).connect(name, tcp))
            .await
            .map_err(|_| ConnectError::Deadline { what: "TLS", to: to() })?
            .map_err(|error| ConnectError::Handshake { to: to(), error })
    }
}

/// An IPv6 host without its brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(address: &str) -> Result<ControlPlane, BadControlPlane> {
        ControlPlane::new(address, "root.pem".into(), None, "token".into(), "Kubernetes")
    }

    #[test]
    fn an_address_needs_scheme_host_and_port() {
        for good in
            ["https://cp.culvert-system.svc:15012", "https://198.19.255.1:15012", "https://[fd77:ffff::1]:15012/"]
        {
            assert!(new(good).is_ok(), "{good}");
        }
        for bad in ["", "cp:15012", "http://cp:15012", "https://cp", "https://cp:15012/x", "https://:15012"] {
            assert!(new(bad).is_err(), "{bad}");
        }
        assert_eq!(new("https://[fd77:ffff::1]:15012").expect("good").server_name, "fd77:ffff::1");
    }
}

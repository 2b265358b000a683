//! One connection to the API server: requests with deadlines and bounded answers. What it says is outside input.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use mesh_daemon::causes;
use serde::Deserialize;
use serde_json::Value;

/// To connect (TCP and TLS each).
const CONNECT: Duration = Duration::from_secs(5);
/// For the head of an answer, and for the whole of a small one. The API server itself gives up after 60 s.
pub(crate) const ANSWER: Duration = Duration::from_secs(15);
/// The largest answer but a list.
pub(crate) const SMALL: usize = 4 * 1024 * 1024;
/// A page of a list of 250 objects of the largest size would be more; none is.
const PAGE: usize = 128 * 1024 * 1024;
/// What is read of a refusal.
const REFUSAL: usize = 64 * 1024;

/// The API server. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub(crate) client: kube::Client,
}

/// There is no way to reach it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The given file.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The files of `KUBECONFIG`, or `~/.kube/config`.
    #[error("kubeconfig of KUBECONFIG or ~/.kube/config: {0}")]
    Standard(Box<kube::config::KubeconfigError>),
    /// No file is given, and this is no pod.
    #[error("no --kubeconfig, and not in a pod: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    /// The configuration cannot be used.
    #[error("client of the API server: {0}")]
    Client(#[from] Box<kube::Error>),
}

/// A request did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection, or the TLS in it.
    #[error("{0}")]
    Transport(String),
    /// Nothing in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The server says no.
    #[error("{code} {reason}: {message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// `Status.reason`, one word.
        reason: String,
        /// `Status.message`.
        message: String,
        /// When to come again.
        retry_after: Option<Duration>,
    },
    /// The answer makes no sense.
    #[error("answer that makes no sense: {0}")]
    Answer(String),
}

impl Error {
    /// The HTTP status, if there was an answer.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The version that was asked for is not kept any more.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { code, reason, .. } if *code == 410 || reason == "Expired" || reason == "Gone")
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Makes an object.
    Post,
    /// Replaces an object.
    Put,
    /// Changes parts of an object; lists are merged by their keys (strategic merge patch).
    Patch,
    /// Changes parts of an object; `null` takes a key away, a list is replaced whole (RFC 7386).
    Merge,
    /// Makes an object or changes it, as the one who owns these fields (server-side apply); the path names the `fieldManager`.
    Apply,
    /// Deletes an object; the body is `DeleteOptions`.
    Delete,
}

/// `Status` of the API server, and of an ERROR event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) code: Option<u16>,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
}

impl Status {
    pub(crate) fn into_error(self, code: u16, retry_after: Option<Duration>) -> Error {
        // It goes into logs: one line of bounded length.
        let short = |text: Option<String>| {
            let text: String = text.unwrap_or_default().chars().take(300).collect();
            text.replace(char::is_control, " ")
        };
        let (reason, message) = (short(self.reason), short(self.message));
        Error::Refused { code: self.code.unwrap_or(code), reason, message, retry_after }
    }
}

impl Api {
    /// By this kubeconfig; without one as a pod of the cluster. Connects when first asked.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, ConnectError> {
        let config = match kubeconfig {
            Some(path) => {
                let fail = |source| ConnectError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
                let read = kube::config::Kubeconfig::read_from(path).map_err(fail)?;
                let options = kube::config::KubeConfigOptions::default();
                kube::Config::from_custom_kubeconfig(read, &options).await.map_err(fail)?
            }
            None => kube::Config::incluster()?,
        };
        Self::configured(config)
    }

    /// With our deadlines and tries.
    pub(crate) fn configured(mut config: kube::Config) -> Result<Self, ConnectError> {
        config.connect_timeout = Some(CONNECT);
        // Deadlines of answers and of silence are ours: a watch is quiet for longer than any request may be.
        config.read_timeout = None;
        config.write_timeout = Some(ANSWER);
        // So are tries.
        config.default_retry = false;
        let client = kube::Client::try_from(config).map_err(Box::new)?;
        Ok(Self { client })
    }

    /// An object, or `None` if there is none of that name.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, Error> {
        match self.json(request("GET", path, None, Vec::new())?, SMALL).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A page of a list.
    pub(crate) async fn page(&self, path: &str) -> Result<Value, Error> {
        self.json(request("GET", path, None, Vec::new())?, PAGE).await
    }

    /// Writes, and returns what the server made of it.
    pub async fn write(&self, method: Method, path: &str, body: &Value) -> Result<Value, Error> {
        let (method, kind) = match method {
            Method::Post => ("POST", "application/json"),
            Method::Put => ("PUT", "application/json"),
            Method::Patch => ("PATCH", "application/strategic-merge-patch+json"),
            Method::Merge => ("PATCH", "application/merge-patch+json"),
            // JSON is YAML; servers before 1.34 know no other name for it.
            Method::Apply => ("PATCH", "application/apply-patch+yaml"),
            Method::Delete => ("DELETE", "application/json"),
        };
        let body = serde_json::to_vec(body).map_err(|error| Error::Answer(error.to_string()))?;
        self.json(request(method, path, Some(kind), body)?, SMALL).await
    }

    /// The body of an answer that goes on.
    pub(crate) async fn stream(&self, path: &str) -> Result<Body, Error> {
        Ok(self.send(request("GET", path, None, Vec::new())?).await?.into_body())
    }

    pub(crate) async fn json(&self, request: http::Request<Body>, limit: usize) -> Result<Value, Error> {
        let bytes = collect(self.send(request).await?.into_body(), limit).await?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Answer(error.to_string()))
    }

    pub(crate) async fn send(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Error> {
        let answer =
            tokio::time::timeout(ANSWER, quiet(self.client.send(request))).await.map_err(|_| Error::Late(ANSWER))?;
        let answer = answer.map_err(|error| Error::Transport(causes(&error)))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status().as_u16();
        let after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        // What a proxy in between says is no `Status`; the code is enough.
        let text = collect(answer.into_body(), REFUSAL).await.unwrap_or_default();
        let status: Status = serde_json::from_slice(&text).unwrap_or_default();
        Err(status.into_error(code, after.map(Duration::from_secs)))
    }
}

/// kube logs each request and body that fails as an error. Whether it is one is for those to say who know what comes next.
pub(crate) fn quiet<F: Future>(work: F) -> tracing::instrument::WithDispatch<F> {
    tracing::instrument::WithSubscriber::with_subscriber(work, tracing::subscriber::NoSubscriber::default())
}

pub(crate) async fn collect(body: Body, limit: usize) -> Result<bytes::Bytes, Error> {
    let read = tokio::time::timeout(4 * ANSWER, quiet(Limited::new(body, limit).collect())).await;
    let read = read.map_err(|_| Error::Late(4 * ANSWER))?;
    Ok(read.map_err(|error| Error::Transport(error.to_string()))?.to_bytes())
}

pub(crate) fn request(
    method: &str,
    path: &str,
    kind: Option<&str>,
    body: Vec<u8>,
) -> Result<http::Request<Body>, Error> {
    let mut request = http::Request::builder().method(method).uri(path).header("accept", "application/json");
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    // A path that is none was made from an object's name.
    request.body(Body::from(body)).map_err(|error| Error::Answer(error.to_string()))
}

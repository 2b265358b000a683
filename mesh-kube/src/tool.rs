//! What a person's tool asks of the API server beyond what a daemon does: by a context of a kubeconfig, whole lists, the server's own
//! clock, logs as they come, and a command run in a container. Behind a feature of its own: a daemon must not be able to exec.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::AttachParams;
use kube::client::{Body, UpgradeConnectionError};
use mesh_daemon::causes;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::api::{self, Api, ConnectError, Error, SMALL};

/// Objects of one page of a list.
const PAGE: usize = 500;
/// The most that is taken of what a command prints, in bytes: the admin answer of 100,000 workloads is some 50 MB.
const PRINTED: u64 = 256 * 1024 * 1024;

/// Which API server, as whom.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// The file; else those of `KUBECONFIG`, else `~/.kube/config`, else, in a pod, its service account.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it; else its current one.
    pub context: Option<String>,
}

/// What a command in a container said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its exit status.
    pub code: i32,
    /// Its output.
    pub stdout: Vec<u8>,
    /// Its complaints.
    pub stderr: Vec<u8>,
}

/// A log that is being read.
pub struct Lines {
    body: Body,
    rest: Vec<u8>,
}

impl Api {
    /// As a person reaches it; also the namespace that the context names.
    pub async fn reach(reach: &Reach) -> Result<(Self, String), ConnectError> {
        let options = kube::config::KubeConfigOptions { context: reach.context.clone(), ..Default::default() };
        let config = match &reach.kubeconfig {
            Some(path) => from_file(path, &options).await?,
            None => match kube::Config::from_kubeconfig(&options).await {
                Ok(config) => config,
                // A context that was asked for is looked for in no other place.
                Err(error) if reach.context.is_some() => return Err(ConnectError::Standard(Box::new(error))),
                Err(error) => kube::Config::incluster().map_err(|_| ConnectError::Standard(Box::new(error)))?,
            },
        };
        let namespace = config.default_namespace.clone();
        Ok((Self::configured(config)?, namespace))
    }

    /// Every object of a collection, page by page; `query` is a selector or empty. The items lack the list's kind.
    pub async fn list(&self, path: &str, query: &str) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        let mut more = String::new();
        loop {
            let mut page = self.page(&format!("{path}?limit={PAGE}&{query}{more}")).await?;
            match page.get_mut("items").map(Value::take) {
                Some(Value::Array(some)) => items.extend(some),
                _ => return Err(Error::Answer(format!("list of {path} without items"))),
            }
            match page.pointer("/metadata/continue").and_then(Value::as_str) {
                None | Some("") => return Ok(items),
                Some(token) => more = format!("&continue={}", crate::escape(token)),
            }
        }
    }

    /// An answer and the time at which the server gave it: its `Date`, in seconds, RFC 9110.
    pub async fn dated(&self, path: &str) -> Result<(Value, Option<String>), Error> {
        let answer = self.send(api::request("GET", path, None, Vec::new())?).await?;
        let date = answer.headers().get("date").and_then(|date| date.to_str().ok()).map(str::to_owned);
        let bytes = api::collect(answer.into_body(), SMALL).await?;
        Ok((serde_json::from_slice(&bytes).map_err(|error| Error::Answer(error.to_string()))?, date))
    }

    /// A log, line by line.
    pub async fn log(&self, path: &str) -> Result<Lines, Error> {
        Ok(Lines { body: self.stream(path).await?, rest: Vec::new() })
    }

    /// Runs a command in a container of a pod, without input and terminal, and waits for its end.
    pub async fn exec(
        &self,
        (namespace, pod): (&str, &str),
        container: &str,
        command: &[&str],
        patience: Duration,
    ) -> Result<Said, Error> {
        let work = api::quiet(async {
            let pods: kube::Api<Pod> = kube::Api::namespaced(self.client.clone(), namespace);
            let how = AttachParams::default().container(container).stdin(false);
            let mut process = pods.exec(pod, command.iter().copied(), &how).await.map_err(upgrade)?;
            let status = process.take_status();
            let (stdout, stderr) = (process.stdout(), process.stderr());
            // Read side by side: the other end waits when one of them is full.
            let (stdout, stderr) = tokio::join!(all(stdout), all(stderr));
            let status = match status {
                Some(status) => status.await,
                None => None,
            };
            Ok(Said { code: exit_code(status.as_ref())?, stdout: stdout?, stderr: stderr? })
        });
        tokio::time::timeout(patience, work).await.map_err(|_| Error::Late(patience))?
    }
}

impl Lines {
    /// The next line without its end; `None` at the end of the log. Bytes that are no text are replaced.
    pub async fn next(&mut self) -> Result<Option<String>, Error> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                    // kubelet cuts lines at 16 KiB; who sends more than this is none.
                    if self.rest.len() > SMALL {
                        return Err(Error::Answer("a log line of more than 4 MiB".to_owned()));
                    }
                }
                Some(Err(error)) => return Err(Error::Transport(error.to_string())),
                None if self.rest.is_empty() => return Ok(None),
                None => self.rest.push(b'\n'),
            }
        }
    }
}

async fn from_file(path: &Path, options: &kube::config::KubeConfigOptions) -> Result<kube::Config, ConnectError> {
    let fail = |source| ConnectError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let read = kube::config::Kubeconfig::read_from(path).map_err(fail)?;
    kube::Config::from_custom_kubeconfig(read, options).await.map_err(fail)
}

async fn all(stream: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let read = stream.take(PRINTED + 1).read_to_end(&mut bytes).await;
        read.map_err(|error| Error::Transport(error.to_string()))?;
    }
    if bytes.len() as u64 > PRINTED {
        return Err(Error::Answer(format!("a command printed more than {PRINTED} bytes")));
    }
    Ok(bytes)
}

/// The server's refusal to begin; what it says beside the number is lost in kube.
fn upgrade(error: kube::Error) -> Error {
    match error {
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) => Error::Refused {
            code: code.as_u16(),
            reason: code.canonical_reason().unwrap_or_default().replace(' ', ""),
            message: "the API server does not run a command in this container".to_owned(),
            retry_after: None,
        },
        error => Error::Transport(causes(&error)),
    }
}

/// As remotecommand's fourth channel says it: `Success`, or a failure whose cause `ExitCode` has the number.
fn exit_code(status: Option<&Status>) -> Result<i32, Error> {
    let Some(status) = status else {
        return Err(Error::Transport("the connection broke before the command ended".to_owned()));
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let code =
        causes.filter(|cause| cause.reason.as_deref() == Some("ExitCode")).find_map(|cause| cause.message.as_ref());
    match code.and_then(|code| code.parse().ok()) {
        Some(code) => Ok(code),
        None => Err(Error::Answer(status.message.clone().unwrap_or_else(|| "the command did not run".to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_status_of_a_command_is_read_and_no_status_is_an_error() {
        let code = |status: Value| exit_code(Some(&serde_json::from_value(status).expect("a Status")));
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode", "message": "exit code 3",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}});
        assert_eq!(code(json!({"status": "Success"})).expect("ended"), 0);
        assert_eq!(code(failed).expect("ended"), 3);
        let broken = code(json!({"status": "Failure", "message": "container not found"})).expect_err("not run");
        assert!(broken.to_string().contains("container not found"), "{broken}");
        assert!(exit_code(None).is_err());
    }

    #[tokio::test]
    async fn a_long_list_is_read_page_by_page_and_a_context_that_is_not_there_is_an_error() {
        let fake = crate::fake::Fake::start("::1").await;
        for index in 0..PAGE + 3 {
            fake.put(mesh_api::manifests::Kind::Namespace, json!({"metadata": {"name": format!("n{index}")}}));
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("config");
        std::fs::write(&file, fake.kubeconfig()).expect("written");
        let reach = Reach { kubeconfig: Some(file.clone()), context: Some("x".to_owned()) };
        let (api, namespace) = Api::reach(&reach).await.expect("connected");
        assert_eq!(namespace, "default");
        assert_eq!(api.list("/api/v1/namespaces", "").await.expect("listed").len(), PAGE + 3);
        assert_eq!(fake.requests().iter().filter(|line| line.contains("/namespaces?")).count(), 2);
        let reach = Reach { kubeconfig: Some(file), context: Some("other".to_owned()) };
        assert!(Api::reach(&reach).await.is_err());
    }
}

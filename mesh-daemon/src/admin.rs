//! The admin socket: one request line, one answer line, JSON both ways, over a unix socket of mode 0600. The binary's own `admin`
//! verb is the client, so that `kubectl exec` is all a person needs and nothing listens on a network.
//!
//! Handlers must redact: whatever they return is printed.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::drain;
use crate::tasks::Group;

/// Longest request line, in bytes.
const REQUEST_LIMIT: u64 = 64 * 1024;
/// Longest answer a client takes, in bytes: a dump of 10,000 workloads is about 5 MB.
const ANSWER_LIMIT: u64 = 256 * 1024 * 1024;
/// A request must be answered in this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The verb, for example `connections`.
    pub verb: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok(serde_json::Value),
    Error(String),
}

/// An answer that is being made.
pub type Answering = Pin<Box<dyn Future<Output = Result<serde_json::Value, String>> + Send>>;
/// Answers requests.
pub type Handler = Arc<dyn Fn(Request) -> Answering + Send + Sync>;

/// Binds the socket at `path` (mode 0600), replacing a leftover of an earlier process.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the drain is asked for. Only root and the process's own user are answered.
pub async fn serve(listener: UnixListener, handler: Handler, stop: drain::Watch) {
    let own = rustix::process::geteuid().as_raw();
    let requests = Group::new("admin");
    loop {
        // Both branches may be dropped half-way: accept is cancel-safe.
        let stream = tokio::select! {
            biased;
            () = stop.asked() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept on the admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let uid = stream.peer_cred().map(|peer| peer.uid());
        if !matches!(uid, Ok(uid) if uid == 0 || uid == own) {
            tracing::warn!(?uid, "admin request from another user refused");
            continue;
        }
        let handler = handler.clone();
        requests.spawn("request", async move {
            match tokio::time::timeout(PATIENCE, answer(stream, handler)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "admin request"),
                Err(_) => tracing::warn!("admin request took longer than {PATIENCE:?}"),
            }
        });
    }
    requests.finish(Duration::from_secs(1)).await;
}

async fn answer(stream: UnixStream, handler: Handler) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    BufReader::new(read.take(REQUEST_LIMIT)).read_until(b'\n', &mut line).await?;
    let answer = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => match handler(request).await {
            Ok(value) => Answer::Ok(value),
            Err(error) => Answer::Error(error),
        },
        Err(error) => Answer::Error(format!("admin request cannot be read: {error}")),
    };
    let mut bytes = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await?;
    write.shutdown().await
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The process is not there, or does not talk to us.
    #[error("no answer on {path}: {source}; {}", hint(source, who))]
    Unreachable {
        /// Whose socket it is.
        who: &'static str,
        /// The socket.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The process said no.
    #[error("{0}")]
    Refused(String),
}

impl AskError {
    /// The exit status of a verb that ended so. 2 is for a command line that cannot be read.
    pub fn exit_code(&self) -> u8 {
        match self {
            AskError::Refused(_) => 1,
            AskError::Unreachable { .. } => 3,
        }
    }
}

/// What to look at next.
fn hint(error: &io::Error, who: &str) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{who} makes this socket when it has started: does it run on this node, in this container?")
        }
        io::ErrorKind::ConnectionRefused => format!("the socket is left from {who} that has ended: did it crash?"),
        io::ErrorKind::PermissionDenied => format!("only root and the user of {who} are answered"),
        io::ErrorKind::TimedOut => format!("{who} took the question and is too busy to answer: look at its log"),
        _ => format!("is {who} running, and are you its user or root?"),
    }
}

/// Asks the process behind the socket; `who` names it for the person, with its article: `the node-proxy worker`.
pub async fn ask(who: &'static str, path: &Path, request: &Request) -> Result<serde_json::Value, AskError> {
    let unreachable = |source| AskError::Unreachable { who, path: path.display().to_string(), source };
    let answer = tokio::time::timeout(PATIENCE, async {
        let mut stream = UnixStream::connect(path).await?;
        let mut line = serde_json::to_vec(request).map_err(io::Error::other)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut bytes = Vec::new();
        stream.take(ANSWER_LIMIT).read_to_end(&mut bytes).await?;
        serde_json::from_slice::<Answer>(&bytes).map_err(io::Error::other)
    })
    .await
    .map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?
    .map_err(unreachable)?;
    match answer {
        Answer::Ok(value) => Ok(value),
        Answer::Error(error) => Err(AskError::Refused(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_and_an_unknown_verb_is_an_error() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("admin.sock");
        let listener = bind(&path).expect("bind");
        let (trigger, stop) = drain::pair();
        let handler: Handler = Arc::new(|request| {
            Box::pin(async move {
                match request.verb.as_str() {
                    "echo" => Ok(serde_json::json!(request.args)),
                    other => Err(format!("unknown verb {other}")),
                }
            })
        });
        let server = tokio::spawn(serve(listener, handler, stop));
        let ask = |verb: &str| Request { verb: verb.to_owned(), args: vec!["a".to_owned()] };
        assert_eq!(super::ask("the test", &path, &ask("echo")).await.expect("answer"), serde_json::json!(["a"]));
        let refused = super::ask("the test", &path, &ask("nonsense")).await.expect_err("refusal");
        assert_eq!((refused.to_string().as_str(), refused.exit_code()), ("unknown verb nonsense", 1));
        trigger.ask();
        server.await.expect("server ends");
        // The socket stays behind; then somebody removes it.
        let left = super::ask("the test", &path, &ask("echo")).await.expect_err("nobody there");
        assert!(left.to_string().contains("left from the test that has ended"), "{left}");
        std::fs::remove_file(&path).expect("remove");
        let gone = super::ask("the test", &path, &ask("echo")).await.expect_err("nothing there");
        assert!(gone.to_string().contains("the test makes this socket when it has started"), "{gone}");
        assert_eq!(gone.exit_code(), 3);
    }
}

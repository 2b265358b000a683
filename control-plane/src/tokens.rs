//! Who is calling: bearer tokens that stand for nodes, read from `tokens.json` (`{"<token>": "<node>"}`) and again when it changes.
//!
//! Stands where Kubernetes' TokenReview will: what follows knows only a [`Caller`]. A file that cannot be read as a whole keeps the
//! tokens that were good; a token that is not there any more is refused at once, also on streams that are open.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tonic::metadata::MetadataMap;

/// Far above what any cluster's tokens need (1,000 nodes with tokens of 1 KiB are 1 MiB).
const LONGEST_FILE: u64 = 16 * 1024 * 1024;

/// An authenticated caller: a node's proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The node that its token is bound to.
    pub node: String,
    token: Arc<str>,
}

/// Why a caller is not let in: for the log. Outside it is one opaque answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// No `authorization: Bearer …`.
    #[error("no bearer token")]
    NoToken,
    /// The token is nobody's.
    #[error("unknown token")]
    UnknownToken,
    /// The call names another cluster.
    #[error("cluster id {0:?} is not ours")]
    OtherCluster(String),
}

/// The token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadTokens {
    /// It cannot be read.
    #[error("read tokens {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a JSON object of texts.
    #[error("tokens {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why; serde never prints a value of ours, but the tokens are secrets, so only its position is kept.
        source: Position,
    },
    /// An entry is empty.
    #[error("tokens {0}: an empty token or node name")]
    Empty(PathBuf),
}

/// Where a parse stopped.
#[derive(Debug, thiserror::Error)]
#[error("line {line}, column {column}: not an object of the form {{\"<token>\": \"<node>\"}}")]
pub struct Position {
    line: usize,
    column: usize,
}

/// The tokens as they are now. Cheap to clone; each clone sees changes.
#[derive(Clone)]
pub struct Tokens {
    cluster: Arc<str>,
    known: watch::Receiver<Arc<BTreeMap<String, String>>>,
}

/// Replaces the tokens.
pub struct Writer {
    path: PathBuf,
    known: watch::Sender<Arc<BTreeMap<String, String>>>,
}

/// Tokens that nobody has yet, for this cluster, to be read from `path`.
pub fn tokens(path: &Path, cluster: &str) -> (Writer, Tokens) {
    let (send, receive) = watch::channel(Arc::default());
    (Writer { path: path.to_owned(), known: send }, Tokens { cluster: cluster.into(), known: receive })
}

impl Writer {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file again. How many tokens there are now; on an error those from before stay.
    pub fn reload(&self) -> Result<usize, BadTokens> {
        let fresh = read(&self.path)?;
        let count = fresh.len();
        self.known.send_if_modified(|known| {
            let changed = **known != fresh;
            *known = Arc::new(fresh);
            changed
        });
        Ok(count)
    }
}

impl Tokens {
    /// The caller of a request with this metadata.
    pub fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Stranger> {
        // Absent is taken as ours: stock clients always send it.
        if let Some(cluster) = metadata.get("clusterid").map(|value| value.to_str().unwrap_or_default())
            && *cluster != *self.cluster
        {
            return Err(Stranger::OtherCluster(cluster.chars().take(80).collect()));
        }
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok()).ok_or(Stranger::NoToken)?;
        let token = header.strip_prefix("Bearer ").filter(|token| !token.is_empty()).ok_or(Stranger::NoToken)?;
        let known = self.known.borrow();
        let node = lookup(&known, token).ok_or(Stranger::UnknownToken)?;
        Ok(Caller { node: node.to_owned(), token: token.into() })
    }

    /// Whether a caller from before still is who it was.
    pub fn still(&self, caller: &Caller) -> bool {
        lookup(&self.known.borrow(), &caller.token) == Some(&caller.node)
    }

    /// Resolves when the tokens changed.
    pub async fn changed(&mut self) {
        if self.known.changed().await.is_err() {
            // The writer ends with the process; nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Looks at every token in full, so that the time taken tells nothing about how much of a guess was right.
fn lookup<'a>(known: &'a BTreeMap<String, String>, token: &str) -> Option<&'a String> {
    let mut found = None;
    for (candidate, node) in known {
        let same_length = candidate.len() == token.len();
        let difference = candidate.bytes().zip(token.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
        if std::hint::black_box(difference) == 0 && same_length {
            found = Some(node);
        }
    }
    found
}

fn read(path: &Path) -> Result<BTreeMap<String, String>, BadTokens> {
    use std::io::Read as _;
    let fail = |source| BadTokens::Read { path: path.to_owned(), source };
    let mut text = String::new();
    std::fs::File::open(path).map_err(fail)?.take(LONGEST_FILE).read_to_string(&mut text).map_err(fail)?;
    let tokens: BTreeMap<String, String> = serde_json::from_str(&text).map_err(|error| BadTokens::Parse {
        path: path.to_owned(),
        source: Position { line: error.line(), column: error.column() },
    })?;
    if tokens.iter().any(|(token, node)| token.is_empty() || node.is_empty()) {
        return Err(BadTokens::Empty(path.to_owned()));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(authorization: Option<&str>, cluster: Option<&str>) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        if let Some(value) = authorization {
            metadata.insert("authorization", value.parse().expect("a header"));
        }
        if let Some(value) = cluster {
            metadata.insert("clusterid", value.parse().expect("a header"));
        }
        metadata
    }

    #[test]
    fn only_a_known_token_of_our_cluster_is_a_caller_and_only_while_it_is_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokens.json");
        let (writer, tokens) = tokens(&path, "Kubernetes");
        assert!(matches!(writer.reload(), Err(BadTokens::Read { .. })));
        std::fs::write(&path, r#"{"abc": "node-1", "abcd": "node-2"}"#).expect("written");
        assert_eq!(writer.reload().expect("read"), 2);
        let ask = |authorization, cluster| tokens.authenticate(&with(authorization, cluster)).map(|c| c.node);
        assert_eq!(ask(Some("Bearer abc"), None), Ok("node-1".into()));
        assert_eq!(ask(Some("Bearer abcd"), Some("Kubernetes")), Ok("node-2".into()));
        assert_eq!(ask(Some("Bearer ab"), None), Err(Stranger::UnknownToken));
        assert_eq!(ask(Some("Bearer abcde"), None), Err(Stranger::UnknownToken));
        assert_eq!(ask(Some("Bearer ABC"), None), Err(Stranger::UnknownToken));
        for none in [None, Some("abc"), Some("Bearer "), Some("Basic abc")] {
            assert_eq!(ask(none, None), Err(Stranger::NoToken));
        }
        assert_eq!(ask(Some("Bearer abc"), Some("other")), Err(Stranger::OtherCluster("other".into())));
        let caller = tokens.authenticate(&with(Some("Bearer abc"), None)).expect("known");
        assert!(tokens.still(&caller));
        std::fs::write(&path, r#"{"abc": "node-3"}"#).expect("written");
        writer.reload().expect("read");
        assert!(!tokens.still(&caller), "another node's now");
    }

    #[test]
    fn a_broken_file_keeps_the_tokens_and_its_error_shows_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokens.json");
        let (writer, tokens) = tokens(&path, "Kubernetes");
        std::fs::write(&path, r#"{"abc": "node-1"}"#).expect("written");
        writer.reload().expect("read");
        for broken in [r#"{"secret": "node-1""#, r#"["secret"]"#, r#"{"secret": 5}"#, r#"{"": "node-1"}"#] {
            std::fs::write(&path, broken).expect("written");
            let error = writer.reload().expect_err("broken").to_string();
            assert!(error.contains("tokens.json") && !error.contains("secret"), "{error}");
            assert!(tokens.authenticate(&with(Some("Bearer abc"), None)).is_ok());
        }
    }
}

//! Tokens of a file: `tokens.json` (`{"<token>": "<node>"}`), read again when it changes.
//!
//! A file that cannot be read as a whole keeps the tokens that were good; a token that is not there any more is refused at once, also
//! on streams that are open.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_daemon::{dir, drain};
use tokio::sync::watch;

use crate::metrics::Metrics;

/// Far above what any cluster's tokens need (1,000 nodes with tokens of 1 KiB are 1 MiB).
const LONGEST_FILE: u64 = 16 * 1024 * 1024;
/// Looks again without being told, for what notification misses.
const ANYWAY: Duration = Duration::from_secs(30);

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

/// The tokens as they are now. Each clone sees changes.
#[derive(Clone)]
pub struct Known(watch::Receiver<Arc<BTreeMap<String, String>>>);

/// Replaces the tokens.
pub struct Writer {
    path: PathBuf,
    known: watch::Sender<Arc<BTreeMap<String, String>>>,
    metrics: Metrics,
    is_broken: bool,
}

/// Tokens that nobody has yet, to be read from `path`.
pub fn tokens(path: &Path, metrics: Metrics) -> (Writer, Known) {
    let (send, receive) = watch::channel(Arc::default());
    (Writer { path: path.to_owned(), known: send, metrics, is_broken: false }, Known(receive))
}

impl Writer {
    /// Reads the file, and again whenever it changes, until the drain is asked for.
    pub async fn follow(mut self, drain: drain::Watch) {
        loop {
            // Watching before reading: a change in between is not lost.
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut watch = dir::Watch::new(parent).ok();
            self.read();
            let told = async {
                match &mut watch {
                    // An error: looked at again all the same.
                    Some(watch) => drop(watch.changed().await),
                    None => std::future::pending().await,
                }
            };
            // Each branch may be dropped: what changed is found by reading.
            tokio::select! {
                biased;
                () = drain.asked() => return,
                () = told => {}
                () = tokio::time::sleep(ANYWAY) => {}
            }
        }
    }

    /// Reads once; says what changed for the worse or the better.
    pub fn read(&mut self) {
        match self.reload() {
            Ok(count) => {
                self.metrics.tokens_good.set(1);
                if self.is_broken {
                    tracing::info!(count, "tokens can be read again");
                }
                self.is_broken = false;
            }
            Err(error) => {
                self.metrics.tokens_good.set(0);
                if !self.is_broken {
                    tracing::error!(%error, "tokens cannot be read; those known before stay");
                }
                self.is_broken = true;
            }
        }
    }

    /// Reads the file again. How many tokens there are now; on an error those from before stay.
    fn reload(&self) -> Result<usize, BadTokens> {
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

impl Known {
    /// The node that a token stands for.
    pub fn node(&self, token: &str) -> Option<String> {
        lookup(&self.0.borrow(), token).cloned()
    }

    /// Resolves when the tokens changed.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
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
    use tonic::metadata::MetadataMap;

    use super::*;
    use crate::tokens::{Caller, Stranger, Tokens};

    fn tokens(path: &Path) -> (Writer, Tokens) {
        let (writer, known) = super::tokens(path, Metrics::new());
        (writer, Tokens::of_file(known, "Kubernetes"))
    }

    async fn caller(tokens: &Tokens, metadata: &MetadataMap) -> Result<Caller, Stranger> {
        tokens.authenticate(tokens.shown(metadata)?).await
    }

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

    #[tokio::test]
    async fn only_a_known_token_of_our_cluster_is_a_caller_and_only_while_it_is_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokens.json");
        let (writer, tokens) = tokens(&path);
        assert!(matches!(writer.reload(), Err(BadTokens::Read { .. })));
        std::fs::write(&path, r#"{"abc": "node-1", "abcd": "node-2"}"#).expect("written");
        assert_eq!(writer.reload().expect("read"), 2);
        let ask = async |authorization, cluster| caller(&tokens, &with(authorization, cluster)).await.map(|c| c.node);
        assert_eq!(ask(Some("Bearer abc"), None).await, Ok("node-1".into()));
        assert_eq!(ask(Some("Bearer abcd"), Some("Kubernetes")).await, Ok("node-2".into()));
        assert_eq!(ask(Some("Bearer ab"), None).await, Err(Stranger::UnknownToken));
        assert_eq!(ask(Some("Bearer abcde"), None).await, Err(Stranger::UnknownToken));
        assert_eq!(ask(Some("Bearer ABC"), None).await, Err(Stranger::UnknownToken));
        for none in [None, Some("abc"), Some("Bearer "), Some("Basic abc")] {
            assert_eq!(ask(none, None).await, Err(Stranger::NoToken));
        }
        assert_eq!(ask(Some("Bearer abc"), Some("other")).await, Err(Stranger::OtherCluster("other".into())));
        let known = caller(&tokens, &with(Some("Bearer abc"), None)).await.expect("known");
        assert!(tokens.still(&known).await);
        std::fs::write(&path, r#"{"abc": "node-3"}"#).expect("written");
        writer.reload().expect("read");
        assert!(!tokens.still(&known).await, "another node's now");
    }

    #[tokio::test]
    async fn a_broken_file_keeps_the_tokens_and_its_error_shows_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokens.json");
        let (writer, tokens) = tokens(&path);
        std::fs::write(&path, r#"{"abc": "node-1"}"#).expect("written");
        writer.reload().expect("read");
        for broken in [r#"{"secret": "node-1""#, r#"["secret"]"#, r#"{"secret": 5}"#, r#"{"": "node-1"}"#] {
            std::fs::write(&path, broken).expect("written");
            let error = writer.reload().expect_err("broken").to_string();
            assert!(error.contains("tokens.json") && !error.contains("secret"), "{error}");
            assert!(caller(&tokens, &with(Some("Bearer abc"), None)).await.is_ok());
        }
    }
}

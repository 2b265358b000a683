//! Who is calling: bearer tokens that stand for nodes. What follows knows only a [`Caller`].
//!
//! With manifests from files, tokens are those of `tokens.json` ([`mod@file`]); with the API server, they are the projected tokens of
//! node-proxy's pods, which it reviews ([`review`]). Either way nobody is believed about which node he is on.

pub mod file;
pub mod review;

use std::sync::Arc;

use mesh_model::Reason;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use file::Known;
use review::Reviewer;

use crate::metrics::labels::Cause;

/// Longer than any projected token (about 1.2 KiB), and short enough to be looked at.
const LONGEST: usize = 16 * 1024;

/// An authenticated caller: a node's proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Caller {
    /// The node that its token is bound to.
    pub node: String,
    token: Arc<str>,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("node", &self.node).field("token", &"<token>").finish()
    }
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
    /// The API server does not take it: expired, of a pod that is gone, not for us, forged.
    #[error("the API server does not take the token: {0}")]
    NotTaken(String),
    /// It is somebody's who is no proxy of ours.
    #[error("the token is of {0:?}, which is not the proxies' account")]
    OtherAccount(String),
    /// It is bound to no pod, or to one without a node.
    #[error("the token is not bound to a pod on a node")]
    Unbound,
    /// The call names another cluster.
    #[error("cluster id {0:?} is not ours")]
    OtherCluster(String),
    /// Nobody can tell now.
    #[error("the token cannot be reviewed: {0}")]
    Unavailable(String),
    /// Too many ask at once.
    #[error("too many tokens wait for their review")]
    TooMany,
}

impl Stranger {
    /// The label by which it is counted.
    pub fn cause(&self) -> Cause {
        match self {
            Self::NoToken => Cause::NoToken,
            Self::UnknownToken => Cause::UnknownToken,
            Self::NotTaken(_) => Cause::NotTaken,
            Self::OtherAccount(_) => Cause::OtherAccount,
            Self::Unbound => Cause::Unbound,
            Self::OtherCluster(_) => Cause::OtherCluster,
            Self::Unavailable(_) => Cause::NoReview,
            Self::TooMany => Cause::TooMany,
        }
    }

    /// Of the one closed set.
    pub fn reason(&self) -> Reason {
        self.cause().reason()
    }

    /// What the caller is told: whether to come again, and nothing else.
    pub fn status(&self) -> tonic::Status {
        match self {
            Self::Unavailable(_) | Self::TooMany => tonic::Status::unavailable("not ready"),
            _ => tonic::Status::unauthenticated("not authorized"),
        }
    }
}

/// Whom we know. Cheap to clone; each clone sees changes.
#[derive(Clone)]
pub struct Tokens {
    cluster: Arc<str>,
    by: By,
}

#[derive(Clone)]
enum By {
    File(Known),
    /// And when callers of open streams are looked at next.
    Review(Arc<Reviewer>, Instant),
}

impl Tokens {
    /// Those of a file.
    pub fn of_file(known: Known, cluster: &str) -> Self {
        Self { cluster: cluster.into(), by: By::File(known) }
    }

    /// Those that the API server takes.
    pub fn of_review(reviewer: Reviewer, cluster: &str) -> Self {
        Self { cluster: cluster.into(), by: By::Review(Arc::new(reviewer), Instant::now() + review::AGAIN) }
    }

    /// What a request shows of its caller, not verified.
    pub fn shown(&self, metadata: &MetadataMap) -> Result<Arc<str>, Stranger> {
        // Absent is taken as ours: stock clients always send it.
        if let Some(cluster) = metadata.get("clusterid").map(|value| value.to_str().unwrap_or_default())
            && *cluster != *self.cluster
        {
            return Err(Stranger::OtherCluster(cluster.chars().take(80).collect()));
        }
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok()).ok_or(Stranger::NoToken)?;
        let token = header.strip_prefix("Bearer ").filter(|token| !token.is_empty() && token.len() <= LONGEST);
        token.map(Into::into).ok_or(Stranger::NoToken)
    }

    /// The caller who shows this token.
    pub async fn authenticate(&self, token: Arc<str>) -> Result<Caller, Stranger> {
        let node = match &self.by {
            By::File(known) => known.node(&token).ok_or(Stranger::UnknownToken)?,
            By::Review(reviewer, _) => reviewer.node(&token).await?,
        };
        Ok(Caller { node, token })
    }

    /// Whether a caller from before still is who it was. While the API server cannot be asked, it is.
    pub async fn still(&self, caller: &Caller) -> bool {
        match &self.by {
            By::File(known) => known.node(&caller.token).as_ref() == Some(&caller.node),
            By::Review(reviewer, _) => match reviewer.node(&caller.token).await {
                Ok(node) => node == caller.node,
                Err(stranger) => stranger.reason() != Reason::PeerUntrusted,
            },
        }
    }

    /// Resolves when callers should be looked at again. May be dropped at any time.
    pub async fn changed(&mut self) {
        match &mut self.by {
            By::File(known) => known.changed().await,
            By::Review(_, next) => {
                tokio::time::sleep_until(*next).await;
                *next = Instant::now() + review::AGAIN;
            }
        }
    }
}

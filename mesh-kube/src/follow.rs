//! Follows one kind: list, watch from there, begin again when it ends. Tells what it hears in order and decides nothing.
//!
//! What the server sends is taken one object at a time, as raw JSON: an object that makes no sense must not stop the others. What
//! cannot even be told to be an object may have been anything, so everything is listed again: nothing is lost, and nothing is made up.

use std::time::Duration;

use mesh_api::manifests::Kind;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::api::{Api, Error, Status};
use crate::backoff::Backoff;
use crate::lines::{Broken, Lines};
use crate::metrics::{Cause, Metrics};
use crate::paths::{collection, escape};

/// Items of one page of a list: some 2 MB of pods.
const PAGE: u32 = 250;
/// How often in a row the server must say that it knows no such kind.
const ABSENT: u32 = 3;

/// What to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Following {
    /// Of this kind.
    pub kind: Kind,
    /// Only the pods that are bound to this node.
    pub node: Option<String>,
}

/// Times of following; the defaults are for real servers.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// First wait after a failure.
    pub first: Duration,
    /// Longest wait after failures: an outage of the server ends this much later for us.
    pub longest: Duration,
    /// A watch on which nothing comes, not even a bookmark, for so long is begun again where it stood: bookmarks come about every
    /// minute, and a connection to a server that lost its power ends by nothing else.
    pub silence: Duration,
    /// The server is asked to end a watch after this time, somewhat varied, so that replicas share the load again.
    pub life: Duration,
    /// Between tries for a kind that the server does not know.
    pub absent: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(10),
            silence: Duration::from_secs(90),
            life: Duration::from_secs(300),
            absent: Duration::from_secs(30),
        }
    }
}

/// What was heard.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A list begins.
    List(Kind),
    /// A part of it.
    Items(Kind, Vec<Value>),
    /// It is complete, as of this version.
    Listed(Kind, String),
    /// The server has no objects of this kind, since it does not know the kind.
    Absent(Kind),
    /// Made or changed.
    Changed(Kind, Value),
    /// Deleted.
    Gone(Kind, Value),
    /// Nothing happened up to this version.
    Bookmark(Kind, String),
    /// Asked for by name.
    Found(Kind, Value),
}

/// Whoever listened has gone.
struct Unheard;

/// How a watch ended.
enum End {
    /// As it should, or by silence: go on where it stood.
    Over(Cause),
    /// Badly: wait, then go on where it stood.
    Failed(Cause, String),
    /// There is no going on from there.
    Relist(Cause, String),
}

pub(crate) struct Follow {
    pub(crate) api: Api,
    pub(crate) what: Following,
    pub(crate) timing: Timing,
    pub(crate) tell: mpsc::Sender<Heard>,
    pub(crate) metrics: Metrics,
}

impl Follow {
    /// Until nobody listens any more.
    pub(crate) async fn run(self) {
        let listener = self.tell.clone();
        // Dropping the work half-way is safe: nobody hears it.
        tokio::select! {
            biased;
            () = listener.closed() => {}
            _unheard = self.follow() => {}
        }
    }

    async fn follow(&self) -> Unheard {
        let mut backoff = Backoff::new(self.timing.first, self.timing.longest);
        let mut absent = 0;
        // Whether it was listed anew, and nothing has come since.
        let mut listed_anew = false;
        loop {
            let mut version = match self.list().await {
                Ok(Ok(version)) => version,
                Ok(Err(error)) => {
                    if error.code() == Some(404) {
                        absent += 1;
                        if absent == ABSENT {
                            tracing::warn!(
                                kind = self.kind().as_str(),
                                "the API server knows no such kind: its definition is not installed"
                            );
                            if self.tell.send(Heard::Absent(self.kind())).await.is_err() {
                                return Unheard;
                            }
                        }
                        if absent >= ABSENT {
                            tokio::time::sleep(self.timing.absent).await;
                            continue;
                        }
                    }
                    self.failed(&mut backoff, Cause::of(&error), &error.to_string(), retry_after(&error)).await;
                    continue;
                }
                Err(unheard) => return unheard,
            };
            absent = 0;
            self.metrics.listed(self.kind());
            tracing::debug!(kind = self.kind().as_str(), version, "listed");
            loop {
                let begun = Instant::now();
                let from = version.clone();
                let end = match self.watch(&mut version, &mut backoff).await {
                    Ok(end) => end,
                    Err(unheard) => return unheard,
                };
                self.metrics.connected(self.kind(), false);
                if begun.elapsed() >= self.timing.longest {
                    // It worked for a while, though nothing happened.
                    backoff.worked();
                }
                listed_anew &= version == from;
                match end {
                    End::Over(cause) => {
                        self.metrics.restarted(self.kind(), cause);
                        // A server that ends every watch at once must not be asked in a loop.
                        if version == from && begun.elapsed() < self.timing.silence.min(Duration::from_secs(1)) {
                            tokio::time::sleep(backoff.failed()).await;
                        }
                    }
                    End::Failed(cause, text) => self.failed(&mut backoff, cause, &text, None).await,
                    End::Relist(cause, text) => {
                        // What is not kept any more can be listed at once: the server answers. Not in a loop, though; and garbage
                        // may go on.
                        if cause == Cause::Gone && !listed_anew {
                            listed_anew = true;
                            self.metrics.restarted(self.kind(), cause);
                            tracing::info!(
                                kind = self.kind().as_str(),
                                cause = text,
                                "the watch cannot go on; listing again"
                            );
                        } else {
                            self.failed(&mut backoff, cause, &text, None).await;
                        }
                        break;
                    }
                }
            }
        }
    }

    /// Everything, page by page. Its version, from which to watch.
    async fn list(&self) -> Result<Result<String, Error>, Unheard> {
        let kind = self.kind();
        self.tell(Heard::List(kind)).await?;
        let mut token = String::new();
        loop {
            let mut path = format!("{}?limit={PAGE}{}", collection(kind), self.selector());
            if !token.is_empty() {
                path.push_str("&continue=");
                path.push_str(&escape(&token));
            }
            let mut page = match self.api.page(&path).await {
                Ok(page) => page,
                // The rest of a list that took too long (410 Gone) is not kept: the whole begins anew, after a wait.
                Err(error) => return Ok(Err(error)),
            };
            let text = |name: &str| page.pointer(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (version, next) = (text("/metadata/resourceVersion"), text("/metadata/continue"));
            let items = match page.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => items,
                Some(Value::Null) | None if page.get("metadata").is_some() => Vec::new(),
                _ => return Ok(Err(Error::Answer("a list without items".to_owned()))),
            };
            if version.is_empty() {
                return Ok(Err(Error::Answer("a list without a version".to_owned())));
            }
            self.tell(Heard::Items(kind, items)).await?;
            if next.is_empty() {
                self.tell(Heard::Listed(kind, version.clone())).await?;
                return Ok(Ok(version));
            }
            token = next;
        }
    }

    async fn watch(&self, version: &mut String, backoff: &mut Backoff) -> Result<End, Unheard> {
        let kind = self.kind();
        let life = self.timing.life.mul_f64(rand::Rng::random_range(&mut rand::rng(), 0.8..=1.0));
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}{}",
            collection(kind),
            escape(version),
            life.as_secs().max(1),
            self.selector()
        );
        let mut lines = match self.api.stream(&path).await {
            Ok(body) => Lines::new(body),
            Err(error) if error.is_gone() => return Ok(End::Relist(Cause::Gone, error.to_string())),
            Err(error) => return Ok(End::Failed(Cause::of(&error), error.to_string())),
        };
        self.metrics.connected(kind, true);
        loop {
            let line = match tokio::time::timeout(self.timing.silence, lines.next()).await {
                Err(_) => return Ok(End::Over(Cause::Silent)),
                Ok(Ok(None)) => return Ok(End::Over(Cause::Over)),
                Ok(Ok(Some(line))) => line,
                Ok(Err(Broken::TooLong)) => {
                    self.metrics.bad(kind);
                    return Ok(End::Relist(Cause::Garbage, Broken::TooLong.to_string()));
                }
                Ok(Err(Broken::Cut(cause))) => return Ok(End::Failed(Cause::Cut, cause)),
            };
            let heard = match event(kind, &line) {
                Event::Heard(heard) => heard,
                Event::Error(status) => {
                    let error = status.into_error(0, None);
                    return Ok(match error.is_gone() {
                        true => End::Relist(Cause::Gone, error.to_string()),
                        false => End::Failed(Cause::Refused, error.to_string()),
                    });
                }
                Event::Garbage(what) => {
                    self.metrics.bad(kind);
                    return Ok(End::Relist(Cause::Garbage, what));
                }
            };
            let (Heard::Changed(_, object) | Heard::Gone(_, object)) = &heard else {
                if let Heard::Bookmark(_, at) = &heard {
                    at.clone_into(version);
                    backoff.worked();
                }
                self.tell(heard).await?;
                continue;
            };
            if let Some(at) = version_of(object) {
                at.clone_into(version);
                backoff.worked();
            }
            self.tell(heard).await?;
        }
    }

    async fn tell(&self, heard: Heard) -> Result<(), Unheard> {
        self.tell.send(heard).await.map_err(|_| Unheard)
    }

    /// Says so once, and again when it lasts; waits.
    async fn failed(&self, backoff: &mut Backoff, cause: Cause, text: &str, after: Option<Duration>) {
        let kind = self.kind().as_str();
        self.metrics.restarted(self.kind(), cause);
        let wait = backoff.failed().max(after.unwrap_or_default().min(6 * self.timing.longest));
        match backoff.failures() {
            1 | 5 => tracing::warn!(kind, cause = text, ?wait, "following the API server failed; what is known stays"),
            failures if failures % 50 == 0 => {
                tracing::warn!(
                    kind,
                    cause = text,
                    failures,
                    "the API server still cannot be followed; what is known stays"
                );
            }
            failures => tracing::debug!(kind, cause = text, failures, ?wait, "following the API server failed"),
        }
        tokio::time::sleep(wait).await;
    }

    fn kind(&self) -> Kind {
        self.what.kind
    }

    fn selector(&self) -> String {
        match &self.what.node {
            Some(node) => format!("&fieldSelector=spec.nodeName%3D{}", escape(node)),
            None => String::new(),
        }
    }
}

enum Event {
    Heard(Heard),
    Error(Status),
    Garbage(String),
}

/// What a line of a watch says. An event's object is taken as it is: whoever keeps objects names the bad ones.
fn event(kind: Kind, line: &[u8]) -> Event {
    let mut value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => return Event::Garbage(format!("a line that is no JSON ({error})")),
    };
    let object = value.get_mut("object").map(Value::take);
    match (value.get("type").and_then(Value::as_str), object) {
        (Some("ADDED" | "MODIFIED"), Some(object)) => Event::Heard(Heard::Changed(kind, object)),
        (Some("DELETED"), Some(object)) => Event::Heard(Heard::Gone(kind, object)),
        (Some("BOOKMARK"), Some(object)) => match version_of(&object) {
            Some(version) => Event::Heard(Heard::Bookmark(kind, version.to_owned())),
            None => Event::Garbage("a bookmark without a version".to_owned()),
        },
        (Some("ERROR"), Some(object)) => Event::Error(serde_json::from_value(object).unwrap_or_default()),
        _ => Event::Garbage("an event that is none".to_owned()),
    }
}

impl Cause {
    fn of(error: &Error) -> Self {
        match error {
            Error::Transport(_) => Self::Cut,
            Error::Late(_) => Self::Silent,
            Error::Refused { .. } if error.is_gone() => Self::Gone,
            Error::Refused { .. } => Self::Refused,
            Error::Answer(_) => Self::Garbage,
        }
    }
}

fn retry_after(error: &Error) -> Option<Duration> {
    match error {
        Error::Refused { retry_after, .. } => *retry_after,
        _ => None,
    }
}

fn version_of(object: &Value) -> Option<&str> {
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str).filter(|version| !version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_taken_for_an_event_that_it_is_not() {
        let garbage = |line: &str| matches!(event(Kind::Pod, line.as_bytes()), Event::Garbage(_));
        for line in [
            "",
            "x",
            "{",
            "null",
            "[]",
            "{}",
            r#"{"type":"ADDED"}"#,
            r#"{"object":{}}"#,
            r#"{"type":"RENAMED","object":{}}"#,
            r#"{"type":"BOOKMARK","object":{}}"#,
            "\u{0}",
            r#"{"type":5,"object":{}}"#,
        ] {
            assert!(garbage(line), "{line:?}");
        }
        assert!(matches!(event(Kind::Pod, br#"{"type":"ADDED","object":5}"#), Event::Heard(Heard::Changed(..))));
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}"#;
        assert!(matches!(event(Kind::Pod, gone.as_bytes()), Event::Error(Status { code: Some(410), .. })));
        assert!(matches!(event(Kind::Pod, br#"{"type":"ERROR","object":[]}"#), Event::Error(_)));
    }
}

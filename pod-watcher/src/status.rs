//! What people and programs can read about pods without asking: `events.jsonl` and `pods/<uid>.json`, the file forms of a
//! Kubernetes Event and of a Pod condition; and, where pods come from the API server, these two themselves. Written from what was
//! observed, never from intent.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_kube::Reporter;
use mesh_model::{PodName, PodUid};
use serde::Serialize;

/// The type of the Pod condition.
pub const CONDITION: &str = "culvert.io/Captured";
/// The events file is renamed to `events.jsonl.1` at this size, replacing the one before: at most twice this is kept.
const ROTATE_AT: u64 = 1024 * 1024;

/// `Normal` or `Warning`, as Kubernetes has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum EventType {
    /// All is as it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

#[derive(Serialize)]
struct EventLine<'a> {
    time: u64,
    r#type: EventType,
    reason: &'a str,
    pod: String,
    uid: &'a str,
    message: &'a str,
}

/// What was observed of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Namespace and name.
    pub pod: String,
    /// What its processes run under, if that is another uid: see [`crate::source::PodRecord`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub static_uid: Option<String>,
    /// Whether redirect was read back and the listeners were seen.
    pub enrolled: bool,
    /// The parts.
    pub observed: Seen,
    /// One word.
    pub reason: String,
    /// For a person.
    pub message: String,
}

/// What was read back from the pod's netns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// `none`, `deny`, `redirect` or `drain`.
    pub rules: &'static str,
    /// Whether all listeners are there.
    pub listeners: bool,
}

/// The directory of both.
#[derive(Debug)]
pub struct Status {
    dir: PathBuf,
    api: Option<Reporter>,
}

impl Status {
    /// Makes the directory. Conditions of an earlier run are removed: they are written anew from what is read back.
    pub fn open(dir: &Path, api: Option<Reporter>) -> io::Result<Self> {
        let pods = dir.join("pods");
        DirBuilder::new().recursive(true).mode(0o755).create(&pods)?;
        for entry in std::fs::read_dir(&pods)? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(Self { dir: dir.to_owned(), api })
    }

    /// Adds an event. One that cannot be written is logged all the same by the caller; the daemon goes on.
    pub fn event(&self, kind: EventType, reason: &str, pod: &PodName, uid: &PodUid, message: &str) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let line = EventLine { time, r#type: kind, reason, pod: pod.to_string(), uid: uid.as_str(), message };
        if let Err(error) = self.append(&line) {
            tracing::warn!(%error, dir = %self.dir.display(), "event not written");
        }
        if let Some(api) = &self.api {
            let kind = match kind {
                EventType::Normal => mesh_kube::EventType::Normal,
                EventType::Warning => mesh_kube::EventType::Warning,
            };
            api.event(kind, reason, pod, uid, message);
        }
    }

    fn append(&self, line: &EventLine<'_>) -> io::Result<()> {
        let path = self.dir.join("events.jsonl");
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() >= ROTATE_AT) {
            std::fs::rename(&path, self.dir.join("events.jsonl.1"))?;
        }
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        File::options().append(true).create(true).mode(0o644).open(&path)?.write_all(&bytes)
    }

    /// Writes a pod's condition, renamed into place.
    pub fn condition(&self, pod: &PodName, uid: &PodUid, condition: &Condition) {
        if let Some(api) = &self.api {
            api.condition(uid, pod, condition.enrolled, &condition.reason, &condition.message);
        }
        let path = self.path(uid);
        let aside = path.with_extension("tmp");
        let write = || -> io::Result<()> {
            std::fs::write(&aside, serde_json::to_vec(condition)?)?;
            std::fs::rename(&aside, &path)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, path = %path.display(), "pod condition not written");
        }
    }

    /// The pod is gone, or was never ours.
    pub fn remove(&self, uid: &PodUid) {
        let _ = std::fs::remove_file(self.path(uid));
        if let Some(api) = &self.api {
            api.forget(uid);
        }
    }

    fn path(&self, uid: &PodUid) -> PathBuf {
        self.dir.join("pods").join(format!("{uid}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_and_do_not_grow_for_ever() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let status = Status::open(dir.path(), None).expect("opened");
        let pod = PodName { namespace: "shop".to_owned(), name: "cart".to_owned() };
        let uid = PodUid::parse("u1").expect("uid");
        let message = "m".repeat(64 * 1024);
        for _ in 0..40 {
            status.event(EventType::Warning, "Drift", &pod, &uid, &message);
        }
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).expect("file").len();
        assert!(size("events.jsonl") + size("events.jsonl.1") < 2 * ROTATE_AT + 128 * 1024);
        let text = std::fs::read_to_string(dir.path().join("events.jsonl")).expect("read");
        let event: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        assert_eq!((event["type"].as_str(), event["pod"].as_str()), (Some("Warning"), Some("shop/cart")));
    }
}

//! Waiting for a component, and the error when it does not come: which one, what it said, what to do next.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use lab::{Process, wait};
use serde_json::Value;
use time::OffsetDateTime;

/// How often something is asked that costs a process to ask.
const PACE: Duration = Duration::from_millis(200);
/// Lines of a log that an error shows.
const LINES: usize = 12;

/// Waits for a fact about a component. A component that ends meanwhile is not waited for any longer.
pub(crate) fn until<T>(of: &Process, what: &str, deadline: Duration, mut fact: impl FnMut() -> Option<T>) -> Result<T> {
    let seen = wait::until(what, deadline, || match fact() {
        Some(value) => Some(Some(value)),
        None if !of.is_alive() => Some(None),
        None => None,
    });
    let result = seen.and_then(|value| match value {
        Some(value) => Ok(value),
        None => bail!("{} ended while this waited for {what}", of.name()),
    });
    result.with_context(|| explain(of))
}

/// What a component last said: its errors if it named any, else its last lines.
pub(crate) fn explain(of: &Process) -> String {
    let log = of.log();
    let cause = cause(&log).map(|line| format!("its last error: {line}\n")).unwrap_or_default();
    let path = of.log_base().display().to_string();
    format!(
        "{} failed\n{cause}its last lines:\n{}\nnext: read {path}.log while the cluster stands; cargo xtask cluster down takes away what is left\nwhat happened",
        of.name(),
        of.tail(LINES)
    )
}

/// The last line of a log that is an error: `E1121 ...` or `F1121 ...` as Kubernetes writes it, `level=error` as containerd does,
/// `"level":"fatal"` as etcd does.
fn cause(log: &str) -> Option<&str> {
    let is_error = |line: &&str| {
        let mut bytes = line.bytes();
        let klog = matches!(bytes.next(), Some(b'E' | b'F')) && bytes.next().is_some_and(|byte| byte.is_ascii_digit());
        let words = ["level=error", "level=fatal", "\"level\":\"error\"", "\"level\":\"fatal\""];
        klog || words.iter().any(|word| line.contains(word))
    };
    log.lines().rfind(is_error)
}

/// A fact that is looked at only now and then.
pub(crate) fn now_and_then<T>(mut fact: impl FnMut() -> Option<T>) -> impl FnMut() -> Option<T> {
    let mut next = Instant::now();
    move || {
        if Instant::now() < next {
            return None;
        }
        let seen = fact();
        next = Instant::now() + PACE;
        seen
    }
}

/// Whether a Node object says Ready by a status not older than `since` (empty: any); both as RFC 3339 in UTC, which sorts as text.
pub(crate) fn is_ready(node: &Value, since: &str) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .filter(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        .any(|condition| condition["lastHeartbeatTime"].as_str().is_some_and(|heartbeat| heartbeat >= since))
}

/// The second in which `time` lies, as the API server writes times.
pub(crate) fn second(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time.hour(), time.minute(), time.second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_the_last_line_that_is_an_error_in_the_words_of_its_program() {
        let kubernetes = "I1121 started\nE1121 10:00:00.1 1 a.go:1] \"no route\"\nI1121 going on\nEverything else";
        assert_eq!(cause(kubernetes), Some("E1121 10:00:00.1 1 a.go:1] \"no route\""));
        assert_eq!(cause("time=1 level=info msg=a\ntime=2 level=error msg=b"), Some("time=2 level=error msg=b"));
        assert_eq!(cause("all is well"), None);
    }

    #[test]
    fn a_status_from_before_the_boot_is_not_taken_for_ready() {
        let boot = second(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        assert_eq!(boot, "2027-01-15T08:00:00Z");
        let node = |status: &str, heartbeat: &str| {
            let ready = serde_json::json!({ "type": "Ready", "status": status, "lastHeartbeatTime": heartbeat });
            serde_json::json!({ "status": { "conditions": [ready] } })
        };
        assert!(is_ready(&node("True", "2027-01-15T08:00:00Z"), &boot));
        assert!(!is_ready(&node("True", "2027-01-15T07:59:59Z"), &boot));
        assert!(!is_ready(&node("False", "2027-01-15T08:00:01Z"), &boot));
        assert!(!is_ready(&serde_json::json!({}), ""));
    }
}

//! The node's taint `culvert.io/not-ready`: off while pods of the mesh can start here, on while they cannot, so that the scheduler sends
//! them elsewhere. Whoever makes nodes may put it on from the beginning (`kubelet --register-with-taints`).

use std::time::Duration;

use mesh_kube::{Api, Backoff, Known, Method, Single};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

/// Its key.
pub const KEY: &str = "culvert.io/not-ready";
/// It is put on when the node has not been ready for so long: an owner that rewrites its configuration must not move pods about.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a write that was refused.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The change that makes the node say so; `None` if it does. Taints are one list that is replaced whole, so the version must be the one
/// that was read: another's taint that came meanwhile is not lost.
pub fn change(node: &Value, ready: bool) -> Option<Value> {
    let taints = node.pointer("/spec/taints").and_then(Value::as_array).cloned().unwrap_or_default();
    let ours = |taint: &Value| taint.get("key").and_then(Value::as_str) == Some(KEY);
    let is_there = taints.iter().any(ours);
    let wanted: Vec<Value> = match (is_there, ready) {
        (true, true) => taints.into_iter().filter(|taint| !ours(taint)).collect(),
        (false, false) => taints.into_iter().chain([json!({"key": KEY, "effect": "NoSchedule"})]).collect(),
        _ => return None,
    };
    let version = node.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    Some(json!({"metadata": {"resourceVersion": version}, "spec": {"taints": wanted}}))
}

/// Keeps it right until nobody says any more whether the node is ready. A write that was refused is tried again with what the node says
/// then: a conflict means that there is news.
pub async fn keep(api: Api, node: Single, mut known: watch::Receiver<Known>, mut ready: watch::Receiver<bool>) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut unready_since = Some(Instant::now());
    loop {
        let is_ready = *ready.borrow_and_update();
        unready_since = if is_ready { None } else { unready_since.or_else(|| Some(Instant::now())) };
        let due = unready_since.map(|since| since + PATIENCE).filter(|due| Instant::now() < *due);
        let wanted = match &*known.borrow_and_update() {
            Known::There(object) if due.is_none() => change(object, is_ready),
            _ => None,
        };
        let mut again = due;
        if let Some(patch) = wanted {
            match api.write(Method::Patch, &node.path(), &patch).await {
                Ok(_) => {
                    tracing::info!(taint = KEY, on = !is_ready, "taint of the node written");
                    backoff.worked();
                    // The watch tells of it; should it not, it is written once more.
                    again = Some(Instant::now() + RETRY.1);
                }
                Err(error) => {
                    tracing::warn!(%error, taint = KEY, "taint of the node cannot be written");
                    again = Some(Instant::now() + backoff.failed());
                }
            }
        }
        // Each may be dropped: all of it is looked at again.
        tokio::select! {
            changed = ready.changed() => if changed.is_err() { return },
            changed = known.changed() => if changed.is_err() { return },
            () = at(again) => {}
        }
    }
}

async fn at(again: Option<Instant>) {
    match again {
        Some(again) => tokio::time::sleep_until(again).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_taint_is_touched_and_only_when_it_must_be() {
        let node = |taints: Value| json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": taints}});
        let (other, ours) = (
            json!({"key": "dedicated", "value": "x", "effect": "NoExecute"}),
            json!({"key": KEY, "effect": "NoSchedule"}),
        );
        // Whatever its effect and value, it is the one that is meant.
        let theirs = json!({"key": KEY, "value": "true", "effect": "NoExecute"});
        let table = [
            (json!(null), true, None),
            (json!([other]), true, None),
            (json!([ours]), false, None),
            (json!([theirs]), false, None),
            (json!([ours, other, theirs]), true, Some(json!([other]))),
            (json!([theirs]), true, Some(json!([]))),
            (json!(null), false, Some(json!([ours]))),
            (json!([other]), false, Some(json!([other, ours]))),
        ];
        for (taints, ready, wanted) in table {
            let change = change(&node(taints.clone()), ready);
            assert_eq!(change.as_ref().map(|patch| patch["spec"]["taints"].clone()), wanted, "{taints} {ready}");
            assert!(change.is_none_or(|patch| patch["metadata"]["resourceVersion"] == "7"));
        }
    }
}

//! The CNI chain of each node, by the last look of its pod-watcher: nothing else reaches the node's disk.

use serde_json::Value;

use super::Finding;
use crate::failure::Failure;

/// Said before an install, when nobody of ours is on the nodes.
pub fn unseen() -> Finding {
    Finding::fine(
        "CNI and kernel modules",
        "are on the nodes' disks, which the API server does not show: not looked at. After the install, culvert check says per node which \
         network configuration the plugin is in, and names pods that a kernel without the modules of docs/compatibility.md cannot capture",
    )
}

/// From the answer to `admin chain` of a node's pod-watcher.
pub fn judge(node: &str, answer: &Result<Value, Failure>) -> Vec<Finding> {
    let object = format!("CNI chain of node {node}");
    let seen = match answer {
        Ok(seen) => seen,
        Err(failure) => return vec![Finding::failed(object, failure.what(), failure.next())],
    };
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let dir = text(&seen["directory"]);
    if seen["directory"].is_null() && seen["why"].is_string() {
        let why = text(&seen["why"]);
        return vec![Finding::warning(
            object,
            why,
            "see that something else has culvert-cni called for each pod (docs/cni-chain.md)",
        )];
    }
    if seen["in_chain"] != true {
        return vec![Finding::failed(
            object,
            format!("culvert-cni is in no network configuration of {dir}: {}", text(&seen["why"])),
            format!(
                "pods that start there are captured late, and new ones kept away by a taint: mend what the cause names \
                 (docs/cni-chain.md, compatibility.md; culvert logs pod-watcher --node {node}); pod-watcher looks again by itself"
            ),
        )];
    }
    let mut findings =
        vec![Finding::fine(object.as_str(), format!("culvert-cni is in {} of {dir}", text(&seen["file"])))];
    let left = seen["left"].as_array().into_iter().flatten();
    let left: Vec<String> = left.map(|one| format!("{}: {}", text(&one["file"]), text(&one["why"]))).collect();
    if !left.is_empty() {
        findings.push(Finding::warning(
            object,
            format!("files of {dir} come first by name and no runtime can use them: {}", left.join("; ")),
            "mend or remove them: one that becomes usable takes the place of the network that the node has now",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Level;

    fn said(seen: Value) -> Vec<(Level, String, String)> {
        judge("n1", &Ok(seen)).into_iter().map(|one| (one.level, one.says, one.next)).collect()
    }

    #[test]
    fn the_file_is_named_where_our_entry_is_in_it_and_the_cause_where_it_is_in_none() {
        let seen = json!({"directory": "/etc/cni/net.d", "in_chain": true, "file": "10-lab.conflist", "why": null, "left": []});
        let found = said(seen.clone());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (found[0].0, found[0].1.as_str()),
            (Level::Fine, "culvert-cni is in 10-lab.conflist of /etc/cni/net.d")
        );
        let mut with_left = seen;
        with_left["left"] = json!([{"file": "00-old.conf", "why": "is no JSON"}]);
        let found = said(with_left);
        assert!(found[1].0 == Level::Warning && found[1].1.contains("00-old.conf: is no JSON"), "{found:?}");

        let out = json!({"directory": "/etc/cni/net.d", "in_chain": false, "file": null, "why": "no network is configured yet", "left": []});
        let found = said(out);
        assert!(found[0].0 == Level::Failed && found[0].1.ends_with("no network is configured yet"), "{found:?}");
        assert!(found[0].2.contains("--node n1"), "{found:?}");
    }

    #[test]
    fn a_chain_that_is_somebody_elses_care_is_a_warning_and_nothing_of_ours_to_mend() {
        let seen = json!({"directory": null, "in_chain": false, "file": null, "why": "it was not told to", "left": []});
        let found = said(seen);
        assert_eq!((found.len(), found[0].0, found[0].1.as_str()), (1, Level::Warning, "it was not told to"));
    }

    #[test]
    fn a_pod_watcher_that_says_nothing_is_a_failure_with_its_next_step() {
        let silent = judge("n1", &Err(Failure::silent("no answer", "look at the node")));
        assert_eq!(
            (silent[0].level, silent[0].says.as_str(), silent[0].next.as_str()),
            (Level::Failed, "no answer", "look at the node")
        );
        assert_eq!(judge("n1", &Ok(Value::Null))[0].level, Level::Failed);
        assert_eq!(unseen().level, Level::Fine);
    }
}

//! Clocks: of this machine and of the nodes, beside the API server's. A certificate is valid from 60 s before it was signed, so a node
//! that is further behind refuses its peers.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::fmt::rfc2822;
use mesh_api::manifests::Node;
use serde_json::Value;

use super::{Finding, nodes};

/// A `Date` has whole seconds, and a request takes its time.
const BLUR: i64 = 3;
/// From here on it fails: half of what certificates bear.
const FAR: i64 = 30;
/// kubelet renews its Lease every 10 s; one that is older than this has missed three.
const RENEWAL: i64 = 40;

/// `before` and `after` the request whose answer has this date, as this machine's Unix time.
pub fn of_this_machine(date: Option<&str>, before: u64, after: u64) -> Finding {
    let object = "clock of this machine";
    let Some(server) = date.and_then(seconds) else {
        return Finding::warning(
            object,
            "the API server's answer has no usable Date to compare with",
            "a proxy in between may take it away",
        );
    };
    let (before, after) = (i64::try_from(before).unwrap_or(i64::MAX), i64::try_from(after).unwrap_or(i64::MAX));
    let off = if server < before - BLUR {
        server - before
    } else if server > after + BLUR {
        server - after
    } else {
        0
    };
    match off {
        0 => Finding::fine(object, "agrees with the API server's"),
        off => Finding::warning(
            object,
            format!(
                "is {} s {} the API server's; ages and expiries that culvert prints are off by as much",
                off.abs(),
                if off < 0 { "ahead of" } else { "behind" }
            ),
            "set it by NTP, here or on the API server's machine",
        ),
    }
}

/// Of each node by its Lease, which kubelet stamps with the node's own clock. `date` is the API server's.
pub fn of_nodes(nodes: &[Node], leases: &[Value], date: Option<&str>) -> Vec<Finding> {
    let Some(now) = date.and_then(seconds) else { return Vec::new() };
    let of = |lease: &Value| {
        Some((lease["metadata"]["name"].as_str()?.to_owned(), lease["spec"]["renewTime"].as_str()?.to_owned()))
    };
    let renewed: BTreeMap<String, String> = leases.iter().filter_map(of).collect();
    let mut findings = Vec::new();
    // What is not Ready has been said of the node, and its Lease is old for that reason.
    for node in nodes.iter().filter(|node| nodes::is_ready(node)) {
        let Some(name) = node.metadata.name.as_deref() else { continue };
        let object = format!("clock of node {name}");
        let Some(at) = renewed.get(name).and_then(|text| text.parse::<Timestamp>().ok()) else {
            findings.push(Finding::warning(
                object,
                "it has no Lease in kube-node-lease to tell it by",
                "see kubectl -n kube-node-lease get leases",
            ));
            continue;
        };
        let ahead = at.as_second() - now;
        let next = "set it by NTP: certificates are refused by a clock that is 60 s off";
        if ahead > FAR {
            findings.push(Finding::failed(object, format!("is at least {ahead} s ahead of the API server's"), next));
        } else if ahead > BLUR {
            findings.push(Finding::warning(object, format!("is at least {ahead} s ahead of the API server's"), next));
        } else if -ahead > RENEWAL + FAR {
            findings.push(Finding::failed(
                object,
                format!("is {} s behind the API server's, or its kubelet does not renew its Lease", -ahead),
                next,
            ));
        } else if -ahead > RENEWAL {
            findings.push(Finding::warning(
                object,
                format!("is some {} s behind the API server's, or its kubelet is slow to renew its Lease", -ahead),
                next,
            ));
        }
    }
    if findings.is_empty() && !nodes.is_empty() {
        findings.push(Finding::fine("clocks of the nodes", "agree with the API server's, as far as their Leases tell"));
    }
    findings
}

fn seconds(date: &str) -> Option<i64> {
    Some(rfc2822::parse(date).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Level;

    const DATE: &str = "Sat, 21 Nov 2026 19:51:04 GMT";

    #[test]
    fn this_machine_s_clock_may_be_off_by_the_time_of_a_request() {
        let at = u64::try_from(seconds(DATE).expect("a date")).expect("after 1970");
        let check = |before: u64, after: u64, level: Level, says: &str| {
            let found = of_this_machine(Some(DATE), before, after);
            assert!(found.level == level && found.says.contains(says), "{found:?}");
        };
        check(at, at, Level::Fine, "agrees");
        check(at - 2, at + 9, Level::Fine, "agrees");
        check(at + 60, at + 61, Level::Warning, "60 s ahead of");
        check(at - 61, at - 60, Level::Warning, "60 s behind");
        assert_eq!(of_this_machine(None, 0, 0).level, Level::Warning);
    }

    #[test]
    fn a_node_s_clock_shows_in_its_lease() {
        let node = json!({"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let nodes: Vec<Node> = vec![serde_json::from_value(node).expect("a node")];
        let check = |renewed: &str, level: Level, says: &str| {
            let lease = json!({"metadata": {"name": "n1"}, "spec": {"renewTime": renewed}});
            let found = of_nodes(&nodes, &[lease], Some(DATE));
            assert!(found.len() == 1 && found[0].level == level && found[0].says.contains(says), "{found:?}");
        };
        check("2026-11-21T19:50:55.123456Z", Level::Fine, "agree");
        check("2026-11-21T19:51:06.000000Z", Level::Fine, "agree");
        check("2026-11-21T19:51:14.000000Z", Level::Warning, "10 s ahead");
        check("2026-11-21T19:52:04.000000Z", Level::Failed, "60 s ahead");
        check("2026-11-21T19:50:14.000000Z", Level::Warning, "50 s behind");
        check("2026-11-21T19:40:04.000000Z", Level::Failed, "660 s behind");
        check("yesterday", Level::Warning, "no Lease");
    }
}

//! The API server: its version and the groups that Culvert needs of it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Finding;

/// From here on a projected token always names its node (KEP-4193; in 1.30 and 1.31 that could be switched off), by which
/// certificates and pod-watcher's rights are bound to nodes.
const OLDEST: u32 = 32;
/// What tests run on.
const TRIED: u32 = 36;

/// What is used of each group; `None` for what is used where it is there.
const GROUPS: [(&str, &str); 9] = [
    ("apps/v1", "DaemonSets and the Deployment"),
    ("rbac.authorization.k8s.io/v1", "permissions of the daemons"),
    ("apiextensions.k8s.io/v1", "definitions of policies"),
    ("admissionregistration.k8s.io/v1", "the policy that holds pod-watcher to its own node"),
    ("authentication.k8s.io/v1", "TokenReview of proxies that ask for certificates"),
    ("coordination.k8s.io/v1", "the Lease of the control plane"),
    ("discovery.k8s.io/v1", "endpoints of Services"),
    ("events.k8s.io/v1", "Events"),
    ("networking.k8s.io/v1", "the mark of pods that a NetworkPolicy selects"),
];

/// From `/version`.
pub fn version(said: &Value) -> Finding {
    let text = said["gitVersion"].as_str().unwrap_or("unknown");
    // Providers write `32+`.
    let number = |key: &str| said[key].as_str().and_then(|text| text.trim_end_matches('+').parse::<u32>().ok());
    let object = "API server";
    match (number("major"), number("minor")) {
        (Some(1), Some(minor)) if minor < OLDEST => Finding::failed(
            object,
            format!("{text} is older than 1.{OLDEST}, from which on tokens always name their node"),
            "upgrade the cluster",
        ),
        (Some(1), Some(minor)) if minor > TRIED => {
            Finding::fine(object, format!("{text}; newer than 1.{TRIED}, which Culvert is tested on"))
        }
        (Some(1), Some(_)) => Finding::fine(object, text),
        _ => Finding::warning(object, format!("version {text:?} cannot be told"), "see docs/compatibility.md"),
    }
}

/// From `/apis`.
pub fn groups(said: &Value) -> Vec<Finding> {
    let groups = said["groups"].as_array().into_iter().flatten();
    let versions = groups.flat_map(|group| group["versions"].as_array().into_iter().flatten());
    let served: BTreeSet<&str> = versions.filter_map(|version| version["groupVersion"].as_str()).collect();
    let missing = GROUPS.iter().filter(|(name, _)| !served.contains(name));
    let findings: Vec<Finding> = missing
        .map(|(name, used)| {
            Finding::failed(
                format!("API group {name}"),
                format!("is not served; needed for {used}"),
                "serve it: kube-apiserver --runtime-config",
            )
        })
        .collect();
    match findings.is_empty() {
        true => vec![Finding::fine("API groups", format!("all {} that are needed are served", GROUPS.len()))],
        false => findings,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Level;

    #[test]
    fn a_version_that_lacks_what_is_needed_fails_and_one_that_cannot_be_told_does_not() {
        let level =
            |major: &str, minor: &str| version(&json!({"major": major, "minor": minor, "gitVersion": "v"})).level;
        assert_eq!(level("1", "31"), Level::Failed);
        assert_eq!(level("1", "32+"), Level::Fine);
        assert_eq!(level("1", "40"), Level::Fine);
        assert_eq!(level("2", ""), Level::Warning);
        assert_eq!(version(&Value::Null).level, Level::Warning);
    }

    #[test]
    fn each_group_that_is_missing_is_named_with_its_use() {
        let all: Vec<Value> = GROUPS.iter().map(|(name, _)| json!({"versions": [{"groupVersion": name}]})).collect();
        assert_eq!(groups(&json!({"groups": all})).len(), 1);
        let found = groups(&json!({"groups": all[1..]}));
        assert_eq!((found.len(), found[0].object.as_str(), found[0].level), (1, "API group apps/v1", Level::Failed));
        assert_eq!(groups(&Value::Null).len(), GROUPS.len());
    }
}

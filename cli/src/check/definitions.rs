//! Definitions of the kinds that policies are written in, which another project may have brought.

use serde_json::Value;

use super::Finding;
use crate::names::PART_OF;

/// What policies are written in.
pub const NAMES: [&str; 2] = ["authorizationpolicies.security.istio.io", "peerauthentications.security.istio.io"];

/// A definition as it is there, or not.
pub fn judge(name: &str, there: Option<&Value>) -> Finding {
    let object = format!("definition {name}");
    let Some(there) = there else { return Finding::fine(object, "is not there yet; culvert install brings it") };
    let versions = there.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten();
    if !versions.clone().any(|one| one["name"] == "v1" && one["served"] == true) {
        let served: Vec<&str> =
            versions.filter(|one| one["served"] == true).filter_map(|one| one["name"].as_str()).collect();
        return Finding::failed(
            object,
            format!("does not serve v1, which the control plane watches, but {}", served.join(", ")),
            "upgrade whoever installed it (Istio 1.22 and later bring v1); policies cannot be read until then",
        );
    }
    match there["metadata"]["labels"][PART_OF] == "culvert" {
        true => Finding::fine(object, "is Culvert's and serves v1"),
        false => Finding::fine(object, "is somebody else's and serves v1; it is left as it is"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Level;

    #[test]
    fn a_definition_is_absent_ours_or_somebody_s_and_must_serve_v1() {
        let there = |labels: Value, version: &str| {
            let versions = json!([{"name": version, "served": true}, {"name": "v0", "served": false}]);
            judge("x", Some(&json!({"metadata": {"labels": labels}, "spec": {"versions": versions}})))
        };
        assert_eq!(judge("x", None).level, Level::Fine);
        assert!(there(json!({PART_OF: "culvert"}), "v1").says.contains("Culvert's"));
        assert!(there(json!({}), "v1").says.contains("somebody else's"));
        let old = there(json!({}), "v1beta1");
        assert!(old.level == Level::Failed && old.says.ends_with("but v1beta1"), "{old:?}");
    }
}

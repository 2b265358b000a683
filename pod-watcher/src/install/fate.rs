//! Whether a pod-watcher that is told to stop comes back. An upgrade leaves the chain as it is, so that pods of the mesh wait for the
//! successor; a removal takes our plugin out, so that the node works without us. Pure.
//!
//! Only an answer counts: while nobody can say, everything stays. The node then is as with pod-watcher dead.

use mesh_kube::Known;
use serde_json::Value;

/// What to do with the chain at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Somebody comes after us, or nobody can say.
    Stay(&'static str),
    /// Nobody does.
    Leave(&'static str),
}

/// By our DaemonSet and our node.
pub fn fate(set: &Known, node: &Known) -> Fate {
    let set = match set {
        Known::Unknown => return Fate::Stay("nobody could say whether the DaemonSet is there"),
        // Perhaps we are run by something else, or under another name: then it is not for us to say.
        Known::Never => return Fate::Stay("a DaemonSet of that name was never there"),
        Known::Gone => return Fate::Leave("the DaemonSet was deleted"),
        Known::There(set) => set,
    };
    if set.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null()) {
        return Fate::Leave("the DaemonSet is being deleted");
    }
    match node {
        Known::There(node) if !is_chosen(set, node) => Fate::Leave("the DaemonSet is not for this node any more"),
        Known::There(_) => Fate::Stay("the DaemonSet is there and for this node"),
        // A node that is gone takes its disk along, or comes back under its name.
        Known::Unknown | Known::Never | Known::Gone => Fate::Stay("nobody could say whether the node is still chosen"),
    }
}

/// Whether the DaemonSet's pods are for this node: node selector and required node affinity (core/v1 PodSpec). Taints are not asked:
/// one may be taken back, and until then pods of the mesh do not start here either.
fn is_chosen(set: &Value, node: &Value) -> bool {
    let Some(spec) = set.pointer("/spec/template/spec") else { return true };
    let label = |key: &str| node.pointer("/metadata/labels").and_then(|labels| labels.get(key)).and_then(Value::as_str);
    let selector = spec.get("nodeSelector").and_then(Value::as_object);
    if selector.into_iter().flatten().any(|(key, wanted)| label(key) != wanted.as_str()) {
        return false;
    }
    let required = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let Some(terms) = spec.pointer(required).and_then(Value::as_array) else { return true };
    let name = node.pointer("/metadata/name").and_then(Value::as_str);
    let list = |of: &Value, key: &str| of.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    terms.iter().any(|term| {
        let (labels, fields) = (list(term, "matchExpressions"), list(term, "matchFields"));
        // core/v1 NodeSelectorTerm: one that asks nothing matches no node.
        !(labels.is_empty() && fields.is_empty())
            && labels.iter().all(|one| holds(one, label(one.get("key").and_then(Value::as_str).unwrap_or_default())))
            && fields.iter().all(|one| one.get("key").is_none_or(|key| key != "metadata.name") || holds(one, name))
    })
}

/// core/v1 NodeSelectorRequirement. An operator that is not known is taken to hold: only an answer counts.
fn holds(requirement: &Value, value: Option<&str>) -> bool {
    let values: Vec<&str> =
        requirement.get("values").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let compare = |wanted: std::cmp::Ordering| {
        let number = |text: &str| text.parse::<i64>().ok();
        let (Some(is), Some(than)) = (value.and_then(number), values.first().and_then(|text| number(text))) else {
            return false;
        };
        is.cmp(&than) == wanted
    };
    match requirement.get("operator").and_then(Value::as_str) {
        Some("In") => value.is_some_and(|value| values.contains(&value)),
        Some("NotIn") => value.is_none_or(|value| !values.contains(&value)),
        Some("Exists") => value.is_some(),
        Some("DoesNotExist") => value.is_none(),
        Some("Gt") => compare(std::cmp::Ordering::Greater),
        Some("Lt") => compare(std::cmp::Ordering::Less),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node() -> Known {
        Known::There(json!({"metadata": {"name": "n1", "labels": {"os": "linux", "zone": "a", "gen": "5"}}}))
    }

    fn set(spec: Value) -> Known {
        Known::There(json!({"metadata": {"name": "pod-watcher"}, "spec": {"template": {"spec": spec}}}))
    }

    #[test]
    fn only_an_answer_takes_anything_out() {
        let deleting = Known::There(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        for (set, leaves) in [
            (Known::Unknown, false),
            (Known::Never, false),
            (set(json!({})), false),
            (Known::There(Value::Null), false),
            (Known::Gone, true),
            (deleting, true),
        ] {
            for node in [Known::Unknown, Known::Never, Known::Gone, node()] {
                assert_eq!(matches!(fate(&set, &node), Fate::Leave(_)), leaves, "{set:?} {node:?}");
            }
        }
        let elsewhere = set(json!({"nodeSelector": {"os": "windows"}}));
        for node in [Known::Unknown, Known::Never, Known::Gone] {
            assert!(matches!(fate(&elsewhere, &node), Fate::Stay(_)), "{node:?}");
        }
        assert!(matches!(fate(&elsewhere, &node()), Fate::Leave(_)));
    }

    #[test]
    fn a_node_is_chosen_as_the_daemonset_controller_chooses() {
        let terms = |terms: Value| {
            json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
        };
        let one = |key: &str, operator: &str, values: Value| {
            terms(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
        };
        let field = |name: &str| {
            terms(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]))
        };
        let table = [
            (json!({}), true),
            (json!({"nodeSelector": {"os": "linux"}}), true),
            (json!({"nodeSelector": {"os": "linux", "zone": "b"}}), false),
            (json!({"nodeSelector": {"absent": ""}}), false),
            (one("zone", "In", json!(["a", "b"])), true),
            (one("zone", "In", json!(["b"])), false),
            (one("zone", "NotIn", json!(["a"])), false),
            (one("absent", "NotIn", json!(["a"])), true),
            (one("zone", "Exists", json!([])), true),
            (one("zone", "DoesNotExist", json!([])), false),
            (one("gen", "Gt", json!(["4"])), true),
            (one("gen", "Gt", json!(["5"])), false),
            (one("gen", "Lt", json!(["6"])), true),
            (one("zone", "Lt", json!(["6"])), false),
            (one("zone", "Resembles", json!(["x"])), true),
            (terms(json!([{}])), false),
            (
                terms(json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]},
                          {"matchExpressions": [{"key": "os", "operator": "Exists"}]}])),
                true,
            ),
            (field("n1"), true),
            (field("n2"), false),
        ];
        for (spec, chosen) in table {
            let is = matches!(fate(&set(spec.clone()), &node()), Fate::Stay(_));
            assert_eq!(is, chosen, "{spec}");
        }
    }
}

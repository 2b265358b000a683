//! Policies, and what the control plane says at each of them: one that is not carried out as written is worth a person's look.

use serde_json::Value;

use super::Finding;

/// The condition that the control plane writes.
const CONDITION: &str = "culvert.io/Accepted";
/// So many are named; of more, how many.
const NAMED: usize = 10;

/// All policies of a kind.
pub fn judge(kind: &str, policies: &[Value]) -> Vec<Finding> {
    let (mut findings, mut accepted, mut untold) = (Vec::new(), 0, 0);
    for policy in policies {
        let text = |place: &str| policy.pointer(place).and_then(Value::as_str).unwrap_or_default();
        let conditions = policy.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        // One of an earlier generation says nothing of what stands there now. Somebody else's definition may have no place for it.
        let generation = &policy["metadata"]["generation"];
        let is_current = |one: &&Value| one["observedGeneration"].is_null() || one["observedGeneration"] == *generation;
        let ours = conditions.into_iter().filter(|one| one["type"] == CONDITION).find(is_current);
        match ours.map(|one| (one["status"] == "True", one["reason"].as_str(), one["message"].as_str())) {
            None => untold += 1,
            Some((true, ..)) => accepted += 1,
            Some((false, reason, message)) => findings.push(Finding::warning(
                format!("{kind} {}/{}", text("/metadata/namespace"), text("/metadata/name")),
                format!("{}: {}", reason.unwrap_or_default(), message.unwrap_or_default()),
                "mend the policy, or delete it",
            )),
        }
    }
    let refused = findings.len();
    findings.truncate(NAMED);
    let of = format!("{kind} objects");
    if refused > NAMED {
        let says = format!("{refused} are not carried out as written, {NAMED} of them are named here");
        let next = format!("kubectl get {} -A shows all", kind.to_lowercase());
        findings.push(Finding::warning(of.clone(), says, next));
    }
    if untold > 0 {
        let says = format!("of {untold} the control plane has not said what becomes of them");
        let next =
            "look again; if it lasts: kubectl -n culvert-system get lease culvert-control-plane, and that one's log";
        findings.push(Finding::warning(of.clone(), says, next));
    }
    findings.push(Finding::fine(of, format!("{accepted} of {} are carried out as written", policies.len())));
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Level;

    fn policy(name: usize, status: &str, generation: u64) -> Value {
        json!({"metadata": {"name": format!("p{name}"), "namespace": "shop", "generation": 2},
            "status": {"conditions": [{"type": "Other", "status": "False"},
                {"type": CONDITION, "status": status, "reason": "NotUnderstood", "message": "spec.x: y",
                    "observedGeneration": generation}]}})
    }

    #[test]
    fn a_policy_that_is_not_accepted_is_named_with_what_happens() {
        let found = judge("AuthorizationPolicy", &[policy(1, "True", 2), policy(2, "False", 2), policy(3, "False", 1)]);
        let says: Vec<_> = found.iter().map(|one| (one.level, one.object.as_str(), one.says.as_str())).collect();
        let of = "AuthorizationPolicy objects";
        assert_eq!(
            says,
            [
                (Level::Warning, "AuthorizationPolicy shop/p2", "NotUnderstood: spec.x: y"),
                (Level::Warning, of, "of 1 the control plane has not said what becomes of them"),
                (Level::Fine, of, "1 of 3 are carried out as written"),
            ]
        );
    }

    #[test]
    fn of_many_a_few_are_named_and_all_are_counted() {
        let found = judge("PeerAuthentication", &(0..50).map(|n| policy(n, "False", 2)).collect::<Vec<_>>());
        assert_eq!(found.len(), NAMED + 2);
        assert!(found[NAMED].says.starts_with("50 are not"), "{found:?}");
        assert_eq!(judge("PeerAuthentication", &[])[0].says, "0 of 0 are carried out as written");
    }
}

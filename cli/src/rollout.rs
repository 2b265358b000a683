//! How far the pods of a DaemonSet or a Deployment are what its object says, and what holds them up.

use mesh_api::manifests::{Pod, is_ready};
use serde_json::Value;

/// How far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Pods that there should be.
    pub desired: u64,
    /// Of these, made from the object as it is now.
    pub updated: u64,
    /// Of these, ready.
    pub ready: u64,
    /// Whether its controller has seen the object as it is now; else the numbers are of before.
    pub is_observed: bool,
}

impl Rollout {
    /// Of a DaemonSet, or of a Deployment.
    pub fn of(object: &Value) -> Self {
        let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_u64);
        let is_observed =
            number("/status/observedGeneration").unwrap_or(0) >= number("/metadata/generation").unwrap_or(0);
        let status = |name: &str| number(&format!("/status/{name}")).unwrap_or(0);
        // As `kubectl rollout status` has it.
        if object.pointer("/spec/replicas").is_some() || object["kind"] == "Deployment" {
            let desired = number("/spec/replicas").unwrap_or(1);
            // Old pods that still run are not done.
            let old = status("replicas").saturating_sub(status("updatedReplicas"));
            let ready = status("availableReplicas").min(desired).saturating_sub(old);
            return Self { desired, updated: status("updatedReplicas"), ready, is_observed };
        }
        Self {
            desired: status("desiredNumberScheduled"),
            updated: status("updatedNumberScheduled"),
            ready: status("numberAvailable"),
            is_observed,
        }
    }

    /// Whether there is nothing to wait for.
    pub fn is_done(self) -> bool {
        self.is_observed && self.updated >= self.desired && self.ready >= self.desired
    }
}

/// What holds a pod up that is not ready, in the words of the scheduler or of kubelet; `None` for one that is ready.
pub fn holdup(pod: &Pod) -> Option<String> {
    if is_ready(pod) {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref();
    let containers = status.into_iter().flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    });
    for container in containers {
        let state = container.state.as_ref();
        if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
            let reason = waiting.reason.as_deref().unwrap_or("waiting");
            // What comes before every start says nothing.
            if !matches!(reason, "ContainerCreating" | "PodInitializing") {
                let message = waiting.message.as_deref().unwrap_or_default();
                return Some(
                    format!("pod {name}, container {}: {reason} {message}", container.name).trim_end().to_owned(),
                );
            }
        }
        if let Some(ended) = state.and_then(|state| state.terminated.as_ref()).filter(|ended| ended.exit_code != 0) {
            let reason = ended.reason.as_deref().unwrap_or("ended");
            return Some(format!(
                "pod {name}, container {}: {reason}, exit status {}",
                container.name, ended.exit_code
            ));
        }
    }
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let failed =
        conditions.filter(|condition| condition.status == "False").find(|condition| condition.message.is_some());
    Some(match failed {
        Some(condition) => format!("pod {name}: {}", condition.message.as_deref().unwrap_or_default()),
        None => format!("pod {name} is not ready yet"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_daemon_set_is_done_when_its_controller_has_seen_it_and_every_node_has_a_new_ready_pod() {
        let set = |generation: u64, updated: u64, available: u64| {
            Rollout::of(&json!({
                "kind": "DaemonSet", "metadata": {"generation": 2}, "spec": {},
                "status": {"observedGeneration": generation, "desiredNumberScheduled": 2, "updatedNumberScheduled": updated, "numberAvailable": available},
            }))
        };
        assert!(set(2, 2, 2).is_done());
        for unfinished in [set(1, 2, 2), set(2, 1, 2), set(2, 2, 1)] {
            assert!(!unfinished.is_done(), "{unfinished:?}");
        }
    }

    #[test]
    fn a_deployment_is_not_done_while_an_old_pod_is_left() {
        let deployment = |replicas: u64, updated: u64, available: u64| {
            Rollout::of(&json!({
                "kind": "Deployment", "metadata": {"generation": 1}, "spec": {"replicas": 2},
                "status": {"observedGeneration": 1, "replicas": replicas, "updatedReplicas": updated, "availableReplicas": available},
            }))
        };
        assert!(deployment(2, 2, 2).is_done());
        assert!(!deployment(3, 2, 3).is_done());
        assert!(!deployment(2, 2, 1).is_done());
        assert!(
            !Rollout::of(&json!({"kind": "Deployment", "metadata": {"generation": 1}, "spec": {"replicas": 2}}))
                .is_done()
        );
    }

    #[test]
    fn what_holds_a_pod_up_is_said_in_the_words_of_who_knows() {
        let check = |status: Value, says: Option<&str>| {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": []}, "status": status});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            let holdup = holdup(&pod);
            match says {
                Some(says) => assert!(holdup.as_deref().is_some_and(|text| text.contains(says)), "{holdup:?}"),
                None => assert_eq!(holdup, None),
            }
        };
        let container = |state: Value| json!([{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state}]);
        check(json!({"conditions": [{"type": "Ready", "status": "True"}]}), None);
        let pull = container(json!({"waiting": {"reason": "ErrImageNeverPull", "message": "not there"}}));
        check(json!({"containerStatuses": pull}), Some("container c: ErrImageNeverPull not there"));
        let crash = container(json!({"terminated": {"reason": "Error", "exitCode": 2}}));
        check(json!({"containerStatuses": crash}), Some("exit status 2"));
        let unbound = json!([{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]);
        check(json!({"conditions": unbound}), Some("0/2 nodes"));
        check(
            json!({"containerStatuses": container(json!({"waiting": {"reason": "ContainerCreating"}}))}),
            Some("not ready yet"),
        );
    }
}

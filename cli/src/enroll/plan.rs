//! What a change of the label `culvert.io/mesh` does to each pod: the nodes' own decision ([`enrolled`]), taken before and after.

use std::collections::BTreeMap;

use mesh_api::manifests::{
    Enrolment, MESH_LABEL, Namespace, NotEnrolled, Outside, Pod, enrolled, exclusions, is_terminal, node_name, pod_name,
};
use mesh_model::ports::{INBOUND, OUTBOUND, TUNNEL, is_reserved};
use serde_json::{Value, json};

/// Whose label is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Of a namespace: its pods follow, unless they say otherwise.
    Namespace(String),
    /// Of one pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Subject {
    /// `shop`, or `shop/cart`.
    pub fn of(text: &str) -> Self {
        match text.split_once('/') {
            Some((namespace, name)) => Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() },
            None => Self::Namespace(text.to_owned()),
        }
    }

    /// The label's value after the change; `None` takes it away. A namespace that leaves says nothing any more, so that a pod that
    /// is labelled itself stays; a pod that leaves says so, since its namespace may ask for it.
    pub fn value(&self, enroll: bool) -> Option<&'static str> {
        match (self, enroll) {
            (_, true) => Some("enabled"),
            (Self::Namespace(_), false) => None,
            (Self::Pod { .. }, false) => Some("disabled"),
        }
    }

    /// The namespace that it is, or is in.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Namespace(namespace) | Self::Pod { namespace, .. } => namespace,
        }
    }
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not in the mesh, and will be.
    Joins,
    /// It was, and will not be.
    Leaves,
    /// It is in the mesh, before and after.
    StaysIn,
    /// It is not, before and after; this is why.
    StaysOut(NotEnrolled),
}

/// What becomes of a pod, and what to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// `namespace/name`.
    pub pod: String,
    /// Where it runs, if anywhere yet.
    pub node: Option<String>,
    /// What becomes of it.
    pub outcome: Outcome,
    /// What may go otherwise than a person thinks.
    pub notes: Vec<String>,
}

impl Plan {
    /// For output.
    pub fn row(&self) -> Value {
        let (outcome, because) = match &self.outcome {
            Outcome::Joins => ("joins", None),
            Outcome::Leaves => ("leaves", None),
            Outcome::StaysIn => ("stays in", None),
            Outcome::StaysOut(why) => ("stays out", Some(why.to_string())),
        };
        let notes = because.iter().chain(&self.notes).cloned().collect::<Vec<_>>();
        json!({ "pod": self.pod, "node": self.node, "outcome": outcome, "because": because, "notes": self.notes, "shown": notes.join("; ") })
    }
}

/// What becomes of each of these pods (those of the namespace) when the subject's label is changed. Pods that have ended are left out.
pub fn plan(
    subject: &Subject,
    enroll: bool,
    namespace: Option<&Namespace>,
    pods: &[Pod],
    outside: &Outside,
) -> Vec<Plan> {
    let value = subject.value(enroll);
    let mut changed = namespace.cloned();
    if let (Subject::Namespace(_), Some(namespace)) = (subject, &mut changed) {
        set(namespace.metadata.labels.get_or_insert_default(), value);
    }
    let concerns = |pod: &&Pod| match subject {
        Subject::Namespace(_) => !is_terminal(pod),
        Subject::Pod { name, .. } => pod.metadata.name.as_ref() == Some(name),
    };
    let of_pod = |pod: &Pod| {
        let mut after = pod.clone();
        if let Subject::Pod { .. } = subject {
            set(after.metadata.labels.get_or_insert_default(), value);
        }
        let before = enrolled(namespace, pod, outside);
        let outcome = match (before, enrolled(changed.as_ref(), &after, outside)) {
            (Enrolment::Plain(_), Enrolment::Enrolled) => Outcome::Joins,
            (Enrolment::Enrolled, Enrolment::Plain(_)) => Outcome::Leaves,
            (Enrolment::Enrolled, Enrolment::Enrolled) => Outcome::StaysIn,
            (Enrolment::Plain(_), Enrolment::Plain(why)) => Outcome::StaysOut(why),
        };
        let notes = notes(subject, pod, &outcome);
        Plan { pod: pod_name(pod).to_string(), node: node_name(pod).map(str::to_owned), outcome, notes }
    };
    pods.iter().filter(concerns).map(of_pod).collect()
}

fn set(labels: &mut BTreeMap<String, String>, value: Option<&str>) {
    match value {
        Some(value) => labels.insert(MESH_LABEL.to_owned(), value.to_owned()),
        None => labels.remove(MESH_LABEL),
    };
}

fn notes(subject: &Subject, pod: &Pod, outcome: &Outcome) -> Vec<String> {
    let mut notes = Vec::new();
    let spec = pod.spec.as_ref();
    if *outcome == Outcome::Joins {
        let declared =
            spec.iter().flat_map(|spec| &spec.containers).flat_map(|container| container.ports.iter().flatten());
        for port in
            declared.filter_map(|port| u16::try_from(port.container_port).ok()).filter(|port| is_reserved(*port))
        {
            let what = match port {
                OUTBOUND | INBOUND | TUNNEL => "its node refuses it while something listens there",
                _ => "connections to it will be refused",
            };
            notes.push(format!("it declares port {port}, which the mesh needs: {what}"));
        }
        match exclusions(pod) {
            Ok(none) if none.is_empty() => {}
            Ok(some) => notes.push(format!("by its annotations not captured: {some}")),
            Err(error) => notes.push(format!("{error}; nothing is excluded")),
        }
        if node_name(pod).is_none() {
            notes.push("it is on no node yet and will start in the mesh".to_owned());
        }
    }
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    if let (Subject::Pod { .. }, Some(owner)) = (subject, owner) {
        notes.push(format!(
            "{} {} makes its successors without this label; set it in the pod template",
            owner.kind, owner.name
        ));
    }
    if matches!(subject, Subject::Namespace(_))
        && pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(MESH_LABEL))
    {
        notes.push("its own label decides".to_owned());
    }
    if pod.metadata.deletion_timestamp.is_some() {
        notes.push("it is being deleted".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use mesh_api::manifests::EXCLUDE_INBOUND_PORTS;

    use super::*;

    fn pod(change: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"namespace": "shop", "name": "cart"},
            "spec": {"nodeName": "n1", "containers": [{"name": "app"}]},
        });
        for (pointer, value) in change.as_object().expect("an object") {
            let (parent, key) = pointer.rsplit_once('.').expect("two levels");
            let parent = pod.pointer_mut(&format!("/{}", parent.replace('.', "/"))).expect("a parent");
            parent[key] = value.clone();
        }
        serde_json::from_value(pod).expect("a pod")
    }

    #[track_caller]
    fn check(subject: &str, enroll: bool, namespace: Value, change: Value, outcome: &Outcome, note: &str) {
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "shop", "labels": namespace}})).expect("a namespace");
        let outside = Outside { namespaces: vec!["kube-system".to_owned()], runtimes: vec!["kata".to_owned()] };
        let plans = plan(&Subject::of(subject), enroll, Some(&namespace), &[pod(change)], &outside);
        assert_eq!(plans.len(), 1);
        assert_eq!(&plans[0].outcome, outcome, "{plans:?}");
        assert!(
            note.is_empty() || plans[0].row()["shown"].as_str().is_some_and(|shown| shown.contains(note)),
            "{plans:?}"
        );
    }

    #[test]
    fn the_nodes_decision_is_taken_before_and_after() {
        let none = || json!({});
        let mesh = |word: &str| json!({MESH_LABEL: word});
        let own = |word: &str| json!({"metadata.labels": {MESH_LABEL: word}});
        check("shop", true, none(), none(), &Outcome::Joins, "");
        check("shop", true, mesh("enabled"), none(), &Outcome::StaysIn, "");
        check(
            "shop",
            true,
            none(),
            own("disabled"),
            &Outcome::StaysOut(NotEnrolled::OptedOut),
            "its own label decides",
        );
        check(
            "shop",
            true,
            none(),
            json!({"spec.hostNetwork": true}),
            &Outcome::StaysOut(NotEnrolled::HostNetwork),
            "node's network",
        );
        let other = json!({"metadata.annotations": {"sidecar.istio.io/status": "{}"}});
        check("shop", true, none(), other, &Outcome::StaysOut(NotEnrolled::OtherMesh("istio sidecar")), "another mesh");
        let kata = json!({"spec.runtimeClassName": "kata-qemu"});
        check("shop", true, none(), kata, &Outcome::StaysOut(NotEnrolled::OtherKernel), "a kernel of its own");
        let excluded = json!({"metadata.namespace": "kube-system"});
        check("kube-system", true, none(), excluded, &Outcome::StaysOut(NotEnrolled::ExcludedNamespace), "");
        check("shop", false, mesh("enabled"), none(), &Outcome::Leaves, "");
        check("shop", false, mesh("enabled"), own("enabled"), &Outcome::StaysIn, "its own label decides");
        check("shop/cart", true, none(), none(), &Outcome::Joins, "");
        check("shop/cart", false, mesh("enabled"), none(), &Outcome::Leaves, "");
    }

    #[test]
    fn what_may_surprise_is_said() {
        let ports = json!({"spec.containers": [{"name": "app", "ports": [{"containerPort": 15008}]}]});
        check("shop", true, json!({}), ports, &Outcome::Joins, "declares port 15008");
        let owned = json!({"metadata.ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-5", "uid": "u", "controller": true}]});
        check("shop/cart", true, json!({}), owned, &Outcome::Joins, "ReplicaSet cart-5 makes its successors without");
        check("shop", true, json!({}), json!({"spec.nodeName": null}), &Outcome::Joins, "will start in the mesh");
        let excludes = |ports: &str| json!({"metadata.annotations": {EXCLUDE_INBOUND_PORTS: ports}});
        check("shop", true, json!({}), excludes("9090"), &Outcome::Joins, "not captured: inbound ports 9090");
        check("shop", true, json!({}), excludes("http"), &Outcome::Joins, "nothing is excluded");
    }

    #[test]
    fn a_pod_that_has_ended_is_left_out_of_its_namespace() {
        let mut ended = pod(json!({}));
        ended.status = Some(serde_json::from_value(json!({"phase": "Succeeded"})).expect("a status"));
        assert!(plan(&Subject::of("shop"), true, None, &[ended], &Outside::default()).is_empty());
    }
}

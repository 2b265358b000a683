//! `culvert ps`: what was asked of each pod (labels), what was observed of it (its condition), and what its proxy has for it.

use std::collections::BTreeMap;

use mesh_api::manifests::{
    Enrolment, MESH_LABEL, Namespace, Outside, Pod, enrolled, is_terminal, node_name, pod_name, service_account,
};
use mesh_daemon::table::{Column, column};
use serde_json::{Value, json};

use crate::args::Output;
use crate::ask::{self, Proxy};
use crate::failure::Failure;
use crate::mesh::{Mesh, outside, path_of};
use crate::names::{CAPTURED, Component};
use crate::print::{self, Answer};

/// Which pods, and how closely.
pub struct Which {
    /// Also those that are not in the mesh.
    pub all: bool,
    /// Proxies are not asked.
    pub brief: bool,
    /// Of this namespace alone.
    pub namespace: Option<String>,
    /// Of this node alone.
    pub node: Option<String>,
}

const COLUMNS: [Column; 8] = [
    column("NAMESPACE", "namespace"),
    column("NAME", "name"),
    column("NODE", "node"),
    column("ENROLLED BY", "enrolled_by"),
    column("STATE", "shown"),
    column("IDENTITY", "identity"),
    column("CERTIFICATE", "expires_in"),
    column("CONNECTIONS", "connections"),
];

/// Asks and prints.
pub async fn run(mesh: &Mesh, output: Output, which: &Which) -> Result<Answer, Failure> {
    let query = which.node.as_deref().map(|node| format!("fieldSelector=spec.nodeName%3D{}", mesh_kube::escape(node)));
    let pods = mesh.pods(which.namespace.as_deref(), &query.unwrap_or_default()).await?;
    let namespaces = mesh.namespaces().await?;
    let outside = outside(mesh.get(&path_of(Component::PodWatcher)).await?.as_ref());
    let mut seen: Vec<(Seen, &Pod)> = pods.iter().map(|pod| (Seen::of(pod, &namespaces, &outside), pod)).collect();
    seen.retain(|(seen, _)| which.all || seen.concerns_the_mesh());
    let (proxies, silent) = if which.brief {
        (BTreeMap::new(), Vec::new())
    } else {
        let mut to_ask = ask::serving(&mesh.own_pods().await?, Component::NodeProxy);
        to_ask
            .retain(|node, _| seen.iter().any(|(seen, pod)| seen.concerns_the_mesh() && node_name(pod) == Some(node)));
        ask::proxies(mesh, to_ask, false).await
    };
    let now = print::now();
    let mut rows: Vec<Value> = seen.iter().map(|(seen, pod)| row(seen, pod, &proxies, now)).collect();
    rows.sort_by_key(|row| (row["namespace"].to_string(), row["name"].to_string()));
    let text = match (output, rows.is_empty()) {
        (Output::Table, true) => "no pod is in the mesh; label a namespace: culvert enroll NAMESPACE\n".to_owned(),
        _ => print::rows(output, &COLUMNS, &rows),
    };
    Ok(Answer { text, well: true, silent })
}

/// What was asked of a pod, and what was observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What its labels ask for.
    pub wanted: Enrolment,
    /// What became of it.
    pub state: State,
    /// From the condition: a reason of one word, and a message.
    pub said: Option<(String, String)>,
}

/// What became of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Asked for, and redirect and listeners were read back.
    Captured,
    /// Asked for, and not so; the condition says why.
    NotCaptured,
    /// Asked for; nobody has said anything yet.
    Waiting,
    /// Not asked for any more, and still captured.
    Leaving,
    /// Not asked for, not captured.
    Plain,
    /// It has ended.
    Ended,
}

impl State {
    /// In output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::NotCaptured => "not-captured",
            Self::Waiting => "waiting",
            Self::Leaving => "leaving",
            Self::Plain => "plain",
            Self::Ended => "ended",
        }
    }
}

impl Seen {
    /// From the API server's objects alone.
    pub fn of(pod: &Pod, namespaces: &BTreeMap<String, Namespace>, outside: &Outside) -> Self {
        let wanted = enrolled(namespaces.get(&pod_name(pod).namespace), pod, outside);
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let condition = conditions.into_iter().flatten().find(|condition| condition.type_ == CAPTURED);
        let holds = condition.map(|condition| condition.status == "True");
        let state = match (is_terminal(pod), wanted.is_enrolled(), holds) {
            (true, _, _) => State::Ended,
            (false, true, Some(true)) => State::Captured,
            (false, true, Some(false)) => State::NotCaptured,
            (false, true, None) => State::Waiting,
            (false, false, Some(true)) => State::Leaving,
            (false, false, _) => State::Plain,
        };
        let said = condition.map(|condition| {
            (condition.reason.clone().unwrap_or_default(), condition.message.clone().unwrap_or_default())
        });
        Self { wanted, state, said }
    }

    fn concerns_the_mesh(&self) -> bool {
        self.wanted.is_enrolled() && self.state != State::Ended || self.state == State::Leaving
    }
}

/// What a proxy says of a pod: its own entry, and the certificate of its identity.
pub fn of_proxy<'a>(proxy: Option<&'a Proxy>, pod: &Pod) -> (Option<&'a Value>, Option<&'a Value>) {
    let uid = pod.metadata.uid.as_deref();
    let entry = proxy.and_then(|proxy| proxy.pods.iter().find(|entry| uid.is_some() && entry["uid"].as_str() == uid));
    let certificate = entry.and_then(|entry| {
        proxy.into_iter().flat_map(|proxy| &proxy.certificates).find(|one| one["identity"] == entry["identity"])
    });
    (entry, certificate)
}

fn row(seen: &Seen, pod: &Pod, proxies: &BTreeMap<String, Proxy>, now: u64) -> Value {
    let name = pod_name(pod);
    let node = node_name(pod);
    let (entry, certificate) = of_proxy(node.and_then(|node| proxies.get(node)), pod);
    let own_word = pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(MESH_LABEL));
    let (by, why_not) = match seen.wanted {
        Enrolment::Enrolled if own_word => (json!("pod"), Value::Null),
        Enrolment::Enrolled => (json!("namespace"), Value::Null),
        Enrolment::Plain(why) => (Value::Null, json!(why.to_string())),
    };
    let not_after = certificate.and_then(|one| one["not_after"].as_u64());
    let not_before = certificate.and_then(|one| one["not_before"].as_u64());
    let shown = match (&seen.said, seen.state) {
        (Some((reason, _)), State::NotCaptured) => format!("{}: {reason}", seen.state.as_str()),
        _ => seen.state.as_str().to_owned(),
    };
    json!({
        "namespace": name.namespace,
        "name": name.name,
        "uid": pod.metadata.uid,
        "node": node,
        "service_account": service_account(pod),
        "enrolled": seen.wanted.is_enrolled(),
        "enrolled_by": by,
        "not_enrolled_because": why_not,
        "state": seen.state.as_str(),
        "shown": shown,
        "reason": seen.said.as_ref().map(|said| &said.0),
        "message": seen.said.as_ref().map(|said| &said.1),
        "identity": entry.map(|entry| entry["identity"].clone()),
        "certificate": certificate,
        "certificate_age_seconds": not_before.map(|from| now.saturating_sub(from)),
        "expires_in": not_after.map(|at| print::until(at, now)),
        "connections": entry.map(|entry| entry["connections"].clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(label: Option<&str>, condition: Option<&str>, phase: &str) -> Pod {
        let mut pod = json!({
            "metadata": {"namespace": "shop", "name": "cart", "uid": "u1", "labels": {}},
            "spec": {"nodeName": "n1", "containers": [], "serviceAccountName": "buyer"},
            "status": {"phase": phase, "conditions": []},
        });
        if let Some(label) = label {
            pod["metadata"]["labels"][MESH_LABEL] = label.into();
        }
        if let Some(status) = condition {
            pod["status"]["conditions"] =
                json!([{"type": CAPTURED, "status": status, "reason": "PortTaken", "message": "15008 is taken"}]);
        }
        serde_json::from_value(pod).expect("a pod")
    }

    fn namespaces() -> BTreeMap<String, Namespace> {
        let shop = json!({"metadata": {"name": "shop", "labels": {MESH_LABEL: "enabled"}}});
        [("shop".to_owned(), serde_json::from_value(shop).expect("a namespace"))].into()
    }

    #[test]
    fn the_state_is_what_was_observed_of_what_was_asked() {
        let cases = [
            (pod(None, Some("True"), "Running"), State::Captured, true),
            (pod(None, Some("False"), "Running"), State::NotCaptured, true),
            (pod(None, None, "Pending"), State::Waiting, true),
            (pod(Some("disabled"), Some("True"), "Running"), State::Leaving, true),
            (pod(Some("disabled"), Some("False"), "Running"), State::Plain, false),
            (pod(None, Some("True"), "Succeeded"), State::Ended, false),
        ];
        for (pod, state, concerns) in cases {
            let seen = Seen::of(&pod, &namespaces(), &Outside::default());
            assert_eq!((seen.state, seen.concerns_the_mesh()), (state, concerns), "{pod:?}");
        }
    }

    #[test]
    fn a_row_joins_pod_condition_and_proxy() {
        let proxy = Proxy {
            pods: vec![json!({"uid": "u1", "identity": "spiffe://x/ns/shop/sa/buyer", "connections": 3})],
            certificates: vec![
                json!({"identity": "spiffe://x/ns/shop/sa/other", "not_after": 1}),
                json!({"identity": "spiffe://x/ns/shop/sa/buyer", "not_before": 900, "not_after": 1060}),
            ],
            config: Value::Null,
        };
        let proxies = [("n1".to_owned(), proxy)].into();
        let pod = pod(Some("enabled"), Some("False"), "Running");
        let row = row(&Seen::of(&pod, &namespaces(), &Outside::default()), &pod, &proxies, 1000);
        let want = json!({"enrolled_by": "pod", "shown": "not-captured: PortTaken", "connections": 3, "expires_in": "1m00s", "certificate_age_seconds": 100});
        for (key, value) in want.as_object().expect("an object") {
            assert_eq!(&row[key], value, "{key} of {row:#}");
        }
        let table = print::rows(Output::Table, &COLUMNS, &[row]);
        assert!(table.lines().nth(1).is_some_and(|line| line.starts_with("shop") && line.ends_with('3')), "{table}");
    }

    #[test]
    fn a_pod_whose_proxy_is_silent_has_no_identity_rather_than_a_guessed_one() {
        let pod = pod(None, Some("True"), "Running");
        let row = row(&Seen::of(&pod, &namespaces(), &Outside::default()), &pod, &BTreeMap::new(), 1000);
        assert!(row["identity"].is_null() && row["connections"].is_null(), "{row:#}");
        assert_eq!((row["enrolled_by"].as_str(), row["service_account"].as_str()), (Some("namespace"), Some("buyer")));
    }
}

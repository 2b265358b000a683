//! `culvert enroll` and `unenroll`: one label. What it does to each pod is said first ([`mod@plan`]); the nodes do it, and report it.

mod plan;

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_api::manifests::{MESH_LABEL, Namespace, pod_name};
use mesh_daemon::table::{Column, column};
use mesh_kube::{Method, escape};
use serde_json::{Value, json};

use crate::args::{Enroll, Output};
use crate::failure::Failure;
use crate::mesh::{Mesh, outside, path_of};
use crate::names::Component;
use crate::print::{self, Answer};
use crate::ps::{Seen, State};
use plan::{Outcome, Plan, Subject, plan};

const COLUMNS: [Column; 4] =
    [column("POD", "pod"), column("NODE", "node"), column("OUTCOME", "outcome"), column("BECAUSE", "shown")];
/// Between looks at what the nodes have done. A node takes well under a second for a pod.
const LOOK: Duration = Duration::from_millis(500);

/// Says what happens, and unless it is a dry run has it happen.
pub async fn run(mesh: &Mesh, output: Output, args: &Enroll, enroll: bool) -> Result<Answer, Failure> {
    let subject = Subject::of(&args.target);
    let name = subject.namespace();
    let Some(namespace) = mesh.get(&format!("/api/v1/namespaces/{}", escape(name))).await? else {
        return Err(Failure::refused(
            format!("there is no namespace {name}"),
            "name a namespace, or a pod as NAMESPACE/POD: kubectl get namespaces",
        ));
    };
    let read = serde_json::from_value::<Namespace>(namespace);
    let namespace = read.map_err(|error| {
        Failure::refused(format!("namespace {name} cannot be read: {error}"), "see kubectl get namespace -o yaml")
    })?;
    let pod_watcher = mesh.get(&path_of(Component::PodWatcher)).await?;
    let pods = mesh.pods(Some(name), "").await?;
    let plans = plan(&subject, enroll, Some(&namespace), &pods, &outside(pod_watcher.as_ref()));
    if plans.is_empty() && matches!(subject, Subject::Pod { .. }) {
        return Err(Failure::refused(format!("there is no pod {}", args.target), "see the pods: culvert ps --all"));
    }
    // A pod that cannot be in the mesh would carry a label that says it is.
    if let (Subject::Pod { .. }, true, Some(Plan { pod, outcome: Outcome::StaysOut(why), .. })) =
        (&subject, enroll, plans.first())
    {
        return Err(Failure::refused(format!("pod {pod} stays out of the mesh: {why}"), "its label was not changed"));
    }
    let mut silent = Vec::new();
    if pod_watcher.is_none() {
        silent.push("no pod-watcher is installed: labels alone do nothing\n  next: culvert install".to_owned());
    }
    if !args.dry_run {
        change(mesh, &subject, enroll).await?;
        if args.wait && pod_watcher.is_some() {
            wait(mesh, &subject, &plans).await?;
        }
    }
    let rows: Vec<Value> = plans.iter().map(Plan::row).collect();
    let text = match output {
        Output::Json => print::json(&json!({ "dry_run": args.dry_run, "pods": rows })),
        Output::Table => {
            format!("{}{}", print::rows(output, &COLUMNS, &rows), sentence(&subject, enroll, args.dry_run, &plans))
        }
    };
    Ok(Answer { text, well: true, silent })
}

fn sentence(subject: &Subject, enroll: bool, dry_run: bool, plans: &[Plan]) -> String {
    let count = |wanted: &Outcome| plans.iter().filter(|plan| plan.outcome == *wanted).count();
    let (whose, word) = match subject {
        Subject::Namespace(name) => {
            (format!("namespace {name}"), "and every pod made in it from now on, unless it says otherwise")
        }
        Subject::Pod { namespace, name } => (format!("pod {namespace}/{name}"), "alone"),
    };
    let label = match subject.value(enroll) {
        Some(value) => format!("{MESH_LABEL}={value}"),
        None => format!("no label {MESH_LABEL}"),
    };
    let done = if dry_run { "would have" } else { "has" };
    format!("{whose} {done} {label}: {} join, {} leave, {word}\n", count(&Outcome::Joins), count(&Outcome::Leaves))
}

async fn change(mesh: &Mesh, subject: &Subject, enroll: bool) -> Result<(), Failure> {
    let path = match subject {
        Subject::Namespace(name) => format!("/api/v1/namespaces/{}", escape(name)),
        Subject::Pod { namespace, name } => format!("/api/v1/namespaces/{}/pods/{}", escape(namespace), escape(name)),
    };
    let body = json!({"metadata": {"labels": {MESH_LABEL: subject.value(enroll)}}});
    let changed = mesh.api.write(Method::Merge, &path, &body).await;
    changed.map(drop).map_err(|error| Failure::of(format!("label {path}"), &error))
}

/// Until every pod that joins is captured, and every one that leaves is not, or has gone.
async fn wait(mesh: &Mesh, subject: &Subject, plans: &[Plan]) -> Result<(), Failure> {
    let of = |outcome: Outcome| -> BTreeSet<&str> {
        plans
            .iter()
            .filter(|plan| plan.outcome == outcome && plan.node.is_some())
            .map(|plan| plan.pod.as_str())
            .collect()
    };
    let (joining, leaving) = (of(Outcome::Joins), of(Outcome::Leaves));
    let outside = outside(mesh.get(&path_of(Component::PodWatcher)).await?.as_ref());
    loop {
        let namespaces = mesh.namespaces().await?;
        let pods = mesh.pods(Some(subject.namespace()), "").await?;
        let mut late = Vec::new();
        for pod in &pods {
            let name = pod_name(pod).to_string();
            let seen = Seen::of(pod, &namespaces, &outside);
            let is_late = match seen.state {
                State::NotCaptured | State::Waiting => joining.contains(name.as_str()),
                State::Leaving => leaving.contains(name.as_str()),
                State::Captured | State::Plain | State::Ended => false,
            };
            if is_late {
                let why = seen.said.map_or_else(
                    || "its node has said nothing yet".to_owned(),
                    |(reason, message)| format!("{reason}: {message}"),
                );
                late.push(format!("pod {name} is {}: {why}", seen.state.as_str()));
            }
        }
        if late.is_empty() {
            return Ok(());
        }
        if mesh.left() < LOOK {
            let shown: Vec<String> = late.iter().take(5).cloned().collect();
            return Err(Failure::refused(
                format!("{} pods are not where the label wants them: {}", late.len(), shown.join("; ")),
                "see what their nodes say: kubectl describe pod, culvert logs pod-watcher",
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests;

//! `culvert install`: every object by server-side apply, then waits until the pods are there.

mod manifest;
mod resource;
pub mod uninstall;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use mesh_kube::Method;
use serde_json::Value;

use crate::failure::Failure;
use crate::mesh::Mesh;
use crate::names::{MANAGER, NAMESPACE, PART_OF};
use crate::print::{self, Answer};
use crate::rollout::{Rollout, holdup};
use manifest::Stage;
pub use manifest::{Object, read};
pub use resource::{Resources, path};

/// Between looks at what is waited for.
const LOOK: Duration = Duration::from_millis(500);

/// How to install.
#[derive(Clone, Copy)]
pub struct How {
    /// The server judges, and nothing changes.
    pub dry_run: bool,
    /// For the roll-out.
    pub wait: bool,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applied {
    Done,
    /// It is somebody else's.
    LeftAlone,
    /// In a dry run: what it is in, or of, is not there yet.
    NotJudged,
}

/// Applies and waits; says on standard error how far it is.
pub async fn run(mesh: &Mesh, files: &[PathBuf], how: How) -> Result<Answer, Failure> {
    let objects = read(files)?;
    let mut resources = Resources::default();
    let mut count = BTreeMap::from([("applied", 0), ("left alone", 0), ("not judged", 0)]);
    let mut stage = Stage::Namespace;
    for object in &objects {
        if object.stage() != stage {
            if !how.dry_run {
                established(mesh, &objects, stage).await?;
            }
            resources.forget();
            stage = object.stage();
        }
        let (word, said) = match apply(mesh, &mut resources, object, how.dry_run).await? {
            Applied::Done if how.dry_run => ("applied", "would be applied"),
            Applied::Done => ("applied", "applied"),
            Applied::LeftAlone => ("left alone", "left as it is: it is not Culvert's"),
            Applied::NotJudged => ("not judged", "not judged: what it is in, or of, is not there yet"),
        };
        *count.entry(word).or_default() += 1;
        print::tell(format_args!("{object}: {said}"));
    }
    if how.wait && !how.dry_run {
        rolled_out(mesh, &objects).await?;
    }
    let (applied, left, not_judged) = (count["applied"], count["left alone"], count["not judged"]);
    Ok(Answer::well(match (how.dry_run, how.wait) {
        (true, _) => format!(
            "nothing was changed: {applied} objects would be applied, {left} left alone, {not_judged} not judged\n"
        ),
        (false, false) => format!("{applied} objects applied, {left} left alone; see culvert status\n"),
        (false, true) => format!(
            "{applied} objects applied, {left} left alone; everything is ready. Next: culvert check, culvert enroll NAMESPACE\n"
        ),
    }))
}

async fn apply(mesh: &Mesh, resources: &mut Resources, object: &Object, dry_run: bool) -> Result<Applied, Failure> {
    let Some(resource) = resources.of(mesh, object).await? else {
        return match dry_run {
            true => Ok(Applied::NotJudged),
            false => Err(Failure::refused(
                format!("{object}: this API server has no {} of {}", object.kind, object.api_version),
                "see which versions are needed: culvert check --pre",
            )),
        };
    };
    let path = path(object, &resource);
    if object.is_of_others() && mesh.get(&path).await?.is_some_and(|there| !is_ours(&there)) {
        return Ok(Applied::LeftAlone);
    }
    let dry = if dry_run { "&dryRun=All" } else { "" };
    let path = format!("{path}?fieldManager={MANAGER}&force=true{dry}");
    match mesh.api.write(Method::Apply, &path, &object.body).await {
        Ok(_) => Ok(Applied::Done),
        // The namespace would be made by the same run.
        Err(error) if dry_run && error.code() == Some(404) => Ok(Applied::NotJudged),
        Err(error) => Err(Failure::of(format!("apply {object}"), &error)),
    }
}

/// Whether Culvert put it there.
fn is_ours(object: &Value) -> bool {
    object["metadata"]["labels"][PART_OF] == "culvert"
}

/// Definitions can be used once the server says so.
async fn established(mesh: &Mesh, objects: &[Object], stage: Stage) -> Result<(), Failure> {
    if stage != Stage::Definition {
        return Ok(());
    }
    for object in objects.iter().filter(|object| object.stage() == stage) {
        let path =
            format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}", mesh_kube::escape(&object.name));
        loop {
            let there = mesh.get(&path).await?.unwrap_or_default();
            let conditions = there.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
            if conditions.clone().any(|one| one["type"] == "Established" && one["status"] == "True") {
                break;
            }
            if mesh.left() < LOOK {
                let refused: Vec<&str> = conditions
                    .filter(|one| one["status"] == "False")
                    .filter_map(|one| one["message"].as_str())
                    .collect();
                return Err(Failure::refused(
                    format!("{object} is not established: {}", refused.join("; ")),
                    "see kubectl describe crd",
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Until every workload of the manifest is rolled out.
async fn rolled_out(mesh: &Mesh, objects: &[Object]) -> Result<(), Failure> {
    let mut told: BTreeMap<String, Rollout> = BTreeMap::new();
    let mut resources = Resources::default();
    loop {
        let mut unfinished = Vec::new();
        for object in objects.iter().filter(|object| object.stage() == Stage::Workload) {
            let Some(resource) = resources.of(mesh, object).await? else { continue };
            let there = mesh.get(&path(object, &resource)).await?.unwrap_or_default();
            let rollout = Rollout::of(&there);
            if rollout.is_observed && told.insert(object.to_string(), rollout) != Some(rollout) {
                print::tell(format_args!(
                    "{object}: {} of {} ready, {} of this version",
                    rollout.ready, rollout.desired, rollout.updated
                ));
            }
            if !rollout.is_done() {
                unfinished.push(object.to_string());
            }
        }
        if unfinished.is_empty() {
            return Ok(());
        }
        if mesh.left() < LOOK {
            let held: Vec<String> = mesh.pods(Some(NAMESPACE), "").await?.iter().filter_map(holdup).take(5).collect();
            return Err(Failure::refused(
                format!("not rolled out in time: {}; {}", unfinished.join(", "), held.join("; ")),
                "everything is applied; see culvert status, culvert logs COMPONENT [--previous]; repeat when the cause is gone",
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests;

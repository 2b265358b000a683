//! The manifest: its objects, in the order in which they are applied and taken away.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use mesh_api::manifests::read_yaml;
use serde_json::Value;

use crate::failure::Failure;
use crate::names::{Component, NAMESPACE};

/// The manifests that this binary was built with; none where they had not been rendered.
const BUILT_IN: &[&str] = include!(concat!(env!("OUT_DIR"), "/manifests.rs"));

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// As it is written.
    pub body: Value,
    /// Group and version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace, where it says one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// When an object is applied: each stage needs those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// What others are in.
    Namespace,
    /// What others are of.
    Definition,
    /// Accounts, permissions, admission, Services, …
    Rest,
    /// What makes pods, which need all of it.
    Workload,
}

impl Object {
    fn of(body: Value) -> Result<Self, String> {
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        let (Some(api_version), Some(kind), Some(name)) = (text("/apiVersion"), text("/kind"), text("/metadata/name"))
        else {
            return Err("an object without apiVersion, kind or metadata.name".to_owned());
        };
        let (api_version, kind, name) = (api_version.to_owned(), kind.to_owned(), name.to_owned());
        let namespace = text("/metadata/namespace").map(str::to_owned);
        Ok(Self { body, api_version, kind, namespace, name })
    }

    /// When it is applied.
    pub fn stage(&self) -> Stage {
        match self.kind.as_str() {
            "Namespace" => Stage::Namespace,
            "CustomResourceDefinition" => Stage::Definition,
            "DaemonSet" | "Deployment" | "Job" => Stage::Workload,
            _ => Stage::Rest,
        }
    }

    /// Whether it is the definition of a kind that another project owns, and Culvert only brings where it is absent.
    pub fn is_of_others(&self) -> bool {
        self.stage() == Stage::Definition && !self.name.ends_with(".culvert.io")
    }

    /// Where it goes in the order of taking away: pod-watcher first, which takes the chain entry and the pods' rules along; then the
    /// proxy that carried them, then its configuration; then what they needed, definitions, and the namespace with all that is left.
    fn leaves(&self) -> u8 {
        let is = |component: Component| {
            self.stage() == Stage::Workload
                && self.namespace.as_deref() == Some(NAMESPACE)
                && self.name == component.object().1
        };
        match self.stage() {
            _ if is(Component::PodWatcher) => 0,
            _ if is(Component::NodeProxy) => 1,
            Stage::Workload => 2,
            Stage::Rest => 3,
            Stage::Definition => 4,
            Stage::Namespace => 5,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// The given manifests, or the built-in ones, in the order of applying.
pub fn read(files: &[PathBuf]) -> Result<Vec<Object>, Failure> {
    let mut texts = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Failure::usage(format!("manifest {}: {error}", file.display()), "name a file that can be read")
        })?;
        texts.push((file.display().to_string(), text));
    }
    if files.is_empty() {
        texts.extend(BUILT_IN.iter().map(|text| ("the built-in manifest".to_owned(), (*text).to_owned())));
    }
    if texts.is_empty() {
        return Err(Failure::usage("this culvert was built without manifests", "name one: --manifest FILE"));
    }
    let mut objects = Vec::new();
    for (place, text) in &texts {
        let of_file = parse(text).map_err(|(line, error)| {
            let what = format!("{place}, line {line}: {error}");
            Failure::usage(what, "render the manifest anew; nothing was sent to the cluster")
        })?;
        objects.extend(of_file);
    }
    objects.sort_by_key(Object::stage);
    Ok(objects)
}

/// In the order of applying. One object that cannot be read refuses the whole: half a mesh is none.
fn parse(text: &str) -> Result<Vec<Object>, (usize, String)> {
    let objects: Result<Vec<Object>, String> = read_yaml(text)?.into_iter().map(Object::of).collect();
    let mut objects = objects.map_err(|error| (1, error))?;
    let mut names = BTreeSet::new();
    for object in &objects {
        if !names.insert(object.to_string()) {
            return Err((1, format!("{object} is there twice")));
        }
    }
    if objects.is_empty() {
        return Err((1, "there is no object in it".to_owned()));
    }
    objects.sort_by_key(Object::stage);
    Ok(objects)
}

/// In the order of taking away.
pub fn backwards(mut objects: Vec<Object>) -> Vec<Object> {
    objects.reverse();
    objects.sort_by_key(Object::leaves);
    objects
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A mesh in small.
    pub const SMALL: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: culvert-node-proxy, namespace: culvert-system, labels: {app.kubernetes.io/part-of: culvert}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: culvert-pod-watcher, namespace: culvert-system, labels: {app.kubernetes.io/part-of: culvert}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: culvert-control-plane, namespace: culvert-system, labels: {app.kubernetes.io/part-of: culvert}}
spec: {replicas: 1}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: pod-watcher, namespace: culvert-system}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: authorizationpolicies.security.istio.io, labels: {app.kubernetes.io/part-of: culvert}}
---
apiVersion: v1
kind: Namespace
metadata: {name: culvert-system}
";

    fn names(objects: &[Object]) -> Vec<&str> {
        objects.iter().map(|object| object.name.as_str()).collect()
    }

    #[test]
    fn what_others_need_is_applied_first_and_the_chain_entry_s_owner_leaves_first() {
        let objects = parse(SMALL).expect("a manifest");
        let forth = [
            "culvert-system",
            "authorizationpolicies.security.istio.io",
            "pod-watcher",
            "culvert-node-proxy",
            "culvert-pod-watcher",
            "culvert-control-plane",
        ];
        assert_eq!(names(&objects), forth);
        let back = [
            "culvert-pod-watcher",
            "culvert-node-proxy",
            "culvert-control-plane",
            "pod-watcher",
            "authorizationpolicies.security.istio.io",
            "culvert-system",
        ];
        assert_eq!(names(&backwards(objects)), back);
    }

    #[test]
    fn a_manifest_with_a_fault_is_refused_whole_and_the_fault_has_a_line() {
        let fault = |text: &str| parse(text).expect_err("a fault");
        assert_eq!(fault("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\na: [\n").0, 5);
        assert!(fault("kind: Pod\n").1.contains("without apiVersion"));
        assert!(fault("").1.contains("no object"));
        let twice = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
        assert!(fault(&format!("{twice}---\n{twice}")).1.contains("Pod a is there twice"));
    }

    #[test]
    fn a_built_in_manifest_is_a_sound_one() {
        let objects = read(&[]).expect("the built-in manifests");
        for component in Component::ALL {
            assert!(names(&objects).contains(&component.object().1), "{component:?} is not in the built-in manifests");
        }
        assert_eq!(objects.iter().filter(|object| object.is_of_others()).count(), 2, "definitions of policies");
    }
}

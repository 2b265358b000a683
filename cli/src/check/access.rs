//! Whether this account may do what an install does, and what culvert's questions need: SelfSubjectAccessReview for each.

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mesh_kube::Method;
use serde_json::{Value, json};

use super::{Finding, install};
use crate::failure::Failure;
use crate::mesh::Mesh;
use crate::names::NAMESPACE;

/// One permission.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    verb: &'static str,
    group: String,
    /// With its subresource: `pods/exec`.
    resource: String,
    /// `None`: in all namespaces, or in none.
    namespace: Option<String>,
}

/// Questions at a time.
const AT_A_TIME: usize = 8;

/// Asks for those of an install (`pre`), or for those of culvert's own questions.
pub async fn ask(mesh: &Mesh, pre: bool, manifests: &[PathBuf]) -> Result<Vec<Finding>, Failure> {
    let needed = match pre {
        true => of_manifests(mesh, manifests).await?,
        false => of_questions(),
    };
    let asked = stream::iter(needed).map(|permission| async move {
        let attributes = permission.attributes();
        let review = json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {"resourceAttributes": attributes}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = mesh.api.write(Method::Post, path, &review).await;
        answer.map(|answer| (permission, answer)).map_err(|error| Failure::of("ask for permissions", &error))
    });
    let answers: Vec<(Permission, Value)> = asked.buffered(AT_A_TIME).try_collect().await?;
    Ok(judge(&answers))
}

fn judge(answers: &[(Permission, Value)]) -> Vec<Finding> {
    let refused = answers.iter().filter(|(_, answer)| answer["status"]["allowed"] != true);
    let findings: Vec<Finding> = refused
        .map(|(permission, answer)| {
            let why = answer["status"]["reason"]
                .as_str()
                .filter(|why| !why.is_empty())
                .map(|why| format!(" ({why})"))
                .unwrap_or_default();
            let place = permission
                .namespace
                .as_deref()
                .map(|namespace| format!(" in namespace {namespace}"))
                .unwrap_or_default();
            let group = if permission.group.is_empty() { String::new() } else { format!(".{}", permission.group) };
            let what = format!("may not {} {}{group}{place}{why}", permission.verb, permission.resource);
            Finding::failed("your account", what, "ask an administrator of the cluster, or use another --context")
        })
        .collect();
    match findings.is_empty() {
        true => vec![Finding::fine("your account", format!("has the {} permissions that are needed", answers.len()))],
        false => findings,
    }
}

impl Permission {
    fn attributes(&self) -> Value {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((&self.resource, ""));
        json!({
            "verb": self.verb, "group": self.group, "resource": resource, "subresource": subresource,
            "namespace": self.namespace.as_deref().unwrap_or_default(),
        })
    }
}

/// Server-side apply patches what is there and makes what is not.
fn to_apply(group: &str, resource: &str, namespace: Option<&str>) -> [Permission; 2] {
    ["create", "patch"].map(|verb| Permission {
        verb,
        group: group.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.map(str::to_owned),
    })
}

async fn of_manifests(mesh: &Mesh, manifests: &[PathBuf]) -> Result<BTreeSet<Permission>, Failure> {
    let mut resources = install::Resources::default();
    let mut needed = BTreeSet::new();
    for object in install::read(manifests)? {
        // A kind that the manifest itself defines is not there yet.
        if let Some(resource) = resources.of(mesh, &object).await? {
            let namespace = resource.is_namespaced.then_some(object.namespace.as_deref()).flatten();
            needed.extend(to_apply(&resource.group, &resource.plural, namespace));
        }
    }
    Ok(needed)
}

fn of_questions() -> BTreeSet<Permission> {
    let one = |verb, resource: &str, namespace: Option<&str>| Permission {
        verb,
        group: String::new(),
        resource: resource.to_owned(),
        namespace: namespace.map(str::to_owned),
    };
    [
        one("list", "pods", None),
        one("list", "namespaces", None),
        one("list", "nodes", None),
        one("create", "pods/exec", Some(NAMESPACE)),
        one("get", "pods/log", Some(NAMESPACE)),
    ]
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn each_permission_that_is_refused_is_named_as_rbac_names_it() {
        let answer = |allowed: bool| json!({"status": {"allowed": allowed, "reason": "no role"}});
        let all: Vec<(Permission, Value)> = of_questions().into_iter().map(|one| (one, answer(true))).collect();
        assert_eq!(judge(&all).iter().map(|one| one.level).collect::<Vec<_>>(), [Level::Fine]);
        let [create, _] = to_apply("apps", "daemonsets", Some(NAMESPACE));
        let found = judge(&[(create, answer(false))]);
        assert_eq!(found[0].says, "may not create daemonsets.apps in namespace culvert-system (no role)");
        // An answer that makes no sense is no permission.
        let [create, _] = to_apply("", "namespaces", None);
        assert_eq!(judge(&[(create, Value::Null)])[0].level, Level::Failed);
    }

    #[test]
    fn a_subresource_is_asked_for_as_one() {
        let exec = of_questions().into_iter().find(|one| one.resource == "pods/exec").expect("exec");
        let attributes = exec.attributes();
        assert_eq!((attributes["resource"].as_str(), attributes["subresource"].as_str()), (Some("pods"), Some("exec")));
    }
}

//! The requests: what the API server knows of the mesh and of the pods in it. Every request has a deadline; what is decided on the
//! answers is decided elsewhere.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_api::manifests::{Namespace, OTHER_KERNELS, Outside, Pod};
use mesh_kube::tool::Reach;
use mesh_kube::{Api, escape};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::args::Common;
use crate::failure::Failure;
use crate::names::{Component, NAMESPACE, OURS};

/// A cluster, for the time of one verb.
pub struct Mesh {
    /// Its API server.
    pub api: Api,
    /// The namespace of pods that are named without one.
    pub namespace: String,
    until: Instant,
}

impl Mesh {
    /// By the command line. Nothing is sent yet.
    pub async fn connect(common: &Common, patience: Duration) -> Result<Self, Failure> {
        let reach = Reach { kubeconfig: common.kubeconfig.clone(), context: common.context.clone() };
        let (api, of_context) = Api::reach(&reach).await.map_err(|error| {
            Failure::usage(error.to_string(), "name a kubeconfig (--kubeconfig, KUBECONFIG) and a --context that is in it: kubectl config get-contexts")
        })?;
        let namespace = common.namespace.clone().unwrap_or(of_context);
        Ok(Self { api, namespace, until: Instant::now() + patience })
    }

    /// Less patience from here on.
    #[cfg(test)]
    pub fn shorten(&mut self, patience: Duration) {
        self.until = Instant::now() + patience;
    }

    /// What is left of the verb's time.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// All of a collection.
    pub async fn list(&self, path: &str, query: &str) -> Result<Vec<Value>, Failure> {
        let plural = path.rsplit('/').next().unwrap_or(path);
        self.api.list(path, query).await.map_err(|error| Failure::of(format!("list {plural}"), &error))
    }

    /// An object, if there is one.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, Failure> {
        self.api.get(path).await.map_err(|error| Failure::of(format!("read {path}"), &error))
    }

    /// Pods; of one namespace, or all; `query` selects.
    pub async fn pods(&self, namespace: Option<&str>, query: &str) -> Result<Vec<Pod>, Failure> {
        let path = match namespace {
            Some(namespace) => format!("/api/v1/namespaces/{}/pods", escape(namespace)),
            None => "/api/v1/pods".to_owned(),
        };
        Ok(typed(self.list(&path, query).await?))
    }

    /// The mesh's own pods.
    pub async fn own_pods(&self) -> Result<Vec<Pod>, Failure> {
        self.pods(Some(NAMESPACE), OURS).await
    }

    /// Namespaces by name.
    pub async fn namespaces(&self) -> Result<BTreeMap<String, Namespace>, Failure> {
        let all: Vec<Namespace> = typed(self.list("/api/v1/namespaces", "").await?);
        Ok(all.into_iter().filter_map(|one| Some((one.metadata.name.clone()?, one))).collect())
    }

    /// The objects that make the mesh's pods, where they are there.
    pub async fn components(&self) -> Result<BTreeMap<Component, Value>, Failure> {
        let mut found = BTreeMap::new();
        for component in Component::ALL {
            if let Some(object) = self.get(&path_of(component)).await? {
                found.insert(component, object);
            }
        }
        Ok(found)
    }
}

/// Where the object is that makes the pods of a component.
pub fn path_of(component: Component) -> String {
    let (resource, name) = component.object();
    format!("/apis/apps/v1/namespaces/{NAMESPACE}/{resource}/{name}")
}

/// Objects as their type. One that cannot be read is left out: it is none that Culvert could use either.
pub fn typed<T: DeserializeOwned>(objects: Vec<Value>) -> Vec<T> {
    objects.into_iter().filter_map(|object| serde_json::from_value(object).ok()).collect()
}

/// What is never enrolled, as the pod-watcher of this cluster is told; its defaults where it is not told.
pub fn outside(pod_watcher: Option<&Value>) -> Outside {
    let containers = pod_watcher.and_then(|object| object.pointer("/spec/template/spec/containers"));
    let containers: &[Value] = containers.and_then(Value::as_array).map_or(&[], Vec::as_slice);
    let told = |flag: &str, variable: &str, default: &str| -> Vec<String> {
        let by_flag: Vec<&str> = containers.iter().flat_map(|container| flags(container, flag)).collect();
        let by_variable = containers.iter().flat_map(|container| container["env"].as_array().into_iter().flatten());
        let by_variable = by_variable.filter(|one| one["name"] == variable).find_map(|one| one["value"].as_str());
        // As its command line has it: flags before variables, names with commas between them.
        let values = if by_flag.is_empty() { vec![by_variable.unwrap_or(default)] } else { by_flag };
        let names = values.into_iter().flat_map(|value| value.split(','));
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let mut namespaces = told("--exclude-namespace", "CULVERT_EXCLUDE_NAMESPACES", "kube-system");
    namespaces.extend(told("--own-namespace", "CULVERT_OWN_NAMESPACE", NAMESPACE));
    Outside { namespaces, runtimes: told("--uncaptured-runtime", "CULVERT_UNCAPTURED_RUNTIMES", OTHER_KERNELS) }
}

/// The values of a flag of a container, `--flag=value` or `--flag value`.
fn flags<'a>(container: &'a Value, flag: &'a str) -> impl Iterator<Item = &'a str> {
    let words = || container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    words().zip(words().skip(1).chain([""])).filter_map(move |(word, next)| match word.strip_prefix(flag)? {
        "" => Some(next),
        rest => rest.strip_prefix('='),
    })
}

/// Namespace and name of a pod as the command line names it.
pub fn pod_of<'a>(text: &'a str, namespace: &'a str) -> (&'a str, &'a str) {
    text.split_once('/').unwrap_or((namespace, text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_never_enrolled_is_what_pod_watcher_is_told() {
        assert_eq!(outside(None).namespaces, ["kube-system", "culvert-system"]);
        assert_eq!(outside(None).runtimes, ["kata", "runsc", "gvisor"]);
        let env = json!([{"name": "CULVERT_EXCLUDE_NAMESPACES", "value": "kube-system,infra"}, {"name": "CULVERT_OWN_NAMESPACE", "value": "mesh"}]);
        let object =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "pod-watcher", "env": env.clone()}]}}}});
        assert_eq!(outside(Some(&object)).namespaces, ["kube-system", "infra", "mesh"]);
        let args = json!(["--exclude-namespace=a,b", "--exclude-namespace", "c", "--own-namespace=m", "--excluded"]);
        let object = json!({"spec": {"template": {"spec": {"containers": [{"args": args, "env": env}]}}}});
        assert_eq!(outside(Some(&object)).namespaces, ["a", "b", "c", "m"], "flags win");
        let args = json!(["--uncaptured-runtime="]);
        let object = json!({"spec": {"template": {"spec": {"containers": [{"args": args}]}}}});
        assert_eq!(outside(Some(&object)).runtimes, Vec::<String>::new(), "none");
    }

    #[test]
    fn a_pod_is_in_the_namespace_it_is_named_with() {
        assert_eq!(pod_of("shop/cart", "default"), ("shop", "cart"));
        assert_eq!(pod_of("cart", "default"), ("default", "cart"));
    }
}

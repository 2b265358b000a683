//! Where the objects of a kind are on this API server, as the server itself says it.

use std::collections::BTreeMap;

use mesh_kube::escape;
use serde_json::Value;

use super::manifest::Object;
use crate::failure::Failure;
use crate::mesh::Mesh;

/// What the server said of each group and version so far. `Null`: it has none of that name.
#[derive(Default)]
pub struct Resources(BTreeMap<String, Value>);

/// A kind, as requests name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the oldest.
    pub group: String,
    /// Its name in paths.
    pub plural: String,
    /// Whether its objects are in namespaces.
    pub is_namespaced: bool,
}

impl Resources {
    /// The kind of this object; `None` where the server does not have it (yet).
    pub async fn of(&mut self, mesh: &Mesh, object: &Object) -> Result<Option<Resource>, Failure> {
        if !self.0.contains_key(&object.api_version) {
            let said = mesh.get(&root(&object.api_version)).await?;
            self.0.insert(object.api_version.clone(), said.unwrap_or_default());
        }
        Ok(find(&self.0[&object.api_version], &object.api_version, &object.kind))
    }

    /// Definitions were added: what was said is old.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

/// Where an object is.
pub fn path(object: &Object, resource: &Resource) -> String {
    let root = root(&object.api_version);
    let name = escape(&object.name);
    match (resource.is_namespaced, object.namespace.as_deref()) {
        (true, namespace) => {
            format!("{root}/namespaces/{}/{}/{name}", escape(namespace.unwrap_or("default")), resource.plural)
        }
        (false, _) => format!("{root}/{}/{name}", resource.plural),
    }
}

fn root(api_version: &str) -> String {
    let escaped: Vec<String> = api_version.split('/').map(escape).collect();
    match api_version.contains('/') {
        true => format!("/apis/{}", escaped.join("/")),
        false => format!("/api/{}", escaped.join("/")),
    }
}

/// In an `APIResourceList`.
fn find(list: &Value, api_version: &str, kind: &str) -> Option<Resource> {
    let resources = list["resources"].as_array()?;
    // `pods/status` and the like are of their object's kind too.
    let found = resources
        .iter()
        .find(|one| one["kind"] == kind && one["name"].as_str().is_some_and(|name| !name.contains('/')))?;
    Some(Resource {
        group: api_version.split_once('/').map_or("", |(group, _)| group).to_owned(),
        plural: found["name"].as_str()?.to_owned(),
        is_namespaced: found["namespaced"] == true,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_kind_is_found_beside_its_subresources() {
        let list = json!({"resources": [
            {"name": "daemonsets/status", "kind": "DaemonSet", "namespaced": true},
            {"name": "daemonsets", "kind": "DaemonSet", "namespaced": true},
        ]});
        let resource = find(&list, "apps/v1", "DaemonSet").expect("found");
        assert_eq!(
            (resource.group.as_str(), resource.plural.as_str(), resource.is_namespaced),
            ("apps", "daemonsets", true)
        );
        assert_eq!(find(&list, "apps/v1", "Deployment"), None);
        assert_eq!(find(&Value::Null, "x/v1", "X"), None);
    }
}

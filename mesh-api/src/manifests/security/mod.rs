//! AuthorizationPolicy and PeerAuthentication of `security.istio.io` (v1, v1beta1), as people write them.
//!
//! The API server would check these against their CRDs and Istio's webhook; a file has neither, so both checks are here. A field that
//! is not known makes the policy invalid: passing over a condition of an ALLOW would allow more than was written. A policy that
//! cannot be used is kept as an [`Invalid`] one, for the control plane to turn into a refusal for those it selects.

mod check;
mod standing;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kind::ObjectRef;
use check::check_selector;
pub use standing::Standing;

/// Annotation that makes a policy a dry run.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    /// Name, namespace, annotations, time of creation.
    pub metadata: ObjectMeta,
    /// What it says, or why nobody can tell.
    pub spec: Result<AuthorizationSpec, Invalid>,
    /// Its latest version on the API server.
    pub standing: Standing,
}

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerAuthentication {
    /// Name, namespace, time of creation (the oldest wins).
    pub metadata: ObjectMeta,
    /// What it says, or why nobody can tell.
    pub spec: Result<PeerSpec, Invalid>,
    /// Its latest version on the API server.
    pub standing: Standing,
}

/// A policy that was identified and cannot be used: it refuses whatever it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong with it.
    pub why: String,
    /// Its selector, if that much could be read; `None`: everything in its namespace (in the root namespace: everything).
    pub selector: Option<WorkloadSelector>,
}

/// Which pods of the namespace; without labels, all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkloadSelector {
    /// All of these labels, exactly.
    pub match_labels: BTreeMap<String, String>,
}

/// `spec` of an AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizationSpec {
    /// Which pods.
    pub selector: Option<WorkloadSelector>,
    /// A gateway or service instead of pods; the older, single form.
    pub target_ref: Option<TargetRef>,
    /// Gateways or services instead of pods.
    pub target_refs: Vec<TargetRef>,
    /// What a match leads to.
    pub action: Action,
    /// Any of these matches; none: never.
    pub rules: Vec<Rule>,
    /// Who decides, for [`Action::Custom`].
    pub provider: Option<Provider>,
}

/// What a match of an AuthorizationPolicy leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// If any ALLOW policy applies, one must match.
    #[default]
    Allow,
    /// A match refuses.
    Deny,
    /// A match is recorded.
    Audit,
    /// An outside party decides.
    Custom,
}

/// An object that a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// API group; empty for the core.
    #[serde(default)]
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace; only the policy's own is allowed.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// Who decides on a CUSTOM policy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// Its name in the mesh's configuration.
    pub name: String,
}

/// One rule: any `from`, any `to` and every `when`; a list that is empty asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rule {
    /// Who calls.
    pub from: Vec<From>,
    /// What is called.
    pub to: Vec<To>,
    /// Further conditions.
    pub when: Vec<Condition>,
}

/// An entry of `from`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    /// The caller.
    pub source: Source,
}

/// An entry of `to`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To {
    /// What is called.
    pub operation: Operation,
}

/// A caller: every list that is not empty must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)] // The names are Istio's.
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// What is called: every list that is not empty must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)] // The names are Istio's.
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// A condition on an attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// The attribute, for example `source.namespace`.
    pub key: String,
    /// Any of these.
    #[serde(default)]
    pub values: Vec<String>,
    /// None of these.
    #[serde(default)]
    pub not_values: Vec<String>,
}

/// `spec` of a PeerAuthentication.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PeerSpec {
    /// Which pods.
    pub selector: Option<WorkloadSelector>,
    /// For all ports.
    pub mtls: Option<Mtls>,
    /// For single ports of the application.
    pub port_level_mtls: BTreeMap<u16, Mtls>,
}

/// Whether callers must be in the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mtls {
    /// The mode.
    pub mode: Mode,
}

/// The mode of a PeerAuthentication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// As the next wider one says.
    #[default]
    Unset,
    /// As PERMISSIVE: with a proxy on every node there is nothing to switch off.
    Disable,
    /// Plaintext is taken too.
    Permissive,
    /// Only callers of the mesh.
    Strict,
}

impl WorkloadSelector {
    /// Whether a pod with these labels is selected.
    pub fn selects(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    }
}

impl AuthorizationPolicy {
    /// Whether both are the same but for their versions and what stands at them.
    pub(super) fn says_the_same_as(&self, other: &Self) -> bool {
        self.spec == other.spec && same_but_for_versions(&self.metadata, &other.metadata)
    }

    pub(super) fn parse(value: Value, standing: Standing) -> Result<Self, String> {
        let (metadata, spec) = parts::<AuthorizationSpec>(value)?;
        spec.check()?;
        Ok(Self { metadata, spec: Ok(spec), standing })
    }

    pub(super) fn broken(object: &ObjectRef, value: Option<&Value>, why: &str) -> Self {
        let (metadata, invalid) = remains(object, value, why);
        Self { metadata, spec: Err(invalid), standing: value.map(Standing::of).unwrap_or_default() }
    }

    /// Judged and reported, not enforced (`istio.io/dry-run: "true"`).
    pub fn dry_run(&self) -> bool {
        self.metadata.annotations.as_ref().and_then(|all| all.get(DRY_RUN)).is_some_and(|value| value == "true")
    }

    /// Which pods, as far as can be told; `None`: all of the namespace.
    pub fn selector(&self) -> Option<&WorkloadSelector> {
        narrowing(match &self.spec {
            Ok(spec) => spec.selector.as_ref(),
            Err(invalid) => invalid.selector.as_ref(),
        })
    }
}

impl PeerAuthentication {
    /// Whether both are the same but for their versions and what stands at them.
    pub(super) fn says_the_same_as(&self, other: &Self) -> bool {
        self.spec == other.spec && same_but_for_versions(&self.metadata, &other.metadata)
    }

    pub(super) fn parse(value: Value, standing: Standing) -> Result<Self, String> {
        let (metadata, spec) = parts::<PeerSpec>(value)?;
        spec.check()?;
        Ok(Self { metadata, spec: Ok(spec), standing })
    }

    pub(super) fn broken(object: &ObjectRef, value: Option<&Value>, why: &str) -> Self {
        let (metadata, invalid) = remains(object, value, why);
        Self { metadata, spec: Err(invalid), standing: value.map(Standing::of).unwrap_or_default() }
    }

    /// Which pods, as far as can be told; `None`: all of the namespace.
    pub fn selector(&self) -> Option<&WorkloadSelector> {
        narrowing(match &self.spec {
            Ok(spec) => spec.selector.as_ref(),
            Err(invalid) => invalid.selector.as_ref(),
        })
    }
}

fn same_but_for_versions(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    *one == ObjectMeta { resource_version: one.resource_version.clone(), ..other.clone() }
}

fn narrowing(selector: Option<&WorkloadSelector>) -> Option<&WorkloadSelector> {
    selector.filter(|selector| !selector.match_labels.is_empty())
}

fn parts<S: DeserializeOwned + Default>(value: Value) -> Result<(ObjectMeta, S), String> {
    let Value::Object(mut object) = value else { return Err("not an object".to_owned()) };
    let metadata = match object.remove("metadata") {
        Some(metadata) => serde_json::from_value(metadata).map_err(|error| format!("metadata: {error}"))?,
        None => ObjectMeta::default(),
    };
    let spec = match object.remove("spec") {
        Some(spec) => {
            let read = serde_path_to_error::deserialize(&spec).map_err(|error| placed(&error))?;
            if let Some(place) = list_for_an_object("spec", &spec) {
                return Err(format!("{place}: a list where an object belongs"));
            }
            read
        }
        // Kubernetes takes a missing spec as an empty one, which means something: allow nothing.
        None => S::default(),
    };
    // What is not known beside the spec may be the spec, misspelt.
    match object.keys().find(|key| !matches!(key.as_str(), "apiVersion" | "kind" | "status")) {
        Some(stray) => Err(format!("unknown field `{stray}` beside metadata and spec")),
        None => Ok((metadata, spec)),
    }
}

/// Where a list stands in place of an object. Types take one for their fields in order, so that a rule `[]` would be one that asks for
/// nothing. What holds lists here are lists of texts or of objects, under names that end in `s` or are `from`, `to` and `when`.
fn list_for_an_object(place: &str, value: &Value) -> Option<String> {
    match value {
        Value::Object(fields) => {
            fields.iter().find_map(|(name, field)| list_for_an_object(&format!("{place}.{name}"), field))
        }
        Value::Array(items) => {
            let name = place.rsplit('.').next().unwrap_or_default();
            let holds_lists = matches!(name, "from" | "to" | "when") || (name.ends_with('s') && name != "mtls");
            if !holds_lists {
                return Some(place.to_owned());
            }
            let mut items = items.iter().enumerate();
            items.find_map(|(index, item)| list_for_an_object(&format!("{place}[{index}]"), item))
        }
        _ => None,
    }
}

/// The place in the document, then what is wrong there.
fn placed(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    match error.path().to_string().as_str() {
        "." => format!("spec: {}", error.inner()),
        path => format!("spec.{path}: {}", error.inner()),
    }
}

/// What can still be read of a broken policy.
fn remains(object: &ObjectRef, value: Option<&Value>, why: &str) -> (ObjectMeta, Invalid) {
    let read = value.and_then(|value| value.get("metadata")).cloned();
    let metadata: ObjectMeta = read.and_then(|metadata| serde_json::from_value(metadata).ok()).unwrap_or_default();
    let metadata =
        ObjectMeta { name: Some(object.name.clone()), namespace: Some(object.namespace.clone()), ..metadata };
    let selector = value.and_then(|value| value.get("spec")?.get("selector")).cloned();
    let selector = selector.and_then(|selector| serde_json::from_value::<WorkloadSelector>(selector).ok());
    // A selector that nobody could have meant narrows nothing.
    let selector = selector.filter(|selector| check_selector(Some(selector)).is_ok());
    (metadata, Invalid { why: why.to_owned(), selector })
}

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;

//! AuthorizationPolicy and PeerAuthentication of `security.istio.io` (v1, v1beta1), as people write them.
//!
//! The API server would check these against their CRDs and Istio's webhook; a file has neither, so both checks are here. A field that
//! is not known makes the policy invalid: passing over a condition of an ALLOW would allow more than was written. A policy that
//! cannot be used is kept as an [`Invalid`] one, for the control plane to turn into a refusal for those it selects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_model::policy::parse_address_block;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kind::ObjectRef;

/// Annotation that makes a policy a dry run.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    /// Name, namespace, annotations, time of creation.
    pub metadata: ObjectMeta,
    /// What it says, or why nobody can tell.
    pub spec: Result<AuthorizationSpec, Invalid>,
}

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerAuthentication {
    /// Name, namespace, time of creation (the oldest wins).
    pub metadata: ObjectMeta,
    /// What it says, or why nobody can tell.
    pub spec: Result<PeerSpec, Invalid>,
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
    pub(super) fn parse(value: Value) -> Result<Self, String> {
        let (metadata, spec) = parts::<AuthorizationSpec>(value)?;
        spec.check()?;
        Ok(Self { metadata, spec: Ok(spec) })
    }

    pub(super) fn broken(object: &ObjectRef, value: Option<&Value>, why: &str) -> Self {
        let (metadata, invalid) = remains(object, value, why);
        Self { metadata, spec: Err(invalid) }
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
    pub(super) fn parse(value: Value) -> Result<Self, String> {
        let (metadata, spec) = parts::<PeerSpec>(value)?;
        spec.check()?;
        Ok(Self { metadata, spec: Ok(spec) })
    }

    pub(super) fn broken(object: &ObjectRef, value: Option<&Value>, why: &str) -> Self {
        let (metadata, invalid) = remains(object, value, why);
        Self { metadata, spec: Err(invalid) }
    }

    /// Which pods, as far as can be told; `None`: all of the namespace.
    pub fn selector(&self) -> Option<&WorkloadSelector> {
        narrowing(match &self.spec {
            Ok(spec) => spec.selector.as_ref(),
            Err(invalid) => invalid.selector.as_ref(),
        })
    }
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
        Some(spec) => serde_json::from_value(spec).map_err(|error| format!("spec: {error}"))?,
        // Kubernetes takes a missing spec as an empty one, which means something: allow nothing.
        None => S::default(),
    };
    // What is not known beside the spec may be the spec, misspelt.
    match object.keys().find(|key| !matches!(key.as_str(), "apiVersion" | "kind" | "status")) {
        Some(stray) => Err(format!("unknown field `{stray}` beside metadata and spec")),
        None => Ok((metadata, spec)),
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

// What Istio's webhook refuses, as far as it bears on what is allowed.

impl AuthorizationSpec {
    fn check(&self) -> Result<(), String> {
        check_selector(self.selector.as_ref())?;
        let targets = self.target_refs.iter().chain(&self.target_ref).count();
        if targets > 0 && self.selector.is_some() {
            return Err("spec: selector and targetRefs exclude each other".to_owned());
        }
        match (self.action, &self.provider) {
            (Action::Custom, None) => return Err("spec.provider: needed by action CUSTOM".to_owned()),
            (Action::Custom, Some(_)) | (_, None) => {}
            (_, Some(_)) => return Err("spec.provider: only for action CUSTOM".to_owned()),
        }
        for (index, rule) in self.rules.iter().enumerate() {
            rule.check().map_err(|error| format!("spec.rules[{index}].{error}"))?;
        }
        Ok(())
    }
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        for (index, from) in self.from.iter().enumerate() {
            from.source.check().map_err(|error| format!("from[{index}].source{error}"))?;
        }
        for (index, to) in self.to.iter().enumerate() {
            to.operation.check().map_err(|error| format!("to[{index}].operation{error}"))?;
        }
        for (index, condition) in self.when.iter().enumerate() {
            condition.check().map_err(|error| format!("when[{index}]{error}"))?;
        }
        Ok(())
    }
}

impl Source {
    fn check(&self) -> Result<(), String> {
        if *self == Self::default() {
            // In a DENY it would deny nobody.
            return Err(": names nothing".to_owned());
        }
        let Self {
            principals,
            not_principals,
            request_principals,
            not_request_principals,
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            ip_blocks,
            not_ip_blocks,
            remote_ip_blocks,
            not_remote_ip_blocks,
        } = self;
        for (name, list) in [
            ("principals", principals),
            ("notPrincipals", not_principals),
            ("requestPrincipals", request_principals),
            ("notRequestPrincipals", not_request_principals),
            ("namespaces", namespaces),
            ("notNamespaces", not_namespaces),
        ] {
            all(name, list, text)?;
        }
        all("serviceAccounts", service_accounts, service_account)?;
        all("notServiceAccounts", not_service_accounts, service_account)?;
        if !(service_accounts.is_empty() && not_service_accounts.is_empty())
            && !(principals.is_empty()
                && not_principals.is_empty()
                && namespaces.is_empty()
                && not_namespaces.is_empty())
        {
            return Err(": serviceAccounts exclude principals and namespaces".to_owned());
        }
        all("ipBlocks", ip_blocks, block)?;
        all("notIpBlocks", not_ip_blocks, block)?;
        all("remoteIpBlocks", remote_ip_blocks, block)?;
        all("notRemoteIpBlocks", not_remote_ip_blocks, block)
    }
}

impl Operation {
    fn check(&self) -> Result<(), String> {
        if *self == Self::default() {
            return Err(": names nothing".to_owned());
        }
        let Self { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths } = self;
        for (name, list) in [
            ("hosts", hosts),
            ("notHosts", not_hosts),
            ("methods", methods),
            ("notMethods", not_methods),
            ("paths", paths),
            ("notPaths", not_paths),
        ] {
            all(name, list, text)?;
        }
        all("ports", ports, port)?;
        all("notPorts", not_ports, port)
    }
}

impl Condition {
    fn check(&self) -> Result<(), String> {
        let Self { key, values, not_values } = self;
        if values.is_empty() && not_values.is_empty() {
            return Err(": neither values nor notValues".to_owned());
        }
        let form: fn(&str) -> bool = match key.as_str() {
            "source.ip" | "remote.ip" | "destination.ip" => block,
            "destination.port" => port,
            "source.namespace" | "source.principal" | "connection.sni" => text,
            "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter" => text,
            _ if ["request.headers[", "request.auth.claims["].iter().any(|start| key.starts_with(start))
                && key.ends_with(']') =>
            {
                text
            }
            _ => return Err(format!(".key: {key:?} is not an attribute that policies can ask for")),
        };
        all("values", values, form)?;
        all("notValues", not_values, form)
    }
}

impl PeerSpec {
    fn check(&self) -> Result<(), String> {
        check_selector(self.selector.as_ref())?;
        if self.port_level_mtls.contains_key(&0) {
            return Err("spec.portLevelMtls: 0 is not a port".to_owned());
        }
        if !self.port_level_mtls.is_empty() && narrowing(self.selector.as_ref()).is_none() {
            return Err("spec.portLevelMtls: needs a selector with labels".to_owned());
        }
        Ok(())
    }
}

fn check_selector(selector: Option<&WorkloadSelector>) -> Result<(), String> {
    // Istio: labels are compared exactly, so a star would select nothing, which cannot be meant.
    let strange = |(key, value): (&String, &String)| key.is_empty() || key.contains('*') || value.contains('*');
    match selector.is_some_and(|selector| selector.match_labels.iter().any(strange)) {
        true => Err("spec.selector.matchLabels: empty keys and wildcards are not allowed".to_owned()),
        false => Ok(()),
    }
}

fn all(name: &str, list: &[String], form: fn(&str) -> bool) -> Result<(), String> {
    match list.iter().find(|text| !form(text)) {
        Some(bad) => {
            Err(format!(".{name}: {:?} is not of the form that it takes", bad.chars().take(80).collect::<String>()))
        }
        None => Ok(()),
    }
}

fn text(text: &str) -> bool {
    !text.is_empty()
}

fn block(text: &str) -> bool {
    parse_address_block(text).is_ok()
}

fn port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// `account` of the policy's own namespace, or `namespace/account`.
fn service_account(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|part| !part.is_empty() && !part.contains('*'))
}

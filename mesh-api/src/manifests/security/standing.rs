//! What the API server has of a policy besides what the policy says: which version it is and what conditions stand at it. Nothing is
//! decided by it; it is what a status is compared with and written against.

use serde_json::Value;

/// The latest version of a policy that was heard of; empty for one that was read from a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// `metadata.generation`: counts changes of what the policy says.
    pub generation: Option<i64>,
    /// `metadata.resourceVersion`: a write against it is refused if the object has changed since.
    pub version: Option<String>,
    /// `status.conditions`, whoever wrote them and whatever they are.
    pub conditions: Vec<Value>,
    /// Why this version cannot be understood, where the one before it could and is still what the mesh knows.
    pub unread: Option<String>,
}

impl Standing {
    pub(in crate::manifests) fn of(value: &Value) -> Self {
        Self {
            generation: value.pointer("/metadata/generation").and_then(Value::as_i64),
            version: value.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned),
            conditions: value.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default(),
            unread: None,
        }
    }
}

//! The condition `culvert.io/Accepted` of each policy: whether it is carried out as written, and in plain words what happens.
//!
//! It is compared with what the API server has, not with what we remember: so a second control plane that takes over finds nothing to
//! do, and what a stranger puts in place of ours is put right.

use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::security::Standing;
use mesh_api::manifests::{Kind, ObjectRef, Objects};
use serde_json::{Map, Value, json};

use crate::compile::Told;

/// The condition's type.
const CONDITION: &str = "culvert.io/Accepted";
/// Kubernetes' own conditions may be 32 KiB long; a person reads the start. A place in a document and what happens are some 300.
const MESSAGE: usize = 1024;
/// Of strangers' conditions at one policy so many are kept when ours is written. Istio writes two.
const OTHERS: usize = 32;

/// A condition that is not as it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// At this policy.
    pub object: ObjectRef,
    /// As of this version of it; the write is refused if it has changed since.
    pub version: String,
    /// More than numbers in the message differ: it is not to wait.
    pub urgent: bool,
    /// Ours, without the time of its last transition.
    condition: Map<String, Value>,
    /// That time, where it stays.
    since: Option<String>,
    /// Whatever others wrote.
    others: Vec<Value>,
}

/// The conditions that have to be written.
pub(super) fn needed<'a>(
    objects: &'a Objects,
    told: impl Iterator<Item = &'a Told>,
    now: Timestamp,
) -> impl Iterator<Item = Condition> {
    told.filter_map(move |told| Condition::of(told, standing(objects, &told.object)?, now))
}

fn standing<'a>(objects: &'a Objects, object: &ObjectRef) -> Option<&'a Standing> {
    let key = (object.namespace.clone(), object.name.clone());
    match object.kind {
        Kind::AuthorizationPolicy => objects.authorization_policies.get(&key).map(|policy| &policy.standing),
        Kind::PeerAuthentication => objects.peer_authentications.get(&key).map(|policy| &policy.standing),
        _ => None,
    }
}

impl Condition {
    /// `None`: what stands there is right.
    fn of(told: &Told, standing: &Standing, now: Timestamp) -> Option<Self> {
        let mut condition = Map::new();
        let mut put = |name: &str, value: Value| condition.insert(name.to_owned(), value);
        put("type", CONDITION.into());
        put("status", if told.outcome.is_as_written() { "True" } else { "False" }.into());
        put("reason", told.outcome.as_str().into());
        put("message", told.message.chars().take(MESSAGE).collect::<String>().into());
        if let Some(generation) = standing.generation {
            put("observedGeneration", generation.into());
        }
        let (ours, others): (Vec<&Value>, Vec<&Value>) =
            standing.conditions.iter().partition(|one| one.get("type").is_some_and(|kind| kind == CONDITION));
        let stands = ours.first().and_then(|one| one.as_object());
        let same = |name: &str| stands.and_then(|one| one.get(name)) == condition.get(name);
        // A time that is none, or is not yet, was not written by us.
        let since = stands.and_then(|one| one.get("lastTransitionTime")?.as_str());
        let since = since.filter(|text| text.parse::<Timestamp>().is_ok_and(|time| time <= now));
        let names = ["type", "status", "reason", "observedGeneration"];
        let in_form = ours.len() == 1
            && since.is_some()
            && names.iter().all(|name| same(name))
            && stands.is_some_and(|one| one.len() == condition.len() + 1);
        if in_form && same("message") {
            return None;
        }
        Some(Self {
            object: told.object.clone(),
            version: standing.version.clone()?,
            urgent: !in_form,
            since: since.filter(|_| same("status")).map(str::to_owned),
            condition,
            others: others.into_iter().take(OTHERS).cloned().collect(),
        })
    }

    /// The merge patch of the object's `status`: a list is replaced whole, hence with what others wrote.
    pub fn patch(&self, now: Timestamp) -> Value {
        let mut ours = self.condition.clone();
        let since = self.since.clone().unwrap_or_else(|| format!("{now:.0}"));
        ours.insert("lastTransitionTime".to_owned(), since.into());
        let conditions: Vec<Value> = self.others.iter().cloned().chain([Value::Object(ours)]).collect();
        json!({"metadata": {"resourceVersion": self.version}, "status": {"conditions": conditions}})
    }
}

#[cfg(test)]
mod tests;

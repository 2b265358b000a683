//! What is told of objects in the API server: of each policy in a [`condition`], of anything else that is not carried out as written in
//! an [`event`]. These files decide what has to be written, [`writer`] writes it. It decides nothing: a policy is in force without it.

mod condition;
mod event;
pub mod writer;

use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::{ObjectRef, Objects, Rejected};

use crate::compile::Compiler;

pub use condition::Condition;
pub use event::Event;

/// Something that has to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Needed {
    /// At a policy.
    Condition(Condition),
    /// About anything else.
    Event(Event),
}

impl Needed {
    /// What it is told of.
    pub fn object(&self) -> &ObjectRef {
        match self {
            Self::Condition(condition) => &condition.object,
            Self::Event(event) => &event.object,
        }
    }

    /// What it answers to: the version of the policy, or the text itself. For the same one it is written once.
    pub fn cause(&self) -> &str {
        match self {
            Self::Condition(condition) => &condition.version,
            Self::Event(event) => &event.note,
        }
    }

    /// Whether it may not wait for the object's last one to be a while ago.
    pub fn is_urgent(&self) -> bool {
        matches!(self, Self::Condition(condition) if condition.urgent)
    }
}

/// What has to be written: at most one thing of each object, in the order of kinds and names.
pub fn needed(objects: &Objects, rejected: &[Rejected], compiled: &Compiler, now: Timestamp) -> Vec<Needed> {
    let conditions = condition::needed(objects, compiled.told(), now).map(Needed::Condition);
    let mut needed: Vec<Needed> = conditions.chain(event::needed(rejected, compiled.problems())).collect();
    needed.sort_by(|a, b| a.object().cmp(b.object()));
    needed
}

//! The verdict. Pure: the same policies and facts always give the same answer.

use super::matching::Subject;
use super::{Action, Policy, PolicyKey};
use crate::{ClientAddr, Identity, Mesh, OrigDst, Reason, Workload};

/// What is known of a connection when it is judged at its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The proven identity of the caller; `None` for plaintext from outside the mesh.
    pub source: Option<Identity>,
    /// Where the connection comes from.
    pub client: ClientAddr,
    /// The pod address and application port that was asked for.
    pub destination: OrigDst,
}

/// Proof that a connection was judged and allowed. Only [`judge`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    facts: Facts,
    policy: Option<PolicyKey>,
}

impl Permit {
    /// The facts that were judged.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The ALLOW policy that matched; `None` when no ALLOW policy applies.
    pub fn policy(&self) -> Option<&PolicyKey> {
        self.policy.as_ref()
    }
}

/// A refusal by policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A DENY policy matched, or the named ALLOW policies did not (then one of them is named).
    #[error("denied by policy {0}")]
    ByPolicy(PolicyKey),
    /// The workload lists a policy that has not arrived.
    #[error("policy {0} is listed and has not arrived")]
    PolicyMissing(PolicyKey),
    /// A policy that applies could not be understood.
    #[error("policy {0} could not be parsed")]
    PolicyInvalid(PolicyKey),
    /// The destination workload is not known yet.
    #[error("the destination workload is not known yet")]
    WorkloadUnknown,
    /// What is known is a configuration of the past that is too old to let anybody in ([`Mesh::set_outdated`]).
    #[error("the configuration is older than it may be and was not confirmed since")]
    Outdated,
}

impl Denied {
    /// The reason for metric, log and wire.
    pub fn reason(&self) -> Reason {
        match self {
            Denied::ByPolicy(_) | Denied::PolicyInvalid(_) => Reason::PolicyDenied,
            Denied::PolicyMissing(_) | Denied::WorkloadUnknown | Denied::Outdated => Reason::PolicyUnknown,
        }
    }

    /// The policy that said no, where one did.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Denied::ByPolicy(key) | Denied::PolicyMissing(key) | Denied::PolicyInvalid(key) => Some(key),
            Denied::WorkloadUnknown | Denied::Outdated => None,
        }
    }
}

/// Judges a connection to `workload`. `None` for a workload that no record describes yet: refused.
///
/// Order: a mesh that is outdated refuses; an invalid or missing applicable policy refuses; any enforced DENY match refuses; no enforced ALLOW policy allows;
/// any ALLOW match allows; else refused, naming the first ALLOW policy by key order. A dry-run policy decides nothing
/// ([`rehearse`] tells what it would have); a dry-run policy that is listed and missing refuses, since nobody can know that it is one.
pub fn judge(mesh: &Mesh, workload: Option<&Workload>, facts: Facts) -> Result<Permit, Denied> {
    if mesh.is_outdated() {
        return Err(Denied::Outdated);
    }
    let Some(workload) = workload else { return Err(Denied::WorkloadUnknown) };
    let policies = mesh.policies_for(workload).map_err(Denied::PolicyMissing)?;
    let enforced = || policies.iter().filter(|policy| !policy.dry_run);
    if let Some(invalid) = enforced().find(|policy| policy.invalid) {
        return Err(Denied::PolicyInvalid(invalid.key.clone()));
    }
    let subject = Subject::new(&facts, mesh.trust_domains());
    let mut denying = enforced().filter(|policy| policy.action == Action::Deny);
    if let Some(policy) = denying.find(|policy| subject.matches(policy)) {
        return Err(Denied::ByPolicy(policy.key.clone()));
    }
    let mut allowing = enforced().filter(|policy| policy.action == Action::Allow).peekable();
    let Some(first) = allowing.peek().map(|policy| policy.key.clone()) else {
        return Ok(Permit { facts, policy: None });
    };
    match allowing.find(|policy| subject.matches(policy)).map(|policy| policy.key.clone()) {
        Some(key) => Ok(Permit { facts, policy: Some(key) }),
        None => Err(Denied::ByPolicy(first)),
    }
}

/// What the dry-run policies would have done: those that would have refused this connection if they were enforced, in key order.
/// A dry-run DENY refuses by matching; a dry-run ALLOW by not matching where no other ALLOW, enforced or not, matches either; an
/// invalid one refuses always.
pub fn rehearse(mesh: &Mesh, workload: &Workload, facts: &Facts) -> Vec<PolicyKey> {
    // Missing policies are `judge`'s to refuse.
    let Ok(policies) = mesh.policies_for(workload) else { return Vec::new() };
    if !policies.iter().any(|policy| policy.dry_run) {
        return Vec::new();
    }
    let subject = Subject::new(facts, mesh.trust_domains());
    let allowed =
        policies.iter().any(|policy| policy.action == Action::Allow && !policy.invalid && subject.matches(policy));
    let refuses = |policy: &Policy| match policy.action {
        _ if policy.invalid => true,
        Action::Deny => subject.matches(policy),
        Action::Allow => !allowed,
    };
    policies.iter().filter(|policy| policy.dry_run && refuses(policy)).map(|policy| policy.key.clone()).collect()
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

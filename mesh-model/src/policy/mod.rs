//! L4 authorization: policies, what they are judged by, and the verdict.
//!
//! Semantics are Istio's (`security.istio.io/v1` AuthorizationPolicy as compiled to `istio.security.Authorization`), with one
//! difference that only narrows: a listed policy that has not arrived refuses instead of being skipped.

mod block;
mod judge;
mod matching;
mod types;

pub use block::{BadBlock, address_block, block_parts, parse_address_block};
pub use judge::{Denied, Facts, Permit, judge, rehearse};
pub use types::{
    Action, AddressBlock, BadPolicyKey, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
};

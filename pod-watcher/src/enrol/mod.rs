//! Enrolment of one pod as a pure state machine: `step(state, event) -> (state, actions)`.
//!
//! ```text
//!            ADD                     deny written          a keeper acked        listeners read back       swap written
//!  Absent ───────► Denying ───────► Offered(Deny) ───────► Listening ───────────► Swapping ───────────────► Captured
//!     │  found running, no rules       ▲                                                                       │
//!     └────────► Offered(Open) ────────┘ (same steps, without the deny set)                      opted out     ▼
//!  Absent ◄── Parting ◄── Draining (keepers let go) ◄── Undoing (new connections let past first) ◄─────────────┘
//! ```
//!
//! No clock, no kernel, no socket: the rim (`node`) turns what happens into [`Event`]s and carries [`Action`]s out, in order. What
//! must hold for any order of events is tried in `tests`: no redirect before an ack and listeners read back, never a redirect left
//! without listeners when a pod opts out, every ADD answered exactly once, a running pod never denied.

mod event;
mod moves;
mod pod;
mod step;
#[cfg(test)]
mod tests;

pub use event::{Action, Delivered, Event, Failure, InForce, KeeperId, Observed, RequestId, Stage, Timer};
pub use pod::{Guard, Phase, Pod, Want};
pub use step::step;

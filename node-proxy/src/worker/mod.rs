//! The worker: every byte from the network. The module list, read from top to bottom, is the path of a byte.
//!
//! `Accepted → Identified → Authorized → Connected → copy`: each value is built only by its own module, so a byte that was not
//! judged cannot flow. The worker has no capability and makes sockets in no namespace but node-proxy's own.

pub mod link;

mod args;
mod start;

mod control;
mod pods;
mod threads;

mod accept;
mod caller;
mod lost;
mod orphans;
mod outbound;

mod inbound;
mod probe;

mod identify;

mod route;
mod sessions;

mod authorize;

mod baggage;
mod connect;
mod mint;

pub mod certs;
pub mod tunnel;

mod buffers;
mod connection;
mod copy;
mod end;
mod silence;
mod tcp;
#[cfg(feature = "testing")]
mod testing_delay;

mod live;

mod access_log;
mod admin;
mod metrics;
mod record;
pub mod xds;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use args::Args;
pub use start::{Starts, run};

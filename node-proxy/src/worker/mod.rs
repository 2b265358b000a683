//! The worker: every byte from the network. The module list, read from top to bottom, is the path of a byte.
//!
//! `Accepted → Identified → Authorized → Connected → copy`: each value is built only by its own module, so a byte that was not
//! judged cannot flow. The worker has no capability and makes sockets in no namespace but node-proxy's own.

mod args;
pub mod certs;
pub mod link;
pub mod tunnel;
pub mod xds;

pub use args::Args;

/// Runs the worker on the calling thread, hardened already; `crashes` says how many workers in a row ended within ten seconds.
pub fn run(_args: Args, _crashes: u32) -> anyhow::Result<()> {
    anyhow::bail!("the data path is not there yet")
}

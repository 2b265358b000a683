//! The worker: every byte from the network. The module list, read from top to bottom, is the path of a byte.
//!
//! `Accepted → Identified → Authorized → Connected → copy`: each value is built only by its own module, so a byte that was not
//! judged cannot flow. The worker has no capability and makes sockets in no namespace but node-proxy's own.

mod args;

pub use args::Args;

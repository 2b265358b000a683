//! Linux: network namespaces, sockets, descriptor passing, capture rules, sock_diag.
//!
//! Everything that asks the kernel for something unusual lives here, so that the rest of the workspace stays free of unsafe code.
//! Nothing here decides anything: callers say which pod, which mark, which port.
#![allow(unsafe_code)] // The one crate that may: every block names the facts it leans on.

pub mod addresses;
pub mod capture;
pub mod diag;
pub mod md5;
pub mod memory;
mod netlink;
pub mod netns;
pub mod packet;
pub mod procfs;
pub mod seqpacket;
pub mod sigsys;
pub mod socket;
pub mod socket_options;

pub use netns::{Netns, NetnsError, NetnsId};

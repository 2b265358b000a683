//! What every long-running process of the mesh needs, and nothing of the mesh itself: owned tasks, drain, readiness latches, logs,
//! signals, what an error says, the metrics and readiness endpoint, the admin socket, and a watch on a directory.
//!
//! This crate knows no other crate of ours, so that each daemon stops, starts and reports in the same way.

pub mod admin;
mod causes;
pub mod dir;
pub mod drain;
pub mod http;
mod log_format;
pub mod logs;
pub mod process;
pub mod ready;
pub mod signals;
mod stderr;
pub mod table;
pub mod tasks;

pub use causes::causes;

//! What the mesh costs, measured beside direct TCP and a sidecar in the same run.
//!
//! [`path`] says between whom, [`plane`] what carries the bytes, [`result`] what came out, [`report`] shows it. See
//! `culvert-loadtest list`.

pub mod cli;
pub mod path;
pub mod plane;
pub mod report;
pub mod result;

//! What the mesh costs, measured beside direct TCP and a sidecar in the same run.
//!
//! [`path`] says between whom, [`plane`] what carries the bytes, [`scenario`] what is done, [`traffic`] by which client and
//! server, [`measure`] what the kernel says of it, [`run`] in which order, [`result`] what came out, [`report`] shows it. See
//! `culvert-loadtest list`.

pub mod cli;
pub mod measure;
pub mod path;
pub mod plane;
pub mod report;
pub mod result;
pub mod run;
pub mod scenario;
pub mod traffic;

//! What the mesh costs, measured beside direct TCP and a sidecar in the same run.

pub mod result;

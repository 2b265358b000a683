//! The mesh's processes in a lab: which, where, as whom, in which order.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::pod::PodHandle;
use crate::proc::Process;

/// Settings of the mesh.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeshConfig {}

impl Default for MeshConfig {
    fn default() -> MeshConfig {
        MeshConfig {}
    }
}

impl MeshConfig {
    pub(crate) fn netconf(&self) -> Value {
        json!({ "type": "culvert-cni" })
    }
}

/// The mesh of a lab.
pub struct Mesh {}

impl Mesh {
    pub(crate) fn start(_lab: &Lab, _config: &MeshConfig) -> Result<Mesh> {
        anyhow::bail!("not yet")
    }
    pub(crate) fn attach(_lab: &Lab, _config: &MeshConfig, _processes: &BTreeMap<String, Process>) -> Result<Mesh> {
        Ok(Mesh {})
    }
    pub(crate) fn start_node(&self, _lab: &Lab, _index: usize) -> Result<()> {
        Ok(())
    }
    pub(crate) fn is_proxy_pod(&self, _pod: &PodHandle) -> bool {
        false
    }
}

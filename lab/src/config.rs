//! What a lab is made of, said before it is made.

use serde::{Deserialize, Serialize};

use crate::mesh::MeshConfig;
use crate::plan::Families;

/// What to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Name: of the directory under `/run/culvert-lab`, of the cgroups. One lab of a name at a time.
    pub name: String,
    /// Number of nodes.
    pub nodes: usize,
    /// IP families.
    pub families: Families,
    /// The mesh and its settings; `None`: plain nodes with the reference CNI chain.
    pub mesh: Option<MeshConfig>,
}

impl Default for Config {
    /// Two dual-stack nodes without a mesh, under a name no other process uses.
    fn default() -> Config {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("p{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Config { name, nodes: 2, families: Families::Dual, mesh: None }
    }
}

impl Config {
    /// With the mesh, as the DaemonSet would start it.
    pub fn with_mesh(mut self) -> Config {
        self.mesh = Some(MeshConfig::default());
        self
    }

    /// With the mesh, set so.
    pub fn mesh(mut self, mesh: MeshConfig) -> Config {
        self.mesh = Some(mesh);
        self
    }

    /// With this many nodes.
    pub fn nodes(mut self, nodes: usize) -> Config {
        self.nodes = nodes;
        self
    }

    /// With these families.
    pub fn families(mut self, families: Families) -> Config {
        self.families = families;
        self
    }

    /// Under this name.
    pub fn name(mut self, name: &str) -> Config {
        self.name = name.into();
        self
    }
}

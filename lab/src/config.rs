//! What a lab is made of, said before it is made.

use std::path::PathBuf;

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
    /// What the nodes are for, if more than the lab itself.
    #[serde(default)]
    pub host: Option<Host>,
}

/// Nodes that can carry a container runtime and what is built on it: `/etc`, `/opt`, `/var/lib` and `/var/log` are on a disk that
/// survives a power cut, and mounts are shared as an init system shares them. The CNI configuration is written once, at the first
/// boot, and is the node's own from then on; our plugin is not in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Host {
    /// (source, target): directories of this machine that every node and the fabric see.
    pub bind: Vec<(PathBuf, PathBuf)>,
    /// Files of which each node has a copy of its own: kernel settings that belong to the machine and not to a namespace, which a
    /// kubelet would write.
    pub shield: Vec<PathBuf>,
    /// A CNI plugin after the reference chain.
    pub plugin: Option<serde_json::Value>,
}

impl Default for Config {
    /// Two dual-stack nodes without a mesh, under a name no other process uses.
    fn default() -> Config {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("p{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Config { name, nodes: 2, families: Families::Dual, mesh: None, host: None }
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

    /// With nodes for a container runtime.
    pub fn host(mut self, host: Host) -> Config {
        self.host = Some(host);
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

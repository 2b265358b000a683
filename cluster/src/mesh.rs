//! Culvert in a cluster, installed as a person would: images given to the nodes, manifests applied, rollouts waited for.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::Cluster;

/// Where it is installed.
pub const NAMESPACE: &str = "culvert-system";
/// Definitions of the policies.
const CRDS: &str = include_str!("../../manifests/crds.yaml");
/// What must be rolled out.
const PARTS: [&str; 3] =
    ["deployment/culvert-control-plane", "daemonset/culvert-pod-watcher", "daemonset/culvert-node-proxy"];
/// For the images, 200 MB on each node, to be unpacked and everything to be Ready: 15 s on idle cores.
const DEADLINE: &str = "--timeout=180s";

/// What is installed.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// Directory of the images' archives.
    pub images: PathBuf,
    /// The manifests, rendered for such a cluster.
    pub manifests: PathBuf,
}

impl Mesh {
    /// As `CULVERT_IMAGES` and `CULVERT_MANIFESTS` say.
    pub fn find() -> Result<Mesh> {
        Self::given("CULVERT_IMAGES", "CULVERT_MANIFESTS")
    }

    /// The release before, as `CULVERT_FORMER_IMAGES` and `CULVERT_FORMER_MANIFESTS` say.
    pub fn find_former() -> Result<Mesh> {
        Self::given("CULVERT_FORMER_IMAGES", "CULVERT_FORMER_MANIFESTS")
    }

    fn given(images: &str, manifests: &str) -> Result<Mesh> {
        let given = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from);
            path.with_context(|| {
                format!("{name} is not set: run this through cargo xtask, which makes them and sets it")
            })
        };
        let mesh = Mesh { images: given(images)?, manifests: given(manifests)? };
        for path in [&mesh.images, &mesh.manifests] {
            ensure!(path.exists(), "{} is not there: cargo xtask makes it", path.display());
        }
        Ok(mesh)
    }
}

impl Cluster {
    /// Installs it; returns when all of it is Ready. `told` is called after each step.
    pub fn install(&self, mesh: &Mesh, told: impl Fn(&str)) -> Result<()> {
        let begun = Instant::now();
        let step = |what: &str| told(&format!("{:5.1} s  {what}", begun.elapsed().as_secs_f64()));
        self.give_images(mesh)?;
        step("images of the mesh on every node");
        // Made, not changed: where somebody has defined these kinds already, his definitions stay.
        self.kubectl_with(CRDS, &["create", "-f", "-"])?;
        self.apply_mesh(mesh)?;
        step("manifests applied");
        for part in PARTS {
            let rolled_out = self.kubectl(&["rollout", "status", part, "-n", NAMESPACE, DEADLINE]);
            rolled_out.with_context(|| self.what_is_wrong())?;
        }
        step("mesh Ready");
        Ok(())
    }

    /// Applies its manifests, over those of another release too; what is rolled out then is under way when this returns.
    pub fn apply_mesh(&self, mesh: &Mesh) -> Result<()> {
        self.kubectl(&["apply", "--server-side", "-f", &mesh.manifests.display().to_string()]).map(drop)
    }

    /// Gives every node the mesh's images.
    pub fn give_images(&self, mesh: &Mesh) -> Result<()> {
        let archives = std::fs::read_dir(&mesh.images).with_context(|| format!("read {}", mesh.images.display()))?;
        archives.into_iter().try_for_each(|archive| self.load(&archive?.path()))
    }

    /// For an error: the mesh's pods and what was said of them.
    fn what_is_wrong(&self) -> String {
        self.kubectl(&["get", "pods,events", "-n", NAMESPACE, "-o", "wide"]).unwrap_or_default()
    }

    /// Takes it away in one call, as `docs/uninstall.md` says; returns when its pods are gone.
    pub fn uninstall(&self, mesh: &Mesh) -> Result<()> {
        self.kubectl(&["delete", "-f", &mesh.manifests.display().to_string(), "--timeout=120s"]).map(drop)
    }
}

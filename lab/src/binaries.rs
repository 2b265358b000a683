//! Where the programs are that the lab starts: ours beside this one, the rest from Debian packages.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

use crate::spawn::which;

/// Where Debian's `containernetworking-plugins` puts them.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// The mesh's own binaries, by name.
pub const MESH: [&str; 4] = ["control-plane", "pod-watcher", "node-proxy", "culvert-cni"];

/// Debian packages the lab needs, each with a file that shows that it is there.
pub const PACKAGES: [(&str, &str); 3] =
    [("iproute2", "ip"), ("containernetworking-plugins", "/usr/lib/cni/bridge"), ("nftables", "nft")];

static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Takes our binaries from `dir`, for the rest of this process.
pub fn use_dir(dir: &Path) -> Result<()> {
    let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
    CHOSEN.set(dir).ok().context("the directory of binaries was chosen before")
}

/// The directory of our binaries: the one of [`use_dir`], else `CULVERT_BIN_DIR`, or where this program is (one up for a test binary in `deps`).
pub fn dir() -> Result<PathBuf> {
    if let Some(dir) = CHOSEN.get() {
        return Ok(dir.clone());
    }
    if let Some(dir) = std::env::var_os("CULVERT_BIN_DIR") {
        return Ok(dir.into());
    }
    let exe = std::env::current_exe().context("find this program's path")?;
    let dir = exe.parent().context("a program lies in a directory")?;
    let in_deps = dir.file_name().is_some_and(|n| n == "deps" || n == "examples");
    Ok(if in_deps { dir.parent().unwrap_or(dir) } else { dir }.to_owned())
}

/// One of our own binaries, if it is built.
pub fn own(name: &str) -> Option<PathBuf> {
    dir().ok().map(|d| d.join(name)).filter(|p| p.is_file())
}

/// `culvert-lab` itself.
pub(crate) fn lab() -> Result<PathBuf> {
    own("culvert-lab").with_context(|| {
        format!("culvert-lab is not built in {}: run cargo build -p lab", dir().unwrap_or_default().display())
    })
}

/// What of the machine is missing: root, Debian packages, our binaries (`mesh`: also the mesh's).
pub fn check(mesh: bool) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the lab needs root: it makes network namespaces (try sudo)");
    let missing = missing_packages();
    ensure!(missing.is_empty(), "Debian packages are missing: apt-get install --yes {}", missing.join(" "));
    lab()?;
    if mesh {
        let absent: Vec<&str> = MESH.into_iter().filter(|name| own(name).is_none()).collect();
        if !absent.is_empty() {
            bail!("not built in {}: {} (cargo xtask lab builds them)", dir()?.display(), absent.join(", "));
        }
    }
    Ok(())
}

/// Debian packages that are not installed.
pub fn missing_packages() -> Vec<&'static str> {
    let there = |file: &str| if file.starts_with('/') { Path::new(file).exists() } else { which(file).is_some() };
    PACKAGES.into_iter().filter(|(_, file)| !there(file)).map(|(package, _)| package).collect()
}

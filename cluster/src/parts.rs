//! What a cluster is made of and where it is: `cargo xtask cluster` builds it once and says so in the environment.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// Where every node and the control plane see Kubernetes.
pub(crate) const INSIDE: &str = "/opt/kubernetes/bin";

/// Programs of this machine.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Directory of `kube-apiserver`, `kubelet` and so on.
    pub components: PathBuf,
    /// `kubectl`.
    pub kubectl: PathBuf,
    /// `coredns`.
    pub coredns: PathBuf,
}

/// Programs of Debian packages, by the path each must be at.
const PROGRAMS: [(&str, &str); 6] = [
    ("/usr/bin/etcd", "etcd-server"),
    ("/usr/bin/containerd", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/sbin/conntrack", "conntrack"),
    ("/usr/lib/cni/portmap", "containernetworking-plugins"),
    (BUSYBOX, "busybox-static"),
];

/// A shell and tools in one static file.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

impl Parts {
    /// As `CULVERT_KUBERNETES`, `CULVERT_KUBECTL` and `CULVERT_COREDNS` say. An error names what is missing and how to get it.
    pub fn find() -> Result<Parts> {
        let given = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from);
            path.with_context(|| {
                format!("{name} is not set: run this through cargo xtask, which makes Kubernetes and sets it")
            })
        };
        let parts = Parts {
            components: given("CULVERT_KUBERNETES")?,
            kubectl: given("CULVERT_KUBECTL")?,
            coredns: given("CULVERT_COREDNS")?,
        };
        for path in [&parts.components.join("kubelet"), &parts.kubectl, &parts.coredns] {
            ensure!(path.is_file(), "{} is not there: cargo xtask cluster parts makes it", path.display());
        }
        let missing: Vec<&str> =
            PROGRAMS.iter().filter(|(path, _)| !Path::new(path).is_file()).map(|(_, package)| *package).collect();
        ensure!(missing.is_empty(), "Debian packages are missing: {} (cargo xtask cluster parts)", missing.join(" "));
        Ok(parts)
    }
}

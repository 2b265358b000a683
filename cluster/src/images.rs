//! The images every node has: what holds a pod's sandbox, and our lab's servers, clients and a shell for tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use image::Image;
use lab::{Lab, Node, binaries};

use crate::parts::{BUSYBOX, Parts};

/// The lab's servers and clients (`culvert-lab app`, `culvert-lab client`), with busybox's shell and tools.
pub const APPS: &str = "localhost/culvert/lab:1";
/// The cluster's DNS; named in `dns.yaml`.
pub(crate) const DNS: &str = "localhost/culvert/coredns:1";
/// Named in containerd's configuration.
const PAUSE: &str = "localhost/culvert/pause:1";

/// Writes the archives into the cluster's directory.
pub(crate) fn write(lab: &Lab, parts: &Parts) -> Result<()> {
    let dir = lab.dir().join("images");
    std::fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
    let own = |name: &str| {
        binaries::own(name)
            .with_context(|| format!("{name} is not built: cargo build --bins (cargo xtask cluster does)"))
    };
    Image::new(PAUSE)
        .program(own("culvert-pause")?, "/pause")
        .entrypoint(&["/pause"])
        .user(65535)
        .write(&dir.join("pause.tar"))?;
    Image::new(DNS)
        .file(&parts.coredns, "/coredns", 0o755)
        .entrypoint(&["/coredns"])
        .user(65534)
        .write(&dir.join("coredns.tar"))?;
    let lab = own("culvert-lab")?;
    let apps = Image::new(APPS).program(lab, "/bin/culvert-lab").entrypoint(&["/bin/culvert-lab"]);
    with_busybox(apps)?.write(&dir.join("apps.tar"))
}

/// How names are resolved: what a static C library does by itself.
const NSSWITCH: &str = "hosts: files dns\n";

/// With a shell, tools and a place for their files.
pub(crate) fn with_busybox(image: Image) -> Result<Image> {
    let image = image.file(BUSYBOX, "/bin/busybox", 0o755).dir("/tmp", 0o1777);
    let image = image.text(NSSWITCH, "/etc/nsswitch.conf", 0o644);
    Ok(applets()?.iter().fold(image, |image, name| image.link("busybox", &format!("/bin/{name}"))))
}

/// The names that busybox answers to.
fn applets() -> Result<Vec<String>> {
    let output = Command::new(BUSYBOX).arg("--list").output().with_context(|| format!("start {BUSYBOX}"))?;
    ensure!(output.status.success(), "{BUSYBOX} --list: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>();
    Ok(names.into_iter().filter(|name| name != "busybox").collect())
}

/// Gives a node every archive of the cluster's directory.
pub(crate) fn import(lab: &Lab, node: &Node) -> Result<()> {
    let dir = lab.dir().join("images");
    for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
        load(node, &entry?.path())?;
    }
    Ok(())
}

/// Gives a node an archive from anywhere on this machine.
pub(crate) fn load_copy(lab: &Lab, node: &Node, archive: &Path) -> Result<()> {
    // The node sees the cluster's directory under its own path; of the rest of the machine it may see something else.
    let copy = lab.dir().join("nodes").join(node.name()).join("loading.tar");
    std::fs::copy(archive, &copy).with_context(|| format!("copy {}", archive.display()))?;
    let loaded = load(node, &copy);
    let _ = std::fs::remove_file(&copy); // it goes with the cluster at the latest
    loaded
}

/// Gives a node one archive.
fn load(node: &Node, archive: &Path) -> Result<()> {
    let path = archive.display().to_string();
    let output = node.exec(&["ctr", "--namespace", "k8s.io", "images", "import", &path])?;
    output.ok().map(drop).with_context(|| format!("import {path} on {}", node.name()))
}

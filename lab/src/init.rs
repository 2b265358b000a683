//! `culvert-lab node-init`: pid 1 of a node (or of the fabric). Makes the node's file system, reaps, and dies with the lab.
//!
//! Its standard input is a pipe from the lab: when it closes, the lab is gone and the node ends with it, unless the lab
//! said it lets the node stay. Killing this process is a power cut: the kernel ends everything in the pid namespace.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_move,
    unmount,
};
use rustix::process::{WaitOptions, waitpid};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::binaries;
use crate::proc::Pid;
use crate::state::{Dir, make_dir, write_atomic};

/// What pid 1 is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Boot {
    pub(crate) lab: Dir,
    pub(crate) name: String,
    /// Our binaries, to be seen at [`BIN`].
    pub(crate) binaries: PathBuf,
    /// The CNI network configuration; none on the fabric.
    pub(crate) conflist: Option<String>,
}

/// Where a node sees our binaries.
pub(crate) const BIN: &str = "/opt/culvert/bin";
/// Said on standard output when the node stands.
pub(crate) const READY: &str = "ready";
/// Said on standard input when the node may outlive the lab.
pub(crate) const STAY: u8 = b's';

/// Runs the verb.
pub fn run(boot: &str) -> Result<()> {
    let boot: Boot = serde_json::from_str(boot).context("parse the boot order")?;
    // Before anything is made: this procfs is still the machine's, so the pid read here is the one `down` will see. When
    // the lab is being taken down its directory is gone, this fails, and the node ends before it began.
    let me: u32 = fs::read_link("/proc/self")?.to_string_lossy().parse().context("own pid")?;
    let record = boot.lab.join(format!("init/{}.json", boot.name));
    write_atomic(&record, serde_json::to_string(&Pid::of(me)?)?.as_bytes())?;
    file_system(&boot).with_context(|| format!("make the file system of {}", boot.name))?;
    rustix::system::sethostname(boot.name.as_bytes()).context("set the host name")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(reap())
}

async fn reap() -> Result<()> {
    let mut children = signal(SignalKind::child())?;
    let mut lab = tokio::io::stdin();
    let mut watching = true;
    {
        use std::io::Write;
        let mut out = std::io::stdout();
        writeln!(out, "{READY}")?;
        out.flush()?;
    }
    loop {
        while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
        let mut byte = [0];
        tokio::select! {
            _ = children.recv() => {}
            // Dropping the read half-way loses nothing: a byte not taken is read next time round.
            read = lab.read(&mut byte), if watching => match read {
                Ok(1) if byte[0] == STAY => watching = false,
                Ok(1) => {}
                // The process may not linger in tokio's blocking read of stdin: leave at once.
                _ => std::process::exit(0),
            },
        }
    }
}

fn file_system(boot: &Boot) -> Result<()> {
    let base = boot.lab.join(format!("nodes/{}", boot.name));
    let (scratch, disk) = (base.join("scratch"), base.join("var-lib"));
    for dir in [&base, &scratch, &disk] {
        make_dir(dir)?;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("make / private")?;
    mount("tmpfs", &scratch, "tmpfs", MountFlags::empty(), c"mode=755").context("mount scratch")?;
    for dir in ["/etc", "/opt"] {
        overlay(&scratch, Path::new(dir))?;
    }
    fs::create_dir_all(BIN)?;
    mount_bind(&boot.binaries, BIN).context("bind our binaries")?;
    if let Some(conflist) = &boot.conflist {
        cni(conflist)?;
    }
    run_dir(boot, &scratch)?;
    mount_bind(&disk, "/var/lib").context("bind the node's disk")?;
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"")
        .context("mount /proc")?;
    sysfs().context("mount /sys")
}

/// A writable view of a directory of the machine; what is written lives in memory, as long as the node.
fn overlay(scratch: &Path, dir: &Path) -> Result<()> {
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let (upper, work) = (scratch.join(format!("{name}-upper")), scratch.join(format!("{name}-work")));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let options = format!("lowerdir={},upperdir={},workdir={}", dir.display(), upper.display(), work.display());
    let options = std::ffi::CString::new(options)?;
    mount("overlay", dir, "overlay", MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mount an overlay on {}: the lab needs overlayfs", dir.display()))
}

/// /etc/cni/net.d with one network, /opt/cni/bin with Debian's plugins and ours.
fn cni(conflist: &str) -> Result<()> {
    fs::create_dir_all("/etc/cni/net.d")?;
    for old in fs::read_dir("/etc/cni/net.d")?.flatten() {
        fs::remove_file(old.path())?; // the machine's own networks are none of the node's
    }
    fs::write("/etc/cni/net.d/10-culvert-lab.conflist", conflist)?;
    fs::create_dir_all("/opt/cni/bin")?;
    for plugin in fs::read_dir(binaries::CNI_PLUGINS).context("read Debian's CNI plugins")?.flatten() {
        let link = Path::new("/opt/cni/bin").join(plugin.file_name());
        if !link.exists() {
            symlink(plugin.path(), link)?;
        }
    }
    symlink(Path::new(BIN).join("culvert-cni"), "/opt/cni/bin/culvert-cni").or_else(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error.into()),
    })
}

/// A fresh /run in memory; the lab's directory is seen in it under the same path as outside.
fn run_dir(boot: &Boot, scratch: &Path) -> Result<()> {
    let run = scratch.join("run");
    fs::create_dir(&run)?;
    mount("tmpfs", &run, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755").context("mount the new /run")?;
    let inside = run.join(boot.lab.path().strip_prefix("/run").context("the lab's directory lies in /run")?);
    fs::create_dir_all(&inside)?;
    fs::create_dir_all(run.join("lock"))?;
    let netns = run.join("netns");
    fs::create_dir(&netns)?;
    mount_bind(boot.lab.path(), &inside).context("bind the lab's directory")?;
    mount_move(&run, "/run").context("move the new /run into place")?;
    // As `ip netns` does it: an unmount of a pod's netns must reach the mount namespaces of the other pods.
    mount_bind("/run/netns", "/run/netns")?;
    mount_change("/run/netns", MountPropagationFlags::SHARED).context("share /run/netns")
}

/// A sysfs that shows the node's own network devices, with the machine's cgroups kept.
fn sysfs() -> Result<()> {
    let keep = Path::new("/run/.cgroup");
    fs::create_dir_all(keep)?;
    mount_bind_recursive("/sys/fs/cgroup", keep)?;
    mount("sysfs", "/sys", "sysfs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"")?;
    mount_bind_recursive(keep, "/sys/fs/cgroup")?;
    unmount(keep, UnmountFlags::DETACH)?;
    fs::remove_dir(keep)?;
    Ok(())
}

/// `culvert-lab pause`: holds a pod's sandbox until it is killed.
pub fn pause() -> Result<()> {
    crate::apps::server::say_ready()?;
    loop {
        std::thread::park();
    }
}

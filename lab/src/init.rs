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
use crate::config::Host;
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
    /// Set for a node that carries a container runtime.
    pub(crate) host: Option<Host>,
}

/// Where a node sees our binaries.
pub(crate) const BIN: &str = "/opt/culvert/bin";
/// Where a node keeps its network configurations.
const NETWORKS: &str = "net.d";
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
    let scratch = base.join("scratch");
    for dir in [&base, &scratch] {
        make_dir(dir)?;
    }
    let disk = disk(boot, &base)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("make / private")?;
    mount("tmpfs", &scratch, "tmpfs", MountFlags::empty(), c"mode=755").context("mount scratch")?;
    // Looked at before the overlay that will hold it hides it.
    let first_boot = !disk.join(if boot.host.is_some() { "etc-upper" } else { NETWORKS }).exists();
    let written = if boot.host.is_some() { &disk } else { &scratch };
    for dir in ["/etc", "/opt"] {
        overlay(written, Path::new(dir))?;
    }
    for (source, target) in boot.host.iter().flat_map(|host| &host.bind) {
        fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
        mount_bind(source, target).with_context(|| format!("bind {} to {}", source.display(), target.display()))?;
    }
    fs::create_dir_all(BIN)?;
    mount_bind(&boot.binaries, BIN).context("bind our binaries")?;
    if let Some(conflist) = &boot.conflist {
        if boot.host.is_none() {
            keep_cni(&disk)?;
        }
        if first_boot {
            cni(conflist, boot.host.is_none())?;
        }
    }
    run_dir(boot, &scratch)?;
    // /var/lib last: it hides the disks.
    for dir in boot.host.iter().map(|_| "var-log").chain(["var-lib"]) {
        let target = Path::new("/").join(dir.replace('-', "/"));
        mount_bind(disk.join(dir), &target).with_context(|| format!("bind the node's {}", target.display()))?;
    }
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"")
        .context("mount /proc")?;
    sysfs().context("mount /sys")?;
    if let Some(host) = &boot.host {
        for (number, file) in host.shield.iter().enumerate() {
            let copy = scratch.join(format!("shield-{number}"));
            fs::write(&copy, fs::read(file).with_context(|| format!("read {}", file.display()))?)?;
            mount_bind(&copy, file).with_context(|| format!("put a copy over {}", file.display()))?;
        }
        // As an init system leaves it: what a runtime mounts is seen by containers that ask for it. All of it was private before, so
        // nothing of it is shared with the machine.
        mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).context("share the mounts")?;
    }
    Ok(())
}

/// What outlives the node: where `/var/lib` is, and for a [`Host`] what is written to `/etc`, `/opt` and `/var/log`.
fn disk(boot: &Boot, base: &Path) -> Result<PathBuf> {
    let (disk, dirs) = match boot.host {
        Some(_) => (boot.lab.disks().join(&boot.name), vec!["var-lib", "var-log"]),
        None => (base.to_owned(), vec!["var-lib"]),
    };
    if boot.host.is_some() {
        fs::create_dir_all(&disk).with_context(|| format!("make {}", disk.display()))?;
    }
    for dir in dirs {
        make_dir(&disk.join(dir))?;
    }
    Ok(disk)
}

/// A writable view of a directory of the machine; what is written lies in `place`, and lives as long as that.
fn overlay(place: &Path, dir: &Path) -> Result<()> {
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let (upper, work) = (place.join(format!("{name}-upper")), place.join(format!("{name}-work")));
    make_dir(&upper)?;
    make_dir(&work)?;
    let options = format!("lowerdir={},upperdir={},workdir={}", dir.display(), upper.display(), work.display());
    let options = std::ffi::CString::new(options)?;
    mount("overlay", dir, "overlay", MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mount an overlay on {}: the lab needs overlayfs", dir.display()))
}

/// What is in the CNI directories after a power cut is what was there before. Of a [`Host`] all of /etc and /opt is kept.
fn keep_cni(disk: &Path) -> Result<()> {
    for (name, at) in [(NETWORKS, "/etc/cni/net.d"), ("cni-bin", "/opt/cni/bin")] {
        let dir = disk.join(name);
        make_dir(&dir)?;
        fs::create_dir_all(at)?;
        mount_bind(&dir, at).with_context(|| format!("bind the node's {at}"))?;
    }
    Ok(())
}

/// /etc/cni/net.d with one network, /opt/cni/bin with Debian's plugins, and with ours where it is in the chain.
fn cni(conflist: &str, ours: bool) -> Result<()> {
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
    if !ours {
        return Ok(());
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

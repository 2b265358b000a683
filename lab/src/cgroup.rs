//! Control groups named as kubelet names them, in whichever hierarchies the machine has: version 2, version 1, or the
//! hybrid of both. They are the one thing of a lab that does not end with a namespace.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait;

/// One hierarchy the lab makes groups in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// The memory controller of version 1.
    MemoryV1,
    /// Any other controller of version 1: of no use to the lab itself, but container runtimes make groups in each.
    OtherV1,
    /// The unified hierarchy; it has the memory controller unless version 1 took it.
    V2,
}

fn hierarchies() -> &'static [Hierarchy] {
    static FOUND: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    FOUND.get_or_init(|| parse_mounts(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()))
}

fn parse_mounts(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, mount, kind, options, ..] = fields[..] else { continue };
        let version = match kind {
            "cgroup2" => Version::V2,
            "cgroup" if options.split(',').any(|o| o == "memory") => Version::MemoryV1,
            "cgroup" => Version::OtherV1,
            _ => continue,
        };
        if version == Version::OtherV1 || !found.iter().any(|h| h.version == version) {
            found.push(Hierarchy { mount: mount.into(), version });
        }
    }
    found
}

fn lab_root(hierarchy: &Hierarchy, lab: &str) -> PathBuf {
    hierarchy.mount.join("culvert-lab").join(lab)
}

/// Makes the group `path` of a lab in every hierarchy; the files a process writes its pid to, to join.
pub(crate) fn prepare(lab: &str, path: &str, memory: Option<u64>) -> Result<Vec<PathBuf>> {
    let _making = crate::interrupt::making()?;
    let mut joins = Vec::new();
    let mut limited = memory.is_none();
    for hierarchy in hierarchies().iter().filter(|h| h.version != Version::OtherV1) {
        let group = lab_root(hierarchy, lab).join(path);
        fs::create_dir_all(&group).with_context(|| format!("make cgroup {}", group.display()))?;
        if let Some(limit) = memory {
            let file = match hierarchy.version {
                Version::MemoryV1 | Version::OtherV1 => "memory.limit_in_bytes",
                Version::V2 => {
                    delegate_memory(&hierarchy.mount, &group);
                    "memory.max"
                }
            };
            if group.join(file).exists() {
                fs::write(group.join(file), limit.to_string()).with_context(|| format!("limit {}", group.display()))?;
                limited = true;
            }
        }
        joins.push(group.join("cgroup.procs"));
    }
    if !limited {
        bail!("no memory controller here to limit cgroup {path}");
    }
    Ok(joins)
}

/// Makes the group `path` of a lab in every hierarchy, ready to be filled by a container runtime; its name as a runtime is told it.
pub fn prepare_root(lab: &str, path: &str) -> Result<String> {
    let _making = crate::interrupt::making()?;
    let below = Path::new("culvert-lab").join(lab).join(path);
    for hierarchy in hierarchies() {
        let group = hierarchy.mount.join(&below);
        fs::create_dir_all(&group).with_context(|| format!("make cgroup {}", group.display()))?;
        if hierarchy.version == Version::V2 {
            delegate_memory(&hierarchy.mount, &group);
        }
        // cpuset of version 1: a new group has no CPU and no memory node, and no process may enter it, until it is given them.
        let mut parent = hierarchy.mount.clone();
        for name in below.iter() {
            let child = parent.join(name);
            for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| hierarchy.version == Version::OtherV1) {
                if let Ok(all) = fs::read_to_string(parent.join(file)) {
                    fs::write(child.join(file), all).with_context(|| format!("fill {file} of {}", child.display()))?;
                }
            }
            parent = child;
        }
    }
    Ok(format!("/{}", below.display()))
}

/// Version 2: a controller reaches a group only if each parent hands it down.
fn delegate_memory(mount: &Path, group: &Path) {
    let parents: Vec<&Path> = group.ancestors().skip(1).take_while(|p| p.starts_with(mount)).collect();
    for parent in parents.into_iter().rev() {
        // Absent (hybrid: version 1 has it) or already on: the caller sees by the limit file.
        let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
    }
}

/// Bytes charged to a group of a lab, where a memory controller counts them.
pub fn memory_used(lab: &str, path: &str) -> Option<u64> {
    hierarchies().iter().find_map(|h| {
        let file = if h.version == Version::V2 { "memory.current" } else { "memory.usage_in_bytes" };
        fs::read_to_string(lab_root(h, lab).join(path).join(file)).ok()?.trim().parse().ok()
    })
}

/// Bytes of kernel memory charged to a group of a lab and those below it, where a memory controller counts them.
pub fn kernel_memory(lab: &str, path: &str) -> Option<u64> {
    hierarchies().iter().find_map(|h| {
        let group = lab_root(h, lab).join(path);
        match h.version {
            Version::MemoryV1 => fs::read_to_string(group.join("memory.kmem.usage_in_bytes")).ok()?.trim().parse().ok(),
            Version::OtherV1 => None,
            Version::V2 => {
                let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
                stat.lines().find_map(|line| line.strip_prefix("kernel "))?.trim().parse().ok()
            }
        }
    })
}

/// CPU time of a lab's processes, also of those that have ended, where the unified hierarchy is mounted.
pub fn cpu_used(lab: &str) -> Option<Duration> {
    let unified = hierarchies().iter().find(|h| h.version == Version::V2)?;
    let text = fs::read_to_string(lab_root(unified, lab).join("cpu.stat")).ok()?;
    let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    micros.trim().parse().ok().map(Duration::from_micros)
}

/// Removes a group and those below it, in every hierarchy.
pub(crate) fn remove(lab: &str, path: &str) -> Result<()> {
    hierarchies().iter().try_for_each(|h| remove_tree(&lab_root(h, lab).join(path)))
}

/// Removes every group of a lab, and the common parent when it is empty.
pub(crate) fn remove_lab(lab: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        remove_tree(&lab_root(hierarchy, lab))?;
        let _ = fs::remove_dir(hierarchy.mount.join("culvert-lab")); // only when it was the last lab
    }
    Ok(())
}

/// The groups of a lab that are there.
pub(crate) fn of_lab(lab: &str) -> Vec<PathBuf> {
    hierarchies().iter().map(|h| lab_root(h, lab)).filter(|g| g.exists()).collect()
}

/// A group can be removed as soon as the kernel has let its last process go, which may be a moment after its end.
fn remove_tree(group: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(group) else { return Ok(()) };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&entry.path())?;
    }
    wait::until(&format!("cgroup {} to be empty", group.display()), Duration::from_secs(5), || {
        crate::proc::reap_ended();
        match fs::remove_dir(group) {
            Ok(()) => Some(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Some(()),
            Err(_) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_mounts_are_told_apart() {
        let hybrid = "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let versions: Vec<Version> = parse_mounts(hybrid).iter().map(|h| h.version).collect();
        assert_eq!(versions, [Version::OtherV1, Version::OtherV1, Version::MemoryV1, Version::V2]);
        let unified = parse_mounts("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n");
        assert_eq!(unified, [Hierarchy { mount: "/sys/fs/cgroup".into(), version: Version::V2 }]);
    }
}

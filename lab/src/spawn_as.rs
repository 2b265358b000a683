//! `culvert-lab spawn-as`: becomes a program with exactly the namespaces, mounts, cgroup, user and capabilities of a spec.
//!
//! Internal verb, started by `spawn` with the pid namespace already chosen. The order matters and is the content of this
//! file: cgroup and namespaces while still root, then the bounding set, then the user, then the sets, then no_new_privs.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
use rustix::process::{Gid, Uid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::ns;
use crate::spawn::{Mounts, Spec, User};

/// Runs the verb; returns only when it failed.
pub fn run(spec: &str) -> Result<std::convert::Infallible> {
    let Spec { argv, user, join, init, net, mount, mounts } = serde_json::from_str(spec).context("parse the spec")?;
    for file in join {
        fs::write(&file, "0").with_context(|| format!("join cgroup {}", file.display()))?;
    }
    ns::enter(&net, LinkNameSpaceType::Network)?;
    ns::enter(&init.ns("uts"), LinkNameSpaceType::HostNameAndNISDomainName)?;
    ns::enter(&init.ns("ipc"), LinkNameSpaceType::InterProcessCommunication)?;
    // Last: after it, /proc is the node's.
    ns::enter(&mount, LinkNameSpaceType::Mount)?;
    std::env::set_current_dir("/")?;
    apply(&mounts)?;
    become_user(&user)?;
    let (program, args) = argv.split_first().context("an empty argv")?;
    let error = Command::new(program).args(args).exec();
    bail!("exec {program}: {error}")
}

fn apply(mounts: &Mounts) -> Result<()> {
    let Mounts { bind, hide, read_only_root } = mounts;
    if *mounts == Mounts::default() {
        return Ok(());
    }
    ns::unshare(UnshareFlags::NEWNS).context("make a mount namespace")?;
    // Slave: what the node unmounts (a pod's netns) goes here too, what is mounted here stays here.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).context("make / a slave")?;
    for (source, target) in bind {
        mount_bind(source, target).with_context(|| format!("bind {} to {}", source.display(), target.display()))?;
    }
    for target in hide {
        if target.exists() {
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            mount("none", target, "tmpfs", flags, c"mode=755").with_context(|| format!("hide {}", target.display()))?;
        }
    }
    if *read_only_root {
        mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, c"").context("make / read-only")?;
    }
    Ok(())
}

fn become_user(user: &User) -> Result<()> {
    let User { uid, gid, groups, caps, no_new_privs } = user;
    let allowed = match caps {
        None => caps::read(None, CapSet::Permitted)?,
        Some(names) => parse(names)?,
    };
    if caps.is_some() {
        let surplus: Vec<Capability> = caps::read(None, CapSet::Bounding)?.difference(&allowed).copied().collect();
        for cap in surplus {
            caps::drop(None, CapSet::Bounding, cap).with_context(|| format!("drop {cap} from the bounding set"))?;
        }
    }
    let groups: Vec<Gid> = groups.iter().map(|g| Gid::from_raw(*g)).collect();
    rustix::thread::set_thread_groups(&groups).context("set groups")?;
    if *gid != 0 {
        let gid = Gid::from_raw(*gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid).context("set gid")?;
    }
    if *uid != 0 {
        // A container's user other than root has no capability, whatever its bounding set: as a runtime does it.
        let uid = Uid::from_raw(*uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid).context("set uid")?;
    } else if caps.is_some() {
        caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
        caps::set(None, CapSet::Effective, &allowed)?;
        caps::set(None, CapSet::Permitted, &allowed)?;
    }
    if *no_new_privs {
        rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    }
    Ok(())
}

fn parse(names: &[String]) -> Result<CapsHashSet> {
    names
        .iter()
        .map(|name| {
            Capability::from_str(&format!("CAP_{name}")).map_err(|_| anyhow::anyhow!("no capability CAP_{name}"))
        })
        .collect()
}

//! Which processes are pods' processes: read from their cgroup, named as kubelet names it.
//!
//! For pods that were there before us. Only reads; a process that goes away half-way is left out, not an error.

use std::fs;
use std::io;
use std::path::Path;

use mesh_model::PodUid;

use crate::netns::{Netns, NetnsError, NetnsId};

/// A process of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProcess {
    /// Its pid, in the pid namespace of the procfs that was read.
    pub pid: u32,
    /// The pod.
    pub uid: PodUid,
    /// The network namespace it is in.
    pub netns: NetnsId,
}

/// All processes of pods, oldest first (a pod's oldest process is its pause container, which lives as long as the pod).
/// Reading another user's namespace link needs SYS_PTRACE.
pub fn pods() -> io::Result<Vec<PodProcess>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some((start, process)) = read(pid) {
            found.push((start, process));
        }
    }
    found.sort_by_key(|(start, process)| (*start, process.pid));
    Ok(found.into_iter().map(|(_, process)| process).collect())
}

/// Opens the namespace that a process is in. Compare its id with what [`pods`] said: pids are reused.
pub fn open_netns(pid: u32) -> Result<Netns, NetnsError> {
    Netns::open(Path::new(&format!("/proc/{pid}/ns/net")))
}

/// The node's own network namespace: that of pid 1 (needs hostPID in a container).
pub fn host_netns() -> io::Result<NetnsId> {
    NetnsId::of_path(Path::new("/proc/1/ns/net"))
}

fn read(pid: u32) -> Option<(u64, PodProcess)> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let uid = pod_of_cgroups(&cgroups)?;
    let netns = NetnsId::of_path(Path::new(&format!("/proc/{pid}/ns/net"))).ok()?;
    let start = start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    Some((start, PodProcess { pid, uid, netns }))
}

/// proc(5): field 22 of stat, counted after the command's closing parenthesis (a command may hold spaces and parentheses).
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The pod that `/proc/PID/cgroup` names (cgroup v1 and v2, cgroupfs and systemd drivers of kubelet).
pub fn pod_of_cgroups(text: &str) -> Option<PodUid> {
    text.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        // Below a cgroup namespace of our own the upper parts read as `..`; a full uuid is then proof enough.
        // What lies above kubelet's own part is named by whoever made the node, and may well begin with `pod`.
        let kubelets = |part: &str| part.contains("kubepods");
        let under_kubelet = path.split('/').any(kubelets);
        let mut parts = path.split('/').skip_while(|part| under_kubelet && !kubelets(part));
        parts.find_map(|part| pod_of_component(part, under_kubelet))
    })
}

fn pod_of_component(part: &str, under_kubelet: bool) -> Option<PodUid> {
    let uid = match part.strip_suffix(".slice") {
        // systemd: `kubepods-burstable-pod<uid, - as _>.slice`
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        // cgroupfs: `pod<uid>`
        None => part.strip_prefix("pod")?.to_owned(),
    };
    let looks_like_uid = matches!(uid.len(), 32 | 36) && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if under_kubelet || looks_like_uid { PodUid::parse(&uid).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b6d3c1e-8f5a-4e0c-9d2b-1a2b3c4d5e6f";

    #[test]
    fn a_pod_is_found_in_every_form_that_kubelet_writes() {
        let under = UID.replace('-', "_");
        for path in [
            format!("0::/kubepods/burstable/pod{UID}/abc"),
            format!("0::/kubepods/pod{UID}/abc"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-1.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{under}.slice/cri-containerd-1.scope"),
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{under}.slice/x.scope"
            ),
            format!("9:name=systemd:/pods/of-node-1/kubepods/besteffort/pod{UID}/abc"),
            format!("12:cpu,cpuacct:/user.slice\n11:memory:/kubepods/besteffort/pod{UID}/abc"),
            format!("0::/../../pod{UID}/abc"),
        ] {
            assert_eq!(pod_of_cgroups(&path).map(|uid| uid.to_string()), Some(UID.to_owned()), "{path}");
        }
    }

    #[test]
    fn a_process_outside_pods_is_not_taken_for_one() {
        for path in [
            "0::/",
            "0::/system.slice/podman-1.scope",
            "0::/podman/x",
            "0::/user.slice/a-podcast.slice/x",
            "garbage",
            "",
        ] {
            assert_eq!(pod_of_cgroups(path), None, "{path}");
        }
    }

    #[test]
    fn the_start_time_is_found_behind_a_hostile_command_name() {
        let mut stat = "7 (a) b (c 1 2) S".to_owned();
        for field in 4..=30 {
            stat.push_str(&format!(" {field}"));
        }
        assert_eq!(start_time(&stat), Some(22));
    }

    #[test]
    fn scanning_the_live_procfs_leaves_out_who_is_in_no_pod() {
        let own = std::process::id();
        assert!(pods().expect("procfs is readable").iter().all(|process| process.pid != own));
    }

    #[test]
    fn the_namespace_of_a_process_opens_by_pid() {
        let opened = open_netns(std::process::id()).expect("our own");
        let link = NetnsId::of_path(Path::new("/proc/self/ns/net")).expect("our own");
        assert_eq!(opened.id(), link);
    }
}

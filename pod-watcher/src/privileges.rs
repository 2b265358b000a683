//! Gives up what the daemon does not need, before any thread exists (capabilities are per thread).

use caps::{CapSet, Capability, CapsHashSet};

/// What stays: SYS_ADMIN to enter namespaces, NET_ADMIN for rules, SYS_PTRACE to read `/proc/PID/ns/net` of pods that were there
/// before us.
const KEPT: [Capability; 3] = [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN, Capability::CAP_SYS_PTRACE];

/// A privilege could not be given up, or one that is needed is missing.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The process was started with too little.
    #[error("capability {0} is missing: pod-watcher runs as root with SYS_ADMIN, NET_ADMIN and SYS_PTRACE")]
    Missing(Capability),
    /// The kernel refused.
    #[error("limit capabilities of this process: {0}")]
    Caps(#[from] caps::errors::CapsError),
    /// The kernel refused.
    #[error("set no_new_privs: {0}")]
    NoNewPrivs(rustix::io::Errno),
}

/// Keeps [`KEPT`] and nothing else, in every set, for this process and all it could ever execute.
pub fn limit() -> Result<(), PrivilegeError> {
    let held = caps::read(None, CapSet::Permitted)?;
    if let Some(missing) = KEPT.into_iter().find(|capability| !held.contains(capability)) {
        return Err(PrivilegeError::Missing(missing));
    }
    // The bounding set needs SETPCAP; where the container already runs without it, the set is what the container was given.
    if held.contains(&Capability::CAP_SETPCAP) {
        caps::securebits::set_keepcaps(false)?;
        for capability in
            caps::read(None, CapSet::Bounding)?.into_iter().filter(|capability| !KEPT.contains(capability))
        {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    let kept: CapsHashSet = KEPT.into_iter().collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    rustix::thread::set_no_new_privs(true).map_err(PrivilegeError::NoNewPrivs)
}

/// Raises the soft limit of open files to the hard one: a pod takes five descriptors, and 250 pods more than the usual 1,024.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "limit of open files stays as it is");
    }
}

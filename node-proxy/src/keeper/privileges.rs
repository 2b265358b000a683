//! What the keeper is allowed to be: root with SYS_ADMIN and NET_ADMIN, and nothing that these two do not give.

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};
use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// setns, and IP_TRANSPARENT, SO_MARK and BINDTODEVICE in the pods' namespaces.
const NEEDED: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN];

/// Gives up everything else this process may have been started with, and what it could ever regain.
pub fn settle() -> anyhow::Result<()> {
    rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("forbid core dumps")?;
    let needed = CapsHashSet::from(NEEDED);
    let had = caps::read(None, CapSet::Permitted).context("read capabilities")?;
    if let Some(missing) = NEEDED.iter().find(|needed| !had.contains(needed)) {
        anyhow::bail!("the keeper needs {missing}: run it as root with exactly CAP_SYS_ADMIN and CAP_NET_ADMIN");
    }
    caps::clear(None, CapSet::Ambient).context("clear ambient capabilities")?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).context("clear inheritable capabilities")?;
    // Needs SETPCAP; a container that was given exactly the two has nothing left to drop here.
    for extra in caps::read(None, CapSet::Bounding).context("read the bounding set")?.difference(&needed) {
        if had.contains(&Capability::CAP_SETPCAP) {
            caps::drop(None, CapSet::Bounding, *extra)
                .with_context(|| format!("drop {extra} from the bounding set"))?;
        }
    }
    caps::set(None, CapSet::Effective, &needed).context("keep two effective capabilities")?;
    caps::set(None, CapSet::Permitted, &needed).context("keep two permitted capabilities")?;
    if had.len() > needed.len() {
        tracing::info!(dropped = had.len() - needed.len(), "started with more capabilities than the two needed");
    }
    raise_descriptor_limit();
    Ok(())
}

/// As many descriptors as the kernel lets us: a pod costs four here.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "descriptor limit stays as it is");
    }
}

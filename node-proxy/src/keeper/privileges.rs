//! What the keeper is allowed to be: root with SYS_ADMIN and NET_ADMIN, and nothing that these two do not give.

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};

/// setns, and IP_TRANSPARENT, SO_MARK and BINDTODEVICE in the pods' namespaces.
const NEEDED: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN];

/// Gives up everything else this process may have been started with, and what it could ever regain.
pub fn settle() -> anyhow::Result<()> {
    crate::harden::process()?;
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
    Ok(())
}

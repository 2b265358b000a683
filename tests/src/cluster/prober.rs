//! Attempts at addresses for as long as something lasts, from before whoever has them is there.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use cluster::Cluster;

use crate::shop::ECHO;
use crate::traffic::lasts;

/// Where `host-local` keeps a file for each address that it has given away, and which one it gave last, per range: the next one goes to
/// the next pod.
const GIVEN: &str = "/var/lib/cni/networks/culvert-lab";
const LAST: &str = "last_reserved_ip";
/// Between two attempts at one address.
const PACE: Duration = Duration::from_millis(1);

/// The addresses that a node gives to its next pods, so many of each family.
pub(crate) fn next(cluster: &Cluster, node: usize, ahead: u32) -> Result<Vec<IpAddr>> {
    let mut all = Vec::new();
    for range in 0..2 {
        let path = given(cluster, node, &format!("{LAST}.{range}"));
        let last: IpAddr =
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().parse()?;
        all.extend((1..=ahead).map(|n| match last {
            // Round a /24: from .254 on to .2, for .1 is the node's.
            IpAddr::V4(ip) => {
                let [a, b, c, last] = ip.octets();
                let host = (u32::from(last).saturating_sub(2) + n) % 253 + 2;
                IpAddr::from([a, b, c, host as u8])
            }
            IpAddr::V6(ip) => IpAddr::from((u128::from(ip) + u128::from(n)).to_be_bytes()),
        }));
    }
    Ok(all)
}

fn given(cluster: &Cluster, node: usize, name: &str) -> PathBuf {
    cluster.lab().node(node).init().root(format!("{GIVEN}/{name}"))
}

/// Whether no pod of the node has this address.
pub(crate) fn is_free(cluster: &Cluster, node: usize, ip: IpAddr) -> bool {
    !given(cluster, node, &ip.to_string()).exists()
}

/// Has the node give these addresses, one of each family, to its next pod.
pub(crate) fn give_next(cluster: &Cluster, node: usize, ips: &[IpAddr]) -> Result<()> {
    for ip in ips {
        let (range, before) = match ip {
            IpAddr::V4(ip) => (0, IpAddr::from((u32::from(*ip) - 1).to_be_bytes())),
            IpAddr::V6(ip) => (1, IpAddr::from((u128::from(*ip) - 1).to_be_bytes())),
        };
        let path = given(cluster, node, &format!("{LAST}.{range}"));
        std::fs::write(&path, before.to_string()).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// What the probers met.
#[derive(Clone, Debug, Default)]
pub(crate) struct Met {
    /// Attempts by address.
    pub(crate) attempts: BTreeMap<IpAddr, usize>,
    /// Those that were answered.
    pub(crate) answered: BTreeMap<IpAddr, usize>,
}

impl Met {
    pub(crate) fn attempts(&self) -> usize {
        self.attempts.values().sum()
    }

    pub(crate) fn answered(&self) -> usize {
        self.answered.values().sum()
    }
}

/// From where an address is asked: whether it answered, an error if that could not be tried.
pub(crate) type Ask<'a> = &'a (dyn Fn(SocketAddr) -> Result<io::Result<()>> + Sync);

/// Probes addresses from each of these places for as long as `work` lasts, which may look at what was met so far.
pub(crate) fn while_probed(
    from: &[Ask<'_>],
    at: &[IpAddr],
    work: impl FnOnce(&Mutex<Met>) -> Result<()>,
) -> Result<Met> {
    let (over, met) = (AtomicBool::new(false), Mutex::new(Met::default()));
    let done = std::thread::scope(|scope| {
        let each = from.iter().flat_map(|from| at.iter().map(move |ip| (*from, *ip)));
        let threads: Vec<_> = each
            .map(|(ask, ip)| {
                let (over, met) = (&over, &met);
                scope.spawn(move || -> Result<()> {
                    while !over.load(Ordering::Relaxed) {
                        let answered = ask(SocketAddr::new(ip, ECHO))?.is_ok();
                        let mut met = met.lock().expect("no panic while held");
                        *met.attempts.entry(ip).or_default() += 1;
                        *met.answered.entry(ip).or_default() += usize::from(answered);
                        drop(met);
                        lasts(PACE);
                    }
                    Ok(())
                })
            })
            .collect();
        let done = work(&met);
        over.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().expect("what fails is returned"))?;
        done
    });
    done.map(|()| met.into_inner().expect("no panic while held"))
}

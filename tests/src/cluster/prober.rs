//! Attempts at addresses for as long as something lasts, from before whoever has them is there.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use cluster::Cluster;

use crate::shop::ECHO;

/// Where `host-local` keeps what it gave last, per range: the next one goes to the next pod.
const LAST: &str = "/var/lib/cni/networks/culvert-lab/last_reserved_ip";
/// Between two attempts at one address.
const PACE: Duration = Duration::from_millis(5);

/// The addresses that a node gives to its next pods, so many of each family.
pub(crate) fn next(cluster: &Cluster, node: usize, ahead: u32) -> Result<Vec<IpAddr>> {
    let mut all = Vec::new();
    for range in 0..2 {
        let path = cluster.lab().node(node).init().root(format!("{LAST}.{range}"));
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
                        std::thread::park_timeout(PACE);
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

//! A lab under watch: no payload byte of an enrolled pod crosses the fabric outside of a tunnel, unless the test has said that it will.
//!
//! This holds for every lab test without being asked for. What is in clear on purpose (a stranger, a flow from before, an excluded
//! port) the test names with [`Watched::allow`]; anything else fails it, and so does a packet that the watch had no room for.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use lab::capture::Ends;
use lab::watch::Watch;
use lab::{Config, Lab, PodHandle, plan};

/// Flows that are in clear on purpose: those between two sides, either way.
#[derive(Clone, Debug)]
pub(crate) struct Clear {
    of: Vec<IpAddr>,
    with: Option<Vec<IpAddr>>,
    port: Option<u16>,
}

impl Clear {
    /// Everything of a pod.
    pub(crate) fn of(pod: &PodHandle) -> Clear {
        Clear { of: pod.ips(), with: None, port: None }
    }

    /// Everything of these addresses.
    pub(crate) fn addresses(of: Vec<IpAddr>) -> Clear {
        Clear { of, with: None, port: None }
    }

    /// Everything of the rest of the world, which no lab has in its mesh.
    pub(crate) fn world() -> Clear {
        Clear { of: vec![plan::OUTSIDE_V4.into(), plan::OUTSIDE_V6.into()], with: None, port: None }
    }

    /// Only with this pod.
    pub(crate) fn with(self, other: &PodHandle) -> Clear {
        self.to(&other.ips())
    }

    /// Only with these addresses.
    pub(crate) fn to(self, others: &[IpAddr]) -> Clear {
        Clear { with: Some(others.to_vec()), ..self }
    }

    /// Only where one end has this port.
    pub(crate) fn port(self, port: u16) -> Clear {
        Clear { port: Some(port), ..self }
    }

    fn holds(&self, ends: &Ends) -> bool {
        let side = |near: &SocketAddr, far: &SocketAddr| {
            self.of.contains(&near.ip()) && self.with.as_ref().is_none_or(|with| with.contains(&far.ip()))
        };
        (side(&ends.from, &ends.to) || side(&ends.to, &ends.from)) && self.port.is_none_or(|port| ends.has_port(port))
    }
}

/// A lab and the eyes on its fabric. Where a `&Lab` is wanted, it is one.
pub(crate) struct Watched {
    lab: Option<Lab>,
    /// `None` in a lab that captures nothing.
    watch: Option<Watch>,
    allowed: Mutex<Vec<(&'static str, Clear)>>,
}

impl Watched {
    pub(crate) fn up(config: Config) -> Result<Watched> {
        let captures = config.mesh.as_ref().is_some_and(|mesh| mesh.nodes);
        let lab = Lab::up(config)?;
        let watch = captures.then(|| lab.watch()).transpose()?;
        Ok(Watched { lab: Some(lab), watch, allowed: Mutex::default() })
    }

    /// These flows are in clear on purpose, and why.
    pub(crate) fn allow(&self, why: &'static str, clear: Clear) {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner).push((why, clear));
    }

    /// Payload of enrolled pods that crossed the fabric until now beside the tunnels and beside what was allowed; one line each.
    pub(crate) fn unowned(&self) -> Result<Vec<String>> {
        let Some(watch) = &self.watch else { return Ok(Vec::new()) };
        let seen = watch.beside()?;
        let lost = mesh_net::packet::statistics(watch).context("ask the watch what it missed")?;
        ensure!(lost.drops == 0, "the watch missed {} of {} packets: nothing is shown", lost.drops, lost.packets);
        let enrolled = self.enrolled();
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        let whose = |ends: &Ends| enrolled.get(&ends.from.ip()).or_else(|| enrolled.get(&ends.to.ip()));
        let told = seen.iter().filter(|(ends, _)| !allowed.iter().any(|(_, clear)| clear.holds(ends)));
        Ok(told
            .filter_map(|(ends, flow)| {
                let first = flow.first.escape_ascii();
                let protocol = if ends.tcp { "TCP" } else { "UDP" };
                let (pod, bytes, packets) = (whose(ends)?, flow.payload, flow.packets);
                Some(format!(
                    "{pod}: {protocol} {} → {}: {bytes} bytes in {packets} packets: \"{first}\"",
                    ends.from, ends.to
                ))
            })
            .collect())
    }

    fn judge(&self) -> Result<()> {
        const NAMED: usize = 20;
        let unowned = self.unowned()?;
        let named = unowned.iter().take(NAMED).map(|line| format!("\n  {line}")).collect::<String>();
        ensure!(
            unowned.is_empty(),
            "{} flows crossed the fabric in clear, and nobody said they would:{named}",
            unowned.len()
        );
        Ok(())
    }

    /// Judges what was seen, takes the lab down and says whether everything went.
    pub(crate) fn down(mut self) -> Result<()> {
        let judged = self.judge();
        let gone = self.lab.take().map_or(Ok(()), Lab::down);
        judged.and(gone)
    }
}

impl Deref for Watched {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.lab.as_ref().expect("taken only by what takes the whole value")
    }
}

/// A test that ends otherwise than by [`Watched::down`] is judged as well.
impl Drop for Watched {
    fn drop(&mut self) {
        if self.lab.is_none() || std::thread::panicking() {
            return;
        }
        if let Err(error) = self.judge() {
            panic!("{error:#}\n(the test itself may have ended before, for another reason)");
        }
    }
}

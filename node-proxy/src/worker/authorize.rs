//! Whether a connection may be. The only maker of [`Authorized`], without which nothing is connected.
//!
//! Policy is judged where the destination is: on the way in, and on the way out when the destination is a pod of this node that is
//! reached from socket to socket (then both ends are here, and routing has to come first: what is judged is the endpoint).

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_model::policy::{Denied, Facts, Permit, PolicyKey, judge, rehearse};
use mesh_model::{Identity, Mesh, OrigDst};

use super::identify::Identified;
use super::pods::{Pod, Table};
use super::probe::{self, Probe, Sockets};
use super::route::{Target, Way};

/// A connection that may be made, and to what.
#[derive(Debug)]
pub struct Authorized {
    identified: Identified,
    grounds: Grounds,
    to: To,
    would_refuse: Vec<PolicyKey>,
}

/// Why it may.
#[derive(Clone, Debug)]
pub enum Grounds {
    /// Judged here and allowed.
    Judged(Permit),
    /// The kubelet's probe.
    Probe(Probe),
    /// The far end judges: it goes through a tunnel, or leaves the mesh.
    FarEnd,
}

/// What may be connected to.
#[derive(Clone, Debug)]
pub enum To {
    /// The application of a pod of this node.
    App {
        /// The pod.
        pod: Arc<Pod>,
        /// Its address and port.
        address: SocketAddr,
    },
    /// A pod elsewhere, through a tunnel.
    Tunnel {
        /// Its address and port.
        address: SocketAddr,
        /// The identities its proxy may show.
        accepted: Vec<Identity>,
    },
    /// Something that is not in the mesh, in clear.
    Clear(SocketAddr),
}

impl Authorized {
    /// Who speaks to whom.
    pub fn identified(&self) -> &Identified {
        &self.identified
    }

    /// Why it may.
    pub fn grounds(&self) -> &Grounds {
        &self.grounds
    }

    /// What may be connected to.
    pub fn to(&self) -> &To {
        &self.to
    }

    /// The permit, when it was judged here.
    pub fn permit(&self) -> Option<&Permit> {
        match &self.grounds {
            Grounds::Judged(permit) => Some(permit),
            Grounds::Probe(_) | Grounds::FarEnd => None,
        }
    }

    /// Dry-run policies that would have refused it.
    pub fn would_refuse(&self) -> &[PolicyKey] {
        &self.would_refuse
    }

    /// The policy that allowed it.
    pub fn policy(&self) -> Option<&PolicyKey> {
        self.permit().and_then(Permit::policy)
    }
}

/// On the way out to an endpoint.
pub fn outbound(mesh: &Mesh, identified: &Identified, target: &Target) -> Result<Authorized, Denied> {
    let address = target.address();
    let to = match target.way() {
        Way::Short(pod) => return judged(mesh, identified.clone(), pod.clone(), OrigDst::new(address)),
        Way::Tunnel { accepted } => To::Tunnel { address, accepted: accepted.clone() },
        Way::Clear => To::Clear(address),
    };
    Ok(unjudged(identified.clone(), Grounds::FarEnd, to))
}

/// On the way out of the cluster, where [`super::route::resolve`] found nothing of ours.
pub fn outside(identified: &Identified, destination: OrigDst) -> Authorized {
    unjudged(identified.clone(), Grounds::FarEnd, To::Clear(destination.addr()))
}

/// On the way in without a tunnel.
pub fn inbound(
    mesh: &Mesh,
    table: &Table,
    sockets: &dyn Sockets,
    identified: Identified,
) -> Result<Authorized, Denied> {
    // kubelet asks at the pod's own address.
    if !identified.is_untold()
        && let Some(probe) = probe::check(&identified, table, sockets)
    {
        let to = To::App { pod: identified.pod().clone(), address: identified.destination().addr() };
        return Ok(unjudged(identified, Grounds::Probe(probe), to));
    }
    tunnelled(mesh, identified)
}

/// On the way in through a tunnel.
pub fn tunnelled(mesh: &Mesh, identified: Identified) -> Result<Authorized, Denied> {
    let (pod, destination) = (identified.pod().clone(), identified.destination());
    judged(mesh, identified, pod, destination)
}

fn judged(mesh: &Mesh, identified: Identified, pod: Arc<Pod>, destination: OrigDst) -> Result<Authorized, Denied> {
    let facts = Facts { source: identified.source().cloned(), client: identified.client(), destination };
    let workload = pod.workload(mesh);
    let permit = judge(mesh, workload.map(Arc::as_ref), facts)?;
    let would_refuse = workload.map_or_else(Vec::new, |workload| rehearse(mesh, workload, permit.facts()));
    let to = To::App { pod, address: destination.addr() };
    Ok(Authorized { identified, grounds: Grounds::Judged(permit), to, would_refuse })
}

fn unjudged(identified: Identified, grounds: Grounds, to: To) -> Authorized {
    Authorized { identified, grounds, to, would_refuse: Vec::new() }
}

#[cfg(test)]
mod tests;

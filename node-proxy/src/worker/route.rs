//! Where an outbound connection goes. Pure: a destination, what is known of the mesh and of this node, the time, and a source of chance.
//!
//! Order: our own ports are refused; a service's virtual address stands for its endpoints; an address of a pod of this node is that
//! pod, whatever the mesh says (local facts first); an address that a record names is that workload; inside the cluster's ranges
//! nothing else exists; outside, the connection passes through. A destination whose record says HBONE is never dialled in clear:
//! only [`Way::Clear`] and [`Routed::Outside`] lead to an unprotected socket, and neither is made for such a record.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use mesh_model::ports::is_reserved;
use mesh_model::{ClusterRanges, Identity, Mesh, OrigDst, PodName, Reason, Service, ServiceKey, Tunnel, Workload};

use super::pods::{Pod, Table};

mod endpoints;

/// There is no way to the destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The destination is one of the proxy's own ports.
    #[error("port {0} is the proxy's own")]
    ReservedPort(u16),
    /// Inside the cluster's ranges, and no record names it.
    #[error("{0} lies in the cluster's ranges and no record names it")]
    Unknown(OrigDst),
    /// The service has no such port.
    #[error("service {service} has no port {port}")]
    NoPort {
        /// Which service.
        service: ServiceKey,
        /// Which port.
        port: u16,
    },
    /// The service has no endpoint that may be used.
    #[error("service {0} has no usable endpoint")]
    NoEndpoint(ServiceKey),
    /// A mesh pod of this node that the keeper has not named yet; it is naming them.
    #[error("pod {0} of this node is not served yet")]
    NotServedYet(PodName),
    /// What is called is to be reached through a waypoint.
    #[error("{0} is to be reached through a waypoint")]
    Waypoint(String),
    /// The record of the destination makes no identity that its certificate could be checked against.
    #[error("the record of workload {0} makes no identity")]
    NoIdentity(PodName),
}

impl NoRoute {
    /// The reason for metric, log and wire.
    pub fn reason(&self) -> Reason {
        match self {
            NoRoute::ReservedPort(_) => Reason::ReservedPort,
            NoRoute::Unknown(_) => Reason::UnknownDestination,
            NoRoute::NoPort { .. } | NoRoute::NoEndpoint(_) => Reason::NoEndpoint,
            NoRoute::NotServedYet(_) => Reason::NotReady,
            NoRoute::Waypoint(_) => Reason::WaypointNeeded,
            NoRoute::NoIdentity(_) => Reason::Malformed,
        }
    }

    /// Whether a record or a pod that is on its way may change the answer.
    pub fn may_change(&self) -> bool {
        matches!(self, NoRoute::Unknown(_) | NoRoute::NotServedYet(_))
    }
}

/// A route. Made by [`resolve`] alone.
#[derive(Clone, Debug)]
pub enum Routed {
    /// Endpoints in the order in which they are tried; at least one.
    Inside {
        /// The service that was called, if it was called by its address.
        service: Option<Arc<Service>>,
        /// The endpoints.
        targets: Vec<Target>,
    },
    /// Outside the cluster: passed through.
    Outside(OrigDst),
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct Target {
    address: SocketAddr,
    workload: Option<Arc<Workload>>,
    identity: Option<Identity>,
    way: Way,
}

/// How an endpoint is reached.
#[derive(Clone, Debug)]
pub enum Way {
    /// A pod of this node, from socket to socket.
    Short(Arc<Pod>),
    /// Through a tunnel whose far end shows one of these identities.
    Tunnel {
        /// The identities.
        accepted: Vec<Identity>,
    },
    /// It is not in the mesh: plain TCP.
    Clear,
}

impl Target {
    /// Address and port of the application.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its record.
    #[cfg(test)]
    pub fn workload(&self) -> Option<&Arc<Workload>> {
        self.workload.as_ref()
    }

    /// Its namespace and name, from the record or from local facts.
    pub fn pod_name(&self) -> Option<&PodName> {
        match &self.way {
            Way::Short(pod) => Some(pod.name()),
            _ => self.workload.as_ref().map(|workload| &workload.pod),
        }
    }

    /// Who it is, when it is in the mesh.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// How it is reached.
    pub fn way(&self) -> &Way {
        &self.way
    }
}

/// What is known when a route is chosen.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The mesh.
    pub mesh: &'a Mesh,
    /// This node's pods.
    pub table: &'a Table,
    /// This node's name.
    pub node: &'a str,
    /// Where every destination must be known.
    pub ranges: &'a ClusterRanges,
    /// Open connections per endpoint.
    pub loads: &'a Loads,
    /// The time: clients stay with an endpoint for a while.
    pub now: Instant,
}

/// Finds the way from `source`, by its address `client`, to `destination`.
pub fn resolve(view: View<'_>, source: &Pod, client: IpAddr, destination: OrigDst) -> Result<Routed, NoRoute> {
    let (ip, port) = (destination.ip(), destination.port());
    if let Some(service) = view.mesh.service_at(ip) {
        if service.needs_waypoint {
            return Err(NoRoute::Waypoint(format!("service {}", service.key)));
        }
        let targets = endpoints::targets(view, source, client, service, destination)?;
        return Ok(Routed::Inside { service: Some(service.clone()), targets });
    }
    let own = ip.is_loopback() || ip.is_unspecified() || source.has_address(ip);
    if own && is_reserved(port) {
        return Err(NoRoute::ReservedPort(port));
    }
    let workload = view.mesh.workload_at(ip);
    if view.table.at(ip).is_none() && workload.is_none() {
        let inside = view.ranges.contains(ip);
        return if inside { Err(NoRoute::Unknown(destination)) } else { Ok(Routed::Outside(destination)) };
    }
    let target = target(view, source, workload.cloned(), destination.addr(), &[])?;
    if is_reserved(port) && !matches!(target.way, Way::Clear) {
        return Err(NoRoute::ReservedPort(port));
    }
    Ok(Routed::Inside { service: None, targets: vec![target] })
}

/// How one endpoint is reached.
fn target(
    view: View<'_>,
    source: &Pod,
    workload: Option<Arc<Workload>>,
    address: SocketAddr,
    further: &[Identity],
) -> Result<Target, NoRoute> {
    if let Some(pod) = view.table.at(address.ip()) {
        // The record at this address may still be that of the address's previous holder: the pod's own, or none.
        let workload = pod.workload(view.mesh).cloned();
        past_no_waypoint(workload.as_deref())?;
        let way = if source.is_unselected(view.mesh) && pod.is_unselected(view.mesh) {
            Way::Short(pod.clone())
        } else {
            Way::Tunnel { accepted: accepted(pod.identity(), further) }
        };
        return Ok(Target { address, workload, identity: Some(pod.identity().clone()), way });
    }
    let Some(workload) = workload else { return Err(NoRoute::Unknown(OrigDst::new(address))) };
    past_no_waypoint(Some(&workload))?;
    match workload.tunnel {
        Tunnel::Clear => Ok(Target { address, workload: Some(workload), identity: None, way: Way::Clear }),
        Tunnel::Hbone if workload.node == view.node && !view.table.is_complete() => {
            Err(NoRoute::NotServedYet(workload.pod.clone()))
        }
        Tunnel::Hbone => {
            let identity = workload.identity().map_err(|_| NoRoute::NoIdentity(workload.pod.clone()))?;
            let way = Way::Tunnel { accepted: accepted(&identity, further) };
            Ok(Target { address, workload: Some(workload), identity: Some(identity), way })
        }
    }
}

/// Policies on HTTP may be in force at the waypoint alone: nobody is led past it.
fn past_no_waypoint(workload: Option<&Workload>) -> Result<(), NoRoute> {
    match workload {
        Some(workload) if workload.needs_waypoint => Err(NoRoute::Waypoint(format!("pod {}", workload.pod))),
        _ => Ok(()),
    }
}

fn accepted(identity: &Identity, further: &[Identity]) -> Vec<Identity> {
    let mut accepted = vec![identity.clone()];
    accepted.extend(further.iter().filter(|other| *other != identity).cloned());
    accepted
}

/// Open connections per endpoint of this worker.
#[derive(Debug, Default)]
pub struct Loads {
    open: Mutex<HashMap<SocketAddr, u32>>,
}

/// Counts a connection to an endpoint until dropped.
#[derive(Debug)]
pub struct Load {
    loads: Arc<Loads>,
    address: SocketAddr,
}

impl Loads {
    /// How many are open to this endpoint.
    pub fn of(&self, address: SocketAddr) -> u32 {
        self.lock().get(&address).copied().unwrap_or_default()
    }

    /// Counts one more.
    pub fn enter(self: &Arc<Self>, address: SocketAddr) -> Load {
        *self.lock().entry(address).or_default() += 1;
        Load { loads: self.clone(), address }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, u32>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut open = self.loads.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests;

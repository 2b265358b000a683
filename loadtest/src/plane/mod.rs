//! A data plane under test: a lab of its own with the same two nodes, pods and links as every other plane, and what carries
//! its bytes. All planes of a run stand at once, so that they can be measured turn by turn.

mod envoy;
mod mesh;
mod none;
mod pods;

use std::net::SocketAddr;

use anyhow::{Result, bail};
use lab::{Lab, Pid, PodHandle};

use crate::path::{Family, Place, Side};

pub use envoy::BINARY as ENVOY;
pub use pods::{NAMESPACE, Pods, Server};

/// Port of the server that gives back what it gets.
pub const ECHO: u16 = 7100;
/// Port of the server that takes everything and, at the end of its input, says how many bytes that was (8, big endian).
pub const SINK: u16 = 7101;
/// Port of the server that sends until the peer goes.
pub const SOURCE: u16 = 7102;
/// The ports of every server pod.
pub const PORTS: [u16; 3] = [ECHO, SINK, SOURCE];

/// One plane that stands. Dropping it takes its lab down.
pub trait Plane: Send + Sync {
    /// `none`, `mesh`, ...: the `plane` column.
    fn name(&self) -> &str;

    /// What a reader must know of it: version, configuration, arguments; name and text in the order to print.
    fn about(&self) -> Vec<(String, String)>;

    /// Its lab: node 1 has client, neighbour and the near server, node 2 the far server.
    fn lab(&self) -> &Lab;

    /// Its pods.
    fn pods(&self) -> &Pods;

    /// Where a client connects to reach a server's port.
    fn target(&self, place: Place, family: Family, port: u16) -> Result<SocketAddr> {
        self.pods().address(place, family, port)
    }

    /// The process that moves the bytes of a pod's connections, if there is one.
    fn proxy(&self, pod: &PodHandle) -> Result<Option<Pid>>;

    /// The processes that move the bytes between these pods, counted at this side. A process that is both sides' (one node's
    /// proxy, same-node) is the client's and not named again for the server.
    fn proxies_of(&self, clients: &[&PodHandle], servers: &[&PodHandle], side: Side) -> Result<Vec<Pid>> {
        let all = |pods: &[&PodHandle], not: &[Pid]| -> Result<Vec<Pid>> {
            let mut pids = Vec::new();
            for pod in pods {
                pids.extend(self.proxy(pod)?.filter(|pid| !not.contains(pid) && !pids.contains(pid)));
            }
            Ok(pids)
        };
        let of_clients = all(clients, &[])?;
        if side == Side::Client { Ok(of_clients) } else { all(servers, &of_clients) }
    }

    /// The same for the bench's own client and the server of a place.
    fn proxies(&self, place: Place, side: Side) -> Result<Vec<Pid>> {
        self.proxies_of(&[&self.pods().client], &[self.pods().server(place)], side)
    }

    /// Every process of the plane on a node, by role: what its pods cost there.
    fn processes(&self, node: usize) -> Result<Vec<(String, Pid)>>;

    /// Makes another client pod on node 1, under a service account of its own named like the pod.
    fn add_client(&self, name: &str) -> Result<PodHandle> {
        pods::client(self.lab(), name)
    }

    /// Makes another server pod, with its server, under a service account named like the pod.
    fn add_server(&self, name: &str, node: usize) -> Result<Server> {
        Server::make(self.lab(), name, node)
    }

    /// Takes a pod of [`Plane::add_client`] or [`Plane::add_server`] away again.
    fn remove(&self, pod: &PodHandle) -> Result<()> {
        self.lab().remove_pod(pod)
    }

    /// Starts what holds memory anew, on both nodes. A heap that an earlier scenario has filled and emptied takes thousands of
    /// connections without growing: measured on one, 8,000 connections cost 0.12 KiB each, on a fresh one 3.1.
    fn fresh(&self) -> Result<()> {
        Ok(())
    }

    /// How many connections may be open at a time.
    fn room(&self) -> Result<Room> {
        // The bench's own server has a descriptor for each.
        Ok(Room { all: usize::MAX, each: 19_000 })
    }

    /// Takes its lab down and says whether everything went.
    fn down(self: Box<Self>) -> Result<()>;
}

/// Open connections a plane has room for on this machine, which may grant each process few descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Through one node's proxy, or one pod's where each has its own.
    pub all: usize,
    /// Of one pod.
    pub each: usize,
}

/// Planes by name, in the order they are listed.
pub const KNOWN: [(&str, &str); 4] = [
    ("none", "the same pods and links, nothing between them"),
    ("mesh", "the mesh, as its DaemonSets start it"),
    ("mesh-quiet", "the mesh without access log and without metrics per connection"),
    ("envoy", "a sidecar in each pod: TCP proxy with mutual TLS, access log on"),
];

/// Makes the plane `name` in a lab named `lab`.
pub fn up(name: &str, lab: &str) -> Result<Box<dyn Plane>> {
    Ok(match name {
        "none" => Box::new(none::up(lab)?),
        "mesh" => Box::new(mesh::up(lab, false)?),
        "mesh-quiet" => Box::new(mesh::up(lab, true)?),
        "envoy" => Box::new(envoy::up(lab)?),
        _ => bail!("no plane {name}: {}", KNOWN.map(|(known, _)| known).join(", ")),
    })
}

//! The pods of the bench, the same in every plane: a client, its neighbour and a near server on node 1, a far server on node 2.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{App, Lab, Pod, PodHandle, Process, User};

use super::PORTS;
use crate::path::{Family, Place};

/// Namespace of the bench's pods; in the mesh where there is one.
pub const NAMESPACE: &str = "bench";
/// How long a server may take to listen: milliseconds, unless the machine is busy.
const LISTENS: Duration = Duration::from_secs(20);

/// The pods of a plane, and the server in each server pod.
pub struct Pods {
    /// Opens connections. Node 1.
    pub client: PodHandle,
    /// Opens connections of its own meanwhile. Node 1.
    pub neighbour: PodHandle,
    near: Server,
    far: Server,
}

/// A server pod and the server in it.
pub struct Server {
    /// The pod.
    pub pod: PodHandle,
    /// `culvert-loadtest server`
    pub process: Process,
}

impl Server {
    /// Makes one; returns when it listens.
    pub fn make(lab: &Lab, name: &str, node: usize) -> Result<Server> {
        let pod = lab.add_pod(Pod::new(NAMESPACE, name).node(node).service_account(name).app(App::None))?;
        let process = serve(&pod)?;
        Ok(Server { pod, process })
    }

    /// Its own address.
    pub fn address(&self, family: Family, port: u16) -> Result<SocketAddr> {
        let ip = self.pod.ips().into_iter().find(|ip| family.is(ip)).context("pods have both families")?;
        Ok(SocketAddr::new(ip, port))
    }
}

impl Pods {
    /// Makes them, with `culvert-loadtest server` in the server pods.
    pub fn make(lab: &Lab) -> Result<Pods> {
        lab.namespace(NAMESPACE, &[("culvert.io/mesh", "enabled")])?;
        Ok(Pods {
            client: client(lab, "client")?,
            neighbour: client(lab, "neighbour")?,
            near: Server::make(lab, "near", 1)?,
            far: Server::make(lab, "far", 2)?,
        })
    }

    /// The server pod of a place.
    pub fn server(&self, place: Place) -> &PodHandle {
        &self.of(place).pod
    }

    /// The server process of a place.
    pub fn server_process(&self, place: Place) -> &Process {
        &self.of(place).process
    }

    fn of(&self, place: Place) -> &Server {
        match place {
            Place::SameNode => &self.near,
            Place::CrossNode => &self.far,
        }
    }

    /// A server pod's own address.
    pub fn address(&self, place: Place, family: Family, port: u16) -> Result<SocketAddr> {
        self.of(place).address(family, port)
    }
}

/// A pod that opens connections. `tcp_tw_reuse=1` in every plane: at the default even direct TCP stops at 28,232 connections in
/// 60 s to one address, and the bench would measure that.
pub(super) fn client(lab: &Lab, name: &str) -> Result<PodHandle> {
    let pod = lab.add_pod(Pod::new(NAMESPACE, name).service_account(name).app(App::None))?;
    // This file shows the network namespace of the thread that opens it.
    pod.in_netns(|| fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").context("write tcp_tw_reuse"))?;
    Ok(pod)
}

/// Starts the server of a pod; returns when it listens. As root: it raises its own limit of descriptors, nobody else's.
fn serve(pod: &PodHandle) -> Result<Process> {
    let ports = PORTS.map(|port| port.to_string());
    let program = pod.program("server", &["culvert-loadtest", "server"]).args(ports).as_user(User::root());
    let process = pod.spawn(program)?;
    process.wait_stdout("listening", LISTENS).context("start the bench's server")?;
    Ok(process)
}

//! The pods of each way, and the plain ones that they are compared with.

use std::net::IpAddr;

use anyhow::Result;
use lab::{App, Config, MeshConfig, Pod, PodHandle, Service};

use super::Way;
use super::rows::{LEFT_OUT, OWN_SERVICE, Pods};
use crate::support::{self, Clear, Watched};

/// When a black hole is given up here: the setting's default is longer than a test should wait, and shorter than plain pods' patience.
const CONNECT_TIMEOUT_SECONDS: &str = "4";

/// A client and a server.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) client: PodHandle,
    pub(super) server: PodHandle,
    /// Called instead of the server's own address.
    pub(super) vip: Vec<IpAddr>,
}

impl Pair {
    fn of(client: &PodHandle, server: &PodHandle) -> Pair {
        Pair { client: client.clone(), server: server.clone(), vip: Vec::new() }
    }
}

/// A lab with them.
pub(super) struct Stage {
    lab: Watched,
    client: PodHandle,
    near: PodHandle,
    far: PodHandle,
    /// Its ports of [`LEFT_OUT`] are excluded.
    apart: PodHandle,
    /// Two with packet filters of their own.
    guarded: [PodHandle; 2],
    plain: PodHandle,
    beside: PodHandle,
    away: PodHandle,
    vip: Vec<IpAddr>,
}

impl Stage {
    pub(super) fn open() -> Result<Stage> {
        let worker_args = ["--connect-timeout-seconds", CONNECT_TIMEOUT_SECONDS].map(str::to_owned).to_vec();
        let mesh = MeshConfig { worker_args, ..MeshConfig::default() };
        let lab = support::lab(Config::default().name("transparency").mesh(mesh))?;
        let pod = |namespace: &str, name: &str, node| Pod::new(namespace, name).node(node).app(App::None);
        let ports = LEFT_OUT.map(|port| port.to_string()).join(",");
        let apart = pod("shop", "apart", 2)
            .annotation("culvert.io/exclude-inbound-ports", &ports)
            .annotation("culvert.io/exclude-outbound-ports", &ports);
        let stage = Stage {
            client: lab.add_pod(pod("shop", "client", 1))?,
            near: lab.add_pod(pod("shop", "near", 1))?,
            far: lab.add_pod(pod("shop", "far", 2))?,
            apart: lab.add_pod(apart)?,
            guarded: [lab.add_pod(pod("shop", "guarded-near", 1))?, lab.add_pod(pod("shop", "guarded-far", 2))?],
            plain: lab.add_pod(pod("outside", "plain", 1))?,
            beside: lab.add_pod(pod("outside", "beside", 1))?,
            away: lab.add_pod(pod("outside", "away", 2))?,
            vip: lab.service(Service::new("shop", "near").port(OWN_SERVICE, OWN_SERVICE))?,
            lab,
        };
        for outsider in [&stage.plain, &stage.away] {
            stage.lab.allow("a pod outside of the mesh", Clear::of(outsider));
        }
        let [one, other] = &stage.guarded;
        let all = [&stage.client, &stage.near, &stage.far, &stage.apart, one, other];
        crate::talk::everyone_known(&stage.lab, &all)?;
        Ok(stage)
    }

    /// Plain pods as far from each other as those of the way.
    pub(super) fn plain(&self, way: Way) -> Pair {
        match way {
            Way::SameNode => Pair::of(&self.plain, &self.beside),
            Way::Tunnel | Way::In | Way::Out => Pair::of(&self.plain, &self.away),
            // Nobody plays kube-proxy in a lab: an own Service is compared with the own address.
            Way::Own | Way::OwnService => Pair::of(&self.plain, &self.plain),
        }
    }

    /// The pods of the way.
    pub(super) fn mesh(&self, way: Way, pods: Pods) -> Pair {
        let (client, near, far) = match pods {
            Pods::Usual => (&self.client, &self.near, &self.far),
            Pods::Guarded => (&self.client, &self.guarded[0], &self.guarded[1]),
            Pods::GuardedCaller => (&self.guarded[0], &self.near, &self.far),
            Pods::LeftOut => (&self.apart, &self.apart, &self.apart),
        };
        match way {
            Way::SameNode => Pair::of(client, near),
            Way::Tunnel => Pair::of(client, far),
            Way::In => Pair::of(&self.plain, far),
            Way::Out => Pair::of(client, &self.away),
            Way::Own => Pair::of(near, near),
            Way::OwnService => Pair { vip: self.vip.clone(), ..Pair::of(near, near) },
        }
    }

    pub(super) fn down(self) -> Result<()> {
        self.lab.down()
    }
}

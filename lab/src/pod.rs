//! A pod: what to make, and what is recorded of it. The handle to one is in `handle`, the steps that make it in `kubelet`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cni::{Added, Attachment};
use crate::plan;
use crate::proc::Pid;
use crate::spawn::User;

/// A pod to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace; made without labels if it is not there.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// ServiceAccount; made if it is not there.
    pub service_account: String,
    /// 1, 2…
    pub node: usize,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Ports with a TCP readiness probe (the second one: liveness).
    pub probe_ports: Vec<u16>,
    /// What runs in it.
    pub app: App,
    /// As whom the app, and what `exec` starts, runs.
    pub user: User,
    /// In the node's own network, no CNI call.
    pub host_network: bool,
    /// Addresses it must get (one per family), where a test has to know them before.
    pub ips: Vec<IpAddr>,
    /// uid it must have.
    pub uid: Option<String>,
}

/// What runs in a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum App {
    /// Nothing: start something with [`crate::PodHandle::spawn`].
    None,
    /// Our servers, `kind:port` each (see `culvert-lab app --help`).
    Serve(Vec<String>),
    /// Any program; it counts as started at once.
    Command(Vec<String>),
}

/// Port of the echo server of [`App::standard`].
pub const ECHO: u16 = 7000;
/// Port of the server that speaks first.
pub const GREET: u16 = 7001;
/// Port of the checksummed bulk server.
pub const BULK: u16 = 7002;
/// Port of the server that tells the peer's address.
pub const WHOAMI: u16 = 7003;
/// Port of the server that holds connections open and says nothing.
pub const HOLD: u16 = 7004;
/// Port of the server that takes everything and says nothing.
pub const SINK: u16 = 7005;
/// Port of the server that resets every connection.
pub const RESET: u16 = 7006;
/// Port of the HTTP server.
pub const HTTP: u16 = 8080;

impl App {
    /// One server of every kind, on the ports of this module.
    pub fn standard() -> App {
        App::serve(&[
            ("echo", ECHO),
            ("greet", GREET),
            ("bulk", BULK),
            ("whoami", WHOAMI),
            ("hold", HOLD),
            ("sink", SINK),
            ("reset", RESET),
            ("http", HTTP),
            ("udp-echo", ECHO),
        ])
    }

    /// These servers.
    pub fn serve(servers: &[(&str, u16)]) -> App {
        App::Serve(servers.iter().map(|(kind, port)| format!("{kind}:{port}")).collect())
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        match self {
            App::Serve(servers) => {
                let tcp = servers.iter().filter(|s| !s.starts_with("udp"));
                tcp.filter_map(|s| s.rsplit(':').next()?.parse().ok()).collect()
            }
            App::None | App::Command(_) => Vec::new(),
        }
    }
}

impl Pod {
    /// A pod on node 1 with the standard servers, under the service account `default`, label `app: <name>`.
    pub fn new(namespace: &str, name: &str) -> Pod {
        Pod {
            namespace: namespace.into(),
            name: name.into(),
            service_account: "default".into(),
            node: 1,
            labels: BTreeMap::from([("app".into(), name.into())]),
            annotations: BTreeMap::new(),
            probe_ports: Vec::new(),
            app: App::standard(),
            user: User::container(),
            host_network: false,
            ips: Vec::new(),
            uid: None,
        }
    }

    /// On this node.
    pub fn node(mut self, index: usize) -> Pod {
        self.node = index;
        self
    }

    /// With this service account.
    pub fn service_account(mut self, name: &str) -> Pod {
        self.service_account = name.into();
        self
    }

    /// With a label.
    pub fn label(mut self, name: &str, value: &str) -> Pod {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// In the mesh by a label of its own.
    pub fn enrolled(self) -> Pod {
        self.label(crate::objects::MESH, "enabled")
    }

    /// Out of the mesh by a label of its own.
    pub fn plain(self) -> Pod {
        self.label(crate::objects::MESH, "disabled")
    }

    /// With a probed port.
    pub fn probe(mut self, port: u16) -> Pod {
        self.probe_ports.push(port);
        self
    }

    /// With this app.
    pub fn app(mut self, app: App) -> Pod {
        self.app = app;
        self
    }

    /// As this user.
    pub fn user(mut self, user: User) -> Pod {
        self.user = user;
        self
    }

    /// With these addresses.
    pub fn ips(mut self, ips: impl IntoIterator<Item = IpAddr>) -> Pod {
        self.ips = ips.into_iter().collect();
        self
    }

    /// In the node's own network.
    pub fn on_host_network(mut self) -> Pod {
        self.host_network = true;
        self
    }

    /// With an annotation.
    pub fn annotation(mut self, name: &str, value: &str) -> Pod {
        self.annotations.insert(name.into(), value.into());
        self
    }

    /// `namespace/name`
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What is recorded about a pod, before and while it is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    /// As asked for.
    pub pod: Pod,
    /// metadata.uid
    pub uid: String,
    /// Its node.
    pub node: usize,
    /// The sandbox.
    pub container_id: String,
    /// Its network namespace's name in the node's /run/netns.
    pub netns: String,
    /// status.podIPs
    pub ips: Vec<IpAddr>,
    /// The app was started.
    pub running: bool,
    /// The app is ready.
    pub ready: bool,
    /// Deletion has begun.
    pub ending: bool,
    /// The process that holds the sandbox.
    pub pause: Option<Pid>,
    /// What ADD gave, and each plugin's time.
    pub added: Added,
}

impl PodRecord {
    pub(crate) fn new(pod: Pod, node: usize) -> PodRecord {
        let uid = pod.uid.clone().unwrap_or_else(random_uid);
        PodRecord {
            netns: format!("cni-{uid}"),
            container_id: format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>()),
            uid,
            node,
            pod,
            ips: Vec::new(),
            running: false,
            ready: false,
            ending: false,
            pause: None,
            added: Added::default(),
        }
    }

    /// The cgroup kubelet gives the pod, below the lab's.
    pub(crate) fn cgroup(&self) -> String {
        format!("{}/kubepods/besteffort/pod{}", plan::node_name(self.node), self.uid)
    }

    pub(crate) fn attachment(&self) -> Attachment {
        let arg = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Attachment {
            container_id: self.container_id.clone(),
            netns: format!("/run/netns/{}", self.netns),
            ifname: "eth0".into(),
            args: vec![
                arg("IgnoreUnknown", "1"),
                arg("K8S_POD_NAMESPACE", &self.pod.namespace),
                arg("K8S_POD_NAME", &self.pod.name),
                arg("K8S_POD_INFRA_CONTAINER_ID", &self.container_id),
                arg("K8S_POD_UID", &self.uid),
            ],
            ips: self.pod.ips.clone(),
        }
    }

    pub(crate) fn file(&self) -> String {
        format!("pods/{}.json", self.uid)
    }
}

/// A random UUID, version 4.
fn random_uid() -> String {
    let n: u128 = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{n:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_a_version_4_uuid() {
        let uid = random_uid();
        assert_eq!((uid.len(), &uid[14..15]), (36, "4"));
        assert!("89ab".contains(&uid[19..20]), "{uid}");
    }
}

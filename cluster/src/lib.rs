//! A real Kubernetes on one machine: two nodes and a control plane, dual stack, without systemd, a registry or a virtual machine.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let cluster = cluster::Cluster::up(&cluster::Config::default(), |_| {})?;      // dropped = taken down
//! cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
//! println!("{}", cluster.kubectl(&["get", "nodes", "-o", "wide"])?);
//! # Ok(()) }
//! ```
//!
//! The nodes are those of the lab ([`lab::Host`]): namespaces with a pid 1 whose end is a power cut and takes everything along. The
//! control plane runs on the lab's fabric. The machine's own network, firewall, kernel settings and file system are not touched.
//!
//! Read on in the order of what happens: [`parts`] (what is needed), `pki`, `control` (the control plane), `node`, `images`,
//! [`Cluster::up`], `ready` (waiting, and errors that say why); [`mesh`] installs Culvert, [`demo`] a small shop in it.

mod control;
pub mod demo;
mod dns;
mod images;
mod kubectl;
mod make;
pub mod mesh;
mod node;
pub mod parts;
mod pki;
mod ready;
pub mod status;
mod tokens;

pub use images::APPS;
pub use make::{Cluster, Config};

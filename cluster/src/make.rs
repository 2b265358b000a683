//! A cluster from `up` to `down`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::{Families, Host, Lab, Node, plan};

use crate::parts::{INSIDE, Parts};
use crate::pki::Pki;
use crate::{control, images, node, ready};

/// A node is Ready 2 s after its kubelet's start on idle cores; on a busy machine 30 s were seen.
const NODE_DEADLINE: Duration = Duration::from_secs(150);

/// What to make.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name: of the directory under `/run/culvert-lab`, of the control groups. One cluster of a name at a time, no lab of the same.
    pub name: String,
    /// Number of nodes.
    pub nodes: usize,
}

impl Default for Config {
    /// Two nodes, under the name that `cargo xtask cluster` uses when none is given.
    fn default() -> Config {
        Config { name: "cluster".into(), nodes: 2 }
    }
}

/// A cluster that stands. Taken down when dropped, unless [`Cluster::keep`] was called.
pub struct Cluster {
    lab: Lab,
    parts: Parts,
}

impl Cluster {
    /// Makes it; returns when every node is Ready. `told` is called after each step with what was done, for people to see.
    pub fn up(config: &Config, told: impl Fn(&str)) -> Result<Cluster> {
        let parts = Parts::find()?;
        let begun = Instant::now();
        let step = |what: &str| told(&format!("{:5.1} s  {what}", begun.elapsed().as_secs_f64()));
        let host = Host {
            bind: vec![(parts.components.clone(), INSIDE.into())],
            shield: node::SHIELD.map(Into::into).to_vec(),
            plugin: Some(node::portmap()),
        };
        let lab =
            Lab::up(lab::Config::default().name(&config.name).nodes(config.nodes).families(Families::Dual).host(host))?;
        let cluster = Cluster { lab, parts };
        let lab = &cluster.lab;
        step("nodes and their network");
        let pki = Pki::create(&lab.dir().join("pki")).context("make the cluster's keys")?;
        control::certificates(&pki)?;
        lab.nodes().iter().try_for_each(|node| node::certificates(&pki, node.index()))?;
        step("keys and certificates");
        let api = control::start(lab)?;
        step("etcd; the API server is starting");
        images::write(lab, &cluster.parts)?;
        step("images");
        cluster.on_each_node(|node| node::runtime(lab, node))?;
        step("containerd on every node, images loaded");
        control::finish(lab, &api, || cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok())?;
        step("API server ready, controller manager and scheduler started");
        lab.nodes().iter().try_for_each(|node| node::agents(lab, node))?;
        cluster.route_services()?;
        lab.nodes().iter().try_for_each(|node| cluster.wait_ready(node, None))?;
        step(&format!("{} nodes Ready", config.nodes));
        cluster.start_dns()?;
        step("DNS started");
        Ok(cluster)
    }

    /// A cluster that another process made and let stay.
    pub fn attach(name: &str) -> Result<Cluster> {
        let parts = Parts::find()?;
        let lab = Lab::attach(name).with_context(|| format!("find cluster {name}"))?;
        Ok(Cluster { lab, parts })
    }

    /// Lets it stand after this process.
    pub fn keep(self) -> Result<()> {
        self.lab.keep()
    }

    /// Takes it down and says whether everything went.
    pub fn down(self) -> Result<()> {
        self.lab.down()
    }

    /// Its nodes, its control plane (the fabric), its programs and its directory.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Programs of this machine that it uses.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Gives every node an image, as the crate `image` writes it.
    pub fn load(&self, archive: &Path) -> Result<()> {
        self.on_each_node(|node| images::load_copy(&self.lab, node, archive))
    }

    /// Boots a node again after [`Node::power_cut`]: same disk, same name. Returns when it is Ready; how long that took.
    pub fn boot(&self, index: usize) -> Result<Duration> {
        let begun = Instant::now();
        let since = std::time::SystemTime::now();
        self.lab.boot(index)?;
        let node = self.lab.node(index);
        node::runtime(&self.lab, node)?;
        node::agents(&self.lab, node)?;
        self.route_services()?;
        self.wait_ready(node, Some(since))?;
        Ok(begun.elapsed())
    }

    /// The control plane reaches Services through the first node that runs: only nodes have kube-proxy's rules. What is there already
    /// is no error.
    fn route_services(&self) -> Result<()> {
        let Some(node) = self.lab.nodes().iter().find(|node| node.init().is_alive()) else { return Ok(()) };
        let [v4, v6] = control::SERVICES;
        let (via4, via6, port) =
            (plan::node_v4(node.index()), plan::node_v6(node.index()), plan::port_name(node.index()));
        let routes = format!("route replace {v4} via {via4} dev {port}\nroute replace {v6} via {via6} dev {port}\n");
        self.lab.fabric().ip(&routes).context("route to the Services")
    }

    /// Waits until a node says Ready, by a status that its kubelet wrote after `since`: an old one stays true for 50 s after its end.
    fn wait_ready(&self, node: &Node, since: Option<std::time::SystemTime>) -> Result<()> {
        let kubelet = node::kubelet_of(&self.lab, node.index()).context("the kubelet was started")?;
        let since = since.map(ready::second).unwrap_or_default();
        let is_ready = || {
            let found = self.get(&["node", node.name()]).ok()?;
            ready::is_ready(&found, &since).then_some(())
        };
        let what = format!("{} to be Ready", node.name());
        ready::until(&kubelet, &what, NODE_DEADLINE, ready::now_and_then(is_ready))
    }

    /// The same on every node at once; the first failure is the answer.
    fn on_each_node(&self, work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = self.lab.nodes().iter().map(|node| scope.spawn(|| work(node))).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }
}

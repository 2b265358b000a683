//! A node: namespaces with a pid 1, a network plugged into the fabric, and programs that run in it. The fabric is one too.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::cni::{self, Network};
use crate::config::Config;
use crate::init::{self, Boot};
use crate::plan::{self, Families};
use crate::proc::{Pid, Process};
use crate::spawn::{self, Output, Place, Program};
use crate::state::Dir;
use crate::{binaries, ns, proc, wait};

/// Longest time a program run by `exec` may take.
pub const EXEC_DEADLINE: Duration = Duration::from_secs(60);

/// One node of a lab, or its fabric.
pub struct Node {
    lab: Dir,
    name: String,
    index: usize,
    families: Families,
    init: Mutex<Pid>,
}

/// A pid 1 that was started and has not yet said that its node stands.
pub(crate) struct Booting {
    node: Node,
    ready: BufReader<std::process::ChildStdout>,
    log: std::path::PathBuf,
}

impl Node {
    /// Starts a node's pid 1.
    pub(crate) fn boot(lab: &Dir, index: usize, config: &Config) -> Result<Booting> {
        let (name, families) = (plan::node_name(index), config.families);
        let host = config.host.clone();
        let plugin = match &host {
            Some(host) => host.plugin.clone(),
            None => config.mesh.as_ref().and_then(|mesh| mesh.netconf()),
        };
        let conflist = (index > 0).then(|| cni::conflist(index, families, plugin));
        let boot = Boot { lab: lab.clone(), name: name.clone(), binaries: binaries::dir()?, conflist, host };
        let log = lab.join(format!("logs/{name}-init.log"));
        let mut command = Command::new(binaries::lab()?);
        command.arg("node-init").arg(serde_json::to_string(&boot)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(fs::File::create(&log)?);
        let mut child = ns::spawn_isolated(&mut command)?;
        let out = child.stdout.take().context("a pipe was asked for")?;
        let init = proc::adopt(child)?;
        let node = Node { lab: lab.clone(), name, index, families, init: Mutex::new(init) };
        Ok(Booting { node, ready: BufReader::new(out), log })
    }

    /// A node of a lab that another process made.
    pub(crate) fn attach(lab: &Dir, index: usize, families: Families) -> Result<Node> {
        let name = plan::node_name(index);
        let init: Pid = lab.read(format!("init/{name}.json"))?;
        ensure!(init.is_alive(), "{name} of lab {} has ended: take the lab down (culvert-lab down)", lab.name());
        Ok(Node { lab: lab.clone(), name, index, families, init: Mutex::new(init) })
    }

    /// `node-1`…, or `fabric`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 1, 2…; 0 is the fabric.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its own addresses.
    pub fn ips(&self) -> Vec<std::net::IpAddr> {
        plan::node_ips(self.index, self.families)
    }

    /// Its pid 1.
    pub fn init(&self) -> Pid {
        *self.init.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its network namespace, as a path seen from outside.
    pub fn netns(&self) -> std::path::PathBuf {
        self.init().ns("net")
    }

    pub(crate) fn place(&self) -> Place {
        let init = self.init();
        Place { init, net: init.ns("net"), mount: init.ns("mnt"), cgroup: format!("{}/system", self.name) }
    }

    /// The container network of this node, for tests that call CNI verbs by hand.
    pub fn network<T>(&self, work: impl FnOnce(&Network<'_>) -> Result<T>) -> Result<T> {
        work(&Network { lab: &self.lab, node: &self.place(), name: &self.name })
    }

    /// Starts a program in the node's own namespaces.
    pub fn spawn(&self, program: Program) -> Result<Process> {
        let at = self.place();
        let now = spawn::start(&self.lab, &at, &program)?;
        Ok(Process::started(program, at, self.lab.clone(), now))
    }

    /// Runs a program in the node's own namespaces, as root, to its end.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        spawn::exec(&self.lab, &self.place(), &Program::new("exec", argv), b"", EXEC_DEADLINE)
    }

    /// The same with this terminal.
    pub fn exec_attached(&self, argv: &[&str]) -> Result<crate::proc::Exit> {
        spawn::exec_attached(&self.lab, &self.place(), &Program::new("exec", argv))
    }

    /// Runs lines of `ip -batch` in the node's network namespace.
    pub fn ip(&self, lines: &str) -> Result<()> {
        ns::ip_batch(&self.netns(), lines)
    }

    /// Runs code of the caller in the node's network namespace (sockets made there stay there).
    pub fn in_netns<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        ns::in_netns(&self.netns(), work)
    }

    /// Reads a file as the node sees it.
    pub fn read(&self, path: &str) -> Result<String> {
        let path = self.init().root(path);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Pulls the plug: everything that runs on the node ends at once, nothing is told.
    pub fn power_cut(&self) -> Result<()> {
        let init = self.init();
        init.signal(Signal::KILL);
        wait::until_true(&format!("{} to lose power", self.name), Duration::from_secs(10), || {
            proc::reap_ended();
            !init.is_alive()
        })
    }

    /// Takes over a freshly booted pid 1 after a power cut; the disk (/var/lib) is the old one.
    pub(crate) fn rebooted(&self, fresh: Node) {
        *self.init.lock().unwrap_or_else(PoisonError::into_inner) = fresh.init();
    }

    /// Tells pid 1 that the node may outlive the lab.
    pub(crate) fn let_stay(&self) -> Result<()> {
        let mut stdin =
            proc::take_stdin(self.init()).with_context(|| format!("{} was booted by another process", self.name))?;
        stdin.write_all(&[init::STAY]).with_context(|| format!("tell {} to stay", self.name))
    }
}

impl Booting {
    /// Waits until the node stands, then sets the kernel's network settings in it.
    pub(crate) fn finish(mut self) -> Result<Node> {
        let mut line = String::new();
        self.ready.read_line(&mut line)?;
        if line.trim() != init::READY {
            anyhow::bail!(
                "{} did not come up: {}",
                self.node.name,
                fs::read_to_string(&self.log).unwrap_or_default().trim()
            );
        }
        let families = self.node.families;
        self.node.in_netns(|| settings(families)).with_context(|| format!("settings of {}", self.node.name))?;
        Ok(self.node)
    }
}

/// Forwarding on, IPv6 duplicate address detection off (it costs seconds, and nobody else is here). Only in our own netns:
/// these files show the namespace of the thread that opens them.
fn settings(families: Families) -> Result<()> {
    let set = |name: &str, value: &str| {
        let path = format!("/proc/sys/net/{name}");
        fs::write(&path, value).with_context(|| format!("write {path}"))
    };
    set("ipv4/ip_forward", "1")?;
    if families.v6() {
        for name in ["all", "default"] {
            set(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
            set(&format!("ipv6/conf/{name}/forwarding"), "1")?;
        }
    }
    Ok(())
}

/// Takes what is left of a node's port off the fabric; the kernel removes it by itself some time after a power cut.
pub(crate) fn unplug(fabric: &Node, index: usize) -> Result<()> {
    let gone = |error: &anyhow::Error| format!("{error:#}").contains("Cannot find device");
    match ns::ip_batch(&fabric.netns(), &format!("link del n{index}\n")) {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Plugs a node into the fabric.
pub(crate) fn plug(fabric: &Node, node: &Node, families: Families) -> Result<()> {
    ns::ip_batch(&fabric.netns(), &plan::fabric_port(node.index, node.init().pid, families))
        .with_context(|| format!("plug {} into the fabric", node.name))?;
    ns::ip_batch(&node.netns(), &plan::node_side(node.index, families))
        .with_context(|| format!("network of {}", node.name))
}

//! A pod that was made: what it is, what it counted, and programs run in it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::cni::Added;
use crate::lab::Shared;
use crate::pod::PodRecord;
use crate::proc::{Pid, Process};
use crate::spawn::{self, Output, Place, Program, User};
use crate::{cgroup, node, ns};

/// A pod of the lab. Clones are the same pod.
#[derive(Clone)]
pub struct PodHandle {
    pub(crate) lab: Arc<Shared>,
    pub(crate) state: Arc<Mutex<PodState>>,
}

pub(crate) struct PodState {
    pub(crate) record: PodRecord,
    pub(crate) pause: Option<Process>,
    pub(crate) app: Option<Process>,
}

impl PodHandle {
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut PodState) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is known about it now.
    pub fn record(&self) -> PodRecord {
        self.with(|s| s.record.clone())
    }

    /// metadata.uid
    pub fn uid(&self) -> String {
        self.with(|s| s.record.uid.clone())
    }

    /// `namespace/name`
    pub fn key(&self) -> String {
        self.with(|s| s.record.pod.key())
    }

    /// Its node's index.
    pub fn node(&self) -> usize {
        self.with(|s| s.record.node)
    }

    /// Its addresses.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.with(|s| s.record.ips.clone())
    }

    /// Its IPv4 address; panics if the lab has none.
    pub fn v4(&self) -> IpAddr {
        self.ips().into_iter().find(IpAddr::is_ipv4).expect("the lab gives its pods IPv4")
    }

    /// Its IPv6 address; panics if the lab has none.
    pub fn v6(&self) -> IpAddr {
        self.ips().into_iter().find(IpAddr::is_ipv6).expect("the lab gives its pods IPv6")
    }

    /// Its network namespace, as a path seen from outside.
    pub fn netns(&self) -> PathBuf {
        self.with(|s| self.lab.netns_of(&s.record))
    }

    /// The node's end of its veth pair, as the bridge plugin named it.
    pub fn host_veth(&self) -> Option<String> {
        let added = self.added();
        let interfaces = added.result["interfaces"].as_array()?;
        interfaces.iter().filter_map(|i| i["name"].as_str()).find(|n| n.starts_with("veth")).map(str::to_owned)
    }

    /// What ADD gave and how long each plugin took.
    pub fn added(&self) -> Added {
        self.with(|s| s.record.added.clone())
    }

    /// Its app.
    pub fn app(&self) -> Option<Process> {
        self.with(|s| s.app.clone())
    }

    /// The process that holds the sandbox.
    pub fn pause(&self) -> Option<Process> {
        self.with(|s| s.pause.clone())
    }

    /// What its servers counted: `connections`, `bytes`, also per port. Zero before the app started.
    pub fn stats(&self) -> crate::apps::stats::Stats {
        crate::apps::stats::Stats::read(&self.stats_file())
    }

    /// Where its servers count.
    pub fn stats_file(&self) -> PathBuf {
        self.lab.dir.join(format!("pods/{}-stats", self.uid()))
    }

    /// Bytes of memory charged to the pod, where the machine counts them.
    pub fn memory(&self) -> Option<u64> {
        let group = self.with(|s| s.record.cgroup());
        cgroup::memory_used(self.lab.dir.name(), &group)
    }

    /// Its cgroup, below the lab's.
    pub fn cgroup(&self) -> String {
        self.with(|s| s.record.cgroup())
    }

    pub(crate) fn place(&self) -> Result<Place> {
        let (record, key) = (self.record(), self.key());
        let node = self.lab.node(record.node)?;
        let pause = record.pause.filter(Pid::is_alive);
        let mount = pause.map_or_else(|| node.init().ns("mnt"), |p| p.ns("mnt"));
        let net = self.lab.netns_of(&record);
        anyhow::ensure!(net.exists(), "pod {key} has no network namespace (any more)");
        Ok(Place { init: node.init(), net, mount, cgroup: record.cgroup() })
    }

    /// A program as it would run in this pod: the pod's user, a container's cgroup.
    pub fn program(&self, name: &str, argv: &[&str]) -> Program {
        let (record, key) = (self.record(), self.key());
        let mut program =
            Program::new(format!("{}-{name}", key.replace('/', "-")), argv).as_user(record.pod.user.clone());
        program.cgroup = Some(format!("{}/{}", record.cgroup(), record.container_id));
        program
    }

    /// Starts a program in the pod.
    pub fn spawn(&self, program: Program) -> Result<Process> {
        let at = self.place()?;
        let now = spawn::start(&self.lab.dir, &at, &program).with_context(|| format!("in pod {}", self.key()))?;
        Ok(Process::started(program, at, self.lab.dir.clone(), now))
    }

    /// Runs a program in the pod to its end, as the pod's user.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        spawn::exec(&self.lab.dir, &self.place()?, &self.program("exec", argv), b"", node::EXEC_DEADLINE)
    }

    /// The same as another user: root with NET_ADMIN may change the pod's own rules.
    pub fn exec_as(&self, user: User, argv: &[&str]) -> Result<Output> {
        let program = self.program("exec", argv).as_user(user);
        spawn::exec(&self.lab.dir, &self.place()?, &program, b"", node::EXEC_DEADLINE)
    }

    /// Runs code of the caller in the pod's network namespace.
    pub fn in_netns<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        ns::in_netns(&self.netns(), work)
    }

    /// The same with this terminal.
    pub fn exec_attached(&self, argv: &[&str]) -> Result<crate::proc::Exit> {
        let program = self.program("exec", argv).as_user(User::container());
        spawn::exec_attached(&self.lab.dir, &self.place()?, &program)
    }

    /// Starts one of our clients in the background (`culvert-lab client …`), with a pipe to its input.
    pub fn client(&self, name: &str, args: &[&str]) -> Result<Process> {
        self.spawn(self.program(name, &["culvert-lab", "client"]).args(args.iter().copied()).with_stdin())
    }

    /// Runs one of our clients to its end; its report.
    pub fn run_client(&self, args: &[&str]) -> Result<serde_json::Value> {
        let argv: Vec<&str> = ["culvert-lab", "client"].iter().chain(args).copied().collect();
        let output = self.exec(&argv)?;
        serde_json::from_str(output.stdout.trim())
            .with_context(|| format!("client {args:?} in {}: {}{}", self.key(), output.stdout, output.stderr))
    }
}

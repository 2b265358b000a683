//! The mesh of a lab: its processes and what they say of themselves (logs, access log, metrics, admin, events).

mod config;
mod start;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

pub use config::{CONTROL_PLANE_NAME, CONTROL_PLANE_UID, MeshConfig, ROOT_NAMESPACE, WORKER_UID};

use crate::handle::PodHandle;
use crate::lab::{Lab, Shared};
use crate::node::Node;
use crate::proc::{Pid, Process};
use crate::{plan, wait};

/// How long the mesh's processes may take to come up.
pub const READY_DEADLINE: Duration = Duration::from_secs(20);

/// The mesh of a lab.
pub struct Mesh {
    lab: Arc<Shared>,
    config: MeshConfig,
    control_plane: Mutex<Option<Process>>,
    nodes: Mutex<BTreeMap<usize, OnNode>>,
}

/// The mesh's processes on one node.
#[derive(Clone)]
struct OnNode {
    watcher: Process,
    proxy: PodHandle,
    keeper: Process,
    worker: Process,
}

/// The name of a node's node-proxy pod.
fn proxy_name(index: usize) -> String {
    format!("node-proxy-{index}")
}

impl Mesh {
    /// Finds the processes of a lab that another process made.
    pub(crate) fn attach(lab: &Lab, config: &MeshConfig, processes: &BTreeMap<String, Process>) -> Result<Mesh> {
        let find =
            |name: String| processes.get(&name).cloned().with_context(|| format!("process {name} is not recorded"));
        let mesh = Mesh::new(lab, config);
        if config.control_plane {
            *lock(&mesh.control_plane) = Some(find("control-plane".into())?);
        }
        for index in (1..=lab.nodes().len()).filter(|_| config.nodes) {
            let proxy = lab.pod(ROOT_NAMESPACE, &proxy_name(index)).context("the node-proxy pod is not recorded")?;
            let on_node = OnNode {
                watcher: find(format!("pod-watcher-{index}"))?,
                proxy,
                keeper: find(format!("keeper-{index}"))?,
                worker: find(format!("worker-{index}"))?,
            };
            lock(&mesh.nodes).insert(index, on_node);
        }
        Ok(mesh)
    }

    fn new(lab: &Lab, config: &MeshConfig) -> Mesh {
        let (control_plane, nodes) = (Mutex::new(None), Mutex::default());
        Mesh { lab: lab.shared.clone(), config: config.clone(), control_plane, nodes }
    }

    fn on(&self, node: usize) -> OnNode {
        lock(&self.nodes).get(&node).cloned().expect("the mesh runs on this node")
    }

    /// Its settings.
    pub fn config(&self) -> &MeshConfig {
        &self.config
    }

    /// The control plane; panics if the lab has none.
    pub fn control_plane(&self) -> Process {
        lock(&self.control_plane).clone().expect("MeshConfig::control_plane is on")
    }

    /// pod-watcher of a node.
    pub fn watcher(&self, node: usize) -> Process {
        self.on(node).watcher
    }

    /// The keeper of a node.
    pub fn keeper(&self, node: usize) -> Process {
        self.on(node).keeper
    }

    /// The worker's supervisor on a node; the worker itself is [`Mesh::worker_child`].
    pub fn worker(&self, node: usize) -> Process {
        self.on(node).worker
    }

    /// Every process of the mesh.
    pub fn processes(&self) -> Vec<Process> {
        let mut all: Vec<Process> = lock(&self.control_plane).iter().cloned().collect();
        for on in lock(&self.nodes).values() {
            all.extend([on.watcher.clone(), on.keeper.clone(), on.worker.clone()]);
        }
        all
    }

    /// The process that moves the bytes: the supervisor's child.
    pub fn worker_child(&self, node: usize) -> Result<Pid> {
        let supervisor = self.worker(node);
        wait::until(&format!("a worker under supervisor {}", supervisor.pid()), READY_DEADLINE, || {
            supervisor.id().children().into_iter().next()
        })
    }

    /// The pod whose network keeper and worker have.
    pub fn proxy_pod(&self, node: usize) -> PodHandle {
        self.on(node).proxy
    }

    pub(crate) fn is_proxy_pod(&self, pod: &PodHandle) -> bool {
        pod.with(|s| s.record.pod.namespace == ROOT_NAMESPACE && s.record.pod.name.starts_with("node-proxy-"))
    }

    /// Waits until a node's worker says it is ready.
    pub fn wait_ready(&self, node: usize) -> Result<()> {
        let on = self.on(node);
        let mut last = String::new();
        wait::until(&format!("worker {node} to be ready"), READY_DEADLINE, || {
            if !on.worker.is_alive() {
                return Some(on.worker.wait(READY_DEADLINE).and_then(|exit| bail!("worker {node} ended: {exit:?}")));
            }
            last = match self.proxy_get(node, 15021, "/healthz/ready") {
                Ok((200, _)) => return Some(Ok(())),
                Ok((code, body)) => format!("{code} {body}"),
                Err(error) => format!("{error:#}"),
            };
            None
        })
        .flatten()
        .with_context(|| {
            let (worker, keeper, watcher) = (on.worker.tail(15), on.keeper.tail(8), on.watcher.tail(8));
            format!("last answer: {last}\nworker:\n{worker}\nkeeper:\n{keeper}\npod-watcher:\n{watcher}")
        })
    }

    /// Asks a node's worker through its own `admin` verb.
    pub fn admin(&self, node: usize, args: &[&str]) -> Result<Value> {
        let mut argv = vec!["node-proxy", "admin", "--admin-socket", "/run/node-proxy-worker/admin.sock", "-o", "json"];
        argv.extend(args);
        Ok(serde_json::from_str(&self.lab.node(node)?.exec(&argv)?.ok()?)?)
    }

    /// Asks a node's pod-watcher through its own `admin` verb; text, for `rules` is meant for people.
    pub fn watcher_admin(&self, node: usize, args: &[&str]) -> Result<String> {
        let mut argv = vec!["pod-watcher", "admin", "--admin-socket", "/run/culvert/watcher-admin.sock"];
        argv.extend(args);
        self.lab.node(node)?.exec(&argv)?.ok()
    }

    /// The access log of a node: one object per connection that has ended.
    pub fn access_log(&self, node: usize) -> Vec<Value> {
        self.worker(node).stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line of a node's access log.
    pub fn wait_access(&self, node: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let found =
            wait::until(what, Duration::from_secs(5), || self.access_log(node).into_iter().find(|line| wanted(line)));
        found.with_context(|| {
            let log = self.worker(node).stdout();
            let lines: Vec<&str> = log.lines().collect();
            format!("the access log of node {node} ends:\n{}", lines[lines.len().saturating_sub(10)..].join("\n"))
        })
    }

    /// Metrics of a node's worker, as text.
    pub fn worker_metrics(&self, node: usize) -> Result<String> {
        Ok(self.proxy_get(node, 15020, "/metrics")?.1)
    }

    /// Metrics of a node's pod-watcher.
    pub fn watcher_metrics(&self, node: usize) -> Result<String> {
        let node = self.lab.node(node)?;
        Ok(get(node, SocketAddr::new(node.ips()[0], 15025), "/metrics")?.1)
    }

    /// Metrics of the control plane.
    pub fn control_plane_metrics(&self) -> Result<String> {
        Ok(get(&self.lab.fabric, SocketAddr::new(self.control_plane_ip(), 15014), "/metrics")?.1)
    }

    /// Events that a node's pod-watcher wrote, oldest first.
    pub fn events(&self, node: usize) -> Result<Vec<Value>> {
        let text = self.lab.node(node)?.read("/run/culvert/status/events.jsonl").unwrap_or_default();
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// The observed state of a pod, as pod-watcher wrote it; `None` until it has.
    pub fn pod_status(&self, pod: &PodHandle) -> Option<Value> {
        let node = self.lab.node(pod.node()).ok()?;
        serde_json::from_str(&node.read(&format!("/run/culvert/status/pods/{}.json", pod.uid())).ok()?).ok()
    }

    fn proxy_get(&self, node: usize, port: u16, path: &str) -> Result<(u16, String)> {
        let ip = *self.on(node).proxy.ips().first().context("node-proxy has no address")?;
        get(self.lab.node(node)?, SocketAddr::new(ip, port), path)
    }

    fn control_plane_ip(&self) -> IpAddr {
        if self.lab.families.v4() { plan::CONTROL_PLANE_V4.into() } else { plan::CONTROL_PLANE_V6.into() }
    }
}

/// A plain HTTP GET from a node's own network: status and body.
pub fn get(node: &Node, to: SocketAddr, path: &str) -> Result<(u16, String)> {
    let answer = node.in_netns(|| {
        let deadline = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&to, deadline)?;
        stream.set_read_timeout(Some(deadline))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{to} does not speak HTTP"))?;
    let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).context("no status code")?;
    let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        true => unchunk(body)?,
        false => body.to_owned(),
    };
    Ok((code, body))
}

fn unchunk(mut body: &str) -> Result<String> {
    let mut text = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("a chunk without a size")?;
        let size =
            usize::from_str_radix(size.split(';').next().unwrap_or(size).trim(), 16).context("a chunk's size")?;
        if size == 0 {
            return Ok(text);
        }
        ensure!(rest.len() >= size + 2 && rest.is_char_boundary(size), "a chunk was cut");
        text += &rest[..size];
        body = &rest[size + 2..];
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_is_put_together() {
        assert_eq!(unchunk("3\r\nabc\r\n2;x=1\r\nde\r\n0\r\n\r\n").expect("well formed"), "abcde");
        assert!(unchunk("9\r\nabc\r\n").is_err());
    }
}

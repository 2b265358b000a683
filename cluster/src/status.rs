//! What stands: the programs and their logs, the nodes and what the API server says of them.

use std::fmt;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::make::Cluster;
use crate::ready;

/// Everything `cargo xtask cluster status` shows.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The cluster's name.
    pub name: String,
    /// Why the API server did not answer, if it did not.
    pub error: Option<String>,
    /// One row per node.
    pub nodes: Vec<NodeStatus>,
    /// One row per program of the cluster itself.
    pub programs: Vec<ProgramStatus>,
}

/// A node.
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    /// `node-1`…
    pub name: String,
    /// Its own addresses.
    pub addresses: Vec<String>,
    /// Whether its pid 1 runs.
    pub powered: bool,
    /// The condition Ready, as the API server has it.
    pub ready: bool,
    /// Pods bound to it that have not ended.
    pub pods: usize,
    /// kubelet's version.
    pub version: String,
}

/// A program of the cluster.
#[derive(Debug, Serialize)]
pub struct ProgramStatus {
    /// Its name; the number is that of its node.
    pub name: String,
    /// As this machine counts it.
    pub pid: u32,
    /// Whether it runs.
    pub running: bool,
    /// Proportional memory in bytes (`smaps_rollup`), while it runs.
    pub memory: Option<u64>,
    /// Where its log is.
    pub log: String,
}

/// Looks.
pub fn of(cluster: &Cluster) -> Status {
    let lab = cluster.lab();
    let (nodes, pods) = (cluster.get(&["nodes"]), cluster.get(&["pods", "--all-namespaces"]));
    let error = nodes.as_ref().err().map(|error| format!("{error:#}"));
    let (nodes, pods) = (nodes.unwrap_or_default(), pods.unwrap_or_default());
    let items = |list: &Value| list["items"].as_array().cloned().unwrap_or_default();
    let nodes = lab.nodes().iter().map(|node| {
        let object = items(&nodes).into_iter().find(|item| item["metadata"]["name"] == node.name()).unwrap_or_default();
        let here = |pod: &&Value| {
            let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            pod["spec"]["nodeName"] == node.name() && !ended
        };
        NodeStatus {
            name: node.name().to_owned(),
            addresses: node.ips().iter().map(ToString::to_string).collect(),
            powered: node.init().is_alive(),
            ready: ready::is_ready(&object, ""),
            pods: items(&pods).iter().filter(here).count(),
            version: object["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or("-").to_owned(),
        }
    });
    let programs = lab.processes().into_values().map(|process| ProgramStatus {
        name: process.name().to_owned(),
        pid: process.pid(),
        running: process.is_alive(),
        memory: process.id().pss().filter(|_| process.is_alive()),
        log: format!("{}.log", process.log_base().display()),
    });
    Status { name: lab.name().to_owned(), error, nodes: nodes.collect(), programs: programs.collect() }
}

impl Status {
    /// Whether every program runs and every node is Ready.
    pub fn is_well(&self) -> bool {
        self.error.is_none()
            && self.nodes.iter().all(|node| node.ready)
            && self.programs.iter().all(|program| program.running)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |yes: bool| if yes { "yes" } else { "NO" }.to_owned();
        let mut nodes = table(&["node", "addresses", "powered", "ready", "pods", "version"]);
        for node in &self.nodes {
            let NodeStatus { name, addresses, powered, ready, pods, version } = node;
            let row =
                [name.clone(), addresses.join(" "), word(*powered), word(*ready), pods.to_string(), version.clone()];
            nodes.add_row(row.to_vec());
        }
        let mut programs = table(&["program", "pid", "running", "memory", "log"]);
        for program in &self.programs {
            let ProgramStatus { name, pid, running, memory, log } = program;
            let memory = memory.map_or_else(|| "-".into(), |bytes| format!("{:.0} MB", bytes as f64 / 1e6));
            programs.add_row(vec![name.clone(), pid.to_string(), word(*running), memory, log.clone()]);
        }
        writeln!(f, "{nodes}\n{programs}")?;
        match &self.error {
            Some(error) => write!(f, "the API server does not answer: {error}"),
            None => write!(f, "cluster {} is {}", self.name, if self.is_well() { "well" } else { "not well" }),
        }
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    table
}

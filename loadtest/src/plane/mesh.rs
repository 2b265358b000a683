//! The planes `mesh` and `mesh-quiet`: Culvert as its DaemonSets start it, and the same with its telemetry off.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Config, Lab, MeshConfig, Pid, PodHandle, binaries, wait};

use super::{NAMESPACE, Plane, Pods, Room};

/// Longest until a fresh worker has its node's pods: tens of milliseconds, unless the machine is busy.
const FRESH: Duration = Duration::from_secs(20);

struct Mesh {
    name: &'static str,
    about: Vec<(String, String)>,
    pods: Pods,
    lab: Lab,
}

/// Makes it; `quiet`: nothing is recorded per connection.
pub(super) fn up(lab: &str, quiet: bool) -> Result<impl Plane + use<>> {
    let worker_args = if quiet { silence(&worker_help()?) } else { Vec::new() };
    let (name, access_log) = if quiet { ("mesh-quiet", "off") } else { ("mesh", "json") };
    let more = worker_args.iter().fold(String::new(), |all, arg| all + " " + arg);
    let said = format!("arguments of the DaemonSets with --access-log {access_log}{more}");
    let about = vec![(name.to_owned(), format!("node-proxy {}; {said}", env!("CARGO_PKG_VERSION")))];
    let config = MeshConfig { access_log: access_log.into(), worker_args, ..MeshConfig::default() };
    let lab = Lab::up(Config::default().name(lab).mesh(config))?;
    Ok(Mesh { name, about, pods: Pods::make(&lab)?, lab })
}

/// What the worker that will run says of its own flags.
fn worker_help() -> Result<String> {
    let binary = binaries::own("node-proxy").context("node-proxy is not built")?;
    let output = Command::new(&binary).args(["worker", "--help"]).output();
    let output = output.with_context(|| format!("run {}", binary.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What turns metrics per connection off, if this worker can.
fn silence(help: &str) -> Vec<String> {
    let knows = help.split_whitespace().any(|word| word == "--connection-metrics");
    if knows { vec!["--connection-metrics".into(), "off".into()] } else { Vec::new() }
}

impl Plane for Mesh {
    fn name(&self) -> &str {
        self.name
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
        self.lab.mesh().worker_child(pod.node()).map(Some)
    }

    fn processes(&self, node: usize) -> Result<Vec<(String, Pid)>> {
        let mesh = self.lab.mesh();
        Ok(vec![
            ("worker".into(), mesh.worker_child(node)?),
            ("supervisor".into(), mesh.worker(node).id()),
            ("keeper".into(), mesh.keeper(node).id()),
            ("pod-watcher".into(), mesh.watcher(node).id()),
        ])
    }

    fn fresh(&self) -> Result<()> {
        let mesh = self.lab.mesh();
        for node in [1, 2] {
            mesh.watcher(node).restart()?;
            mesh.worker(node).restart()?;
        }
        for node in [1, 2] {
            mesh.wait_ready(node)?;
            let pods = self
                .lab
                .pods()
                .into_iter()
                .filter(|pod| pod.node() == node && pod.key().starts_with(NAMESPACE))
                .count();
            wait::until_true(&format!("the worker of node {node} to have its pods"), FRESH, || {
                let has = mesh.admin(node, &["pods"]).unwrap_or_default().as_array().map_or(0, Vec::len);
                has >= pods && mesh.watcher_admin(node, &["pods"]).is_ok()
            })?;
        }
        Ok(())
    }

    /// As the worker of node 1 says; the one of node 2 has the same limits. It counts two descriptors for each, whether both are
    /// sockets of its own or one is a tunnel's. A pod may take half, and some are in use or just closed.
    fn room(&self) -> Result<Room> {
        let stats = self.lab.mesh().admin(1, &["stats"])?;
        let left = stats["places_left"].as_u64().context("places_left in the worker's stats")?;
        let left = usize::try_from(left)?.saturating_sub(100);
        Ok(Room { all: left, each: left / 2 })
    }

    fn down(self: Box<Self>) -> Result<()> {
        self.lab.down()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flag_that_the_worker_knows_is_given_to_it() {
        assert_eq!(silence("Options:\n      --access-log <ACCESS_LOG>\n"), Vec::<String>::new());
        assert_eq!(silence("      --connection-metrics <CONNECTION_METRICS>\n"), ["--connection-metrics", "off"]);
        assert_eq!(silence("--connection-metrics-path"), Vec::<String>::new());
    }
}

//! Settings of a lab's mesh. The defaults are those of the DaemonSets, with limits a machine of two cores can hold.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::plan;

/// Namespace of the mesh's own pods; never enrolled.
pub const ROOT_NAMESPACE: &str = "culvert-system";
/// The worker's user.
pub const WORKER_UID: u32 = 65532;
/// The control plane's user.
pub const CONTROL_PLANE_UID: u32 = 65531;
/// The name in the control plane's own certificate.
pub const CONTROL_PLANE_NAME: &str = "control-plane.culvert-system.svc";
/// Where pod-watcher listens for the CNI plugin.
pub const CNI_SOCKET: &str = "/run/culvert/cni.sock";

/// Settings of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshConfig {
    /// Start the control plane. Without it workers follow `/var/lib/culvert/node-proxy` alone.
    pub control_plane: bool,
    /// Start pod-watcher, keeper and worker on the nodes. Without, only the plugin is in the chain.
    pub nodes: bool,
    /// `auto`, `owned` or `plain`.
    pub table_mode: String,
    /// `keep` or `close`.
    pub on_enroll: String,
    /// `permissive` or `strict`.
    pub default_mode: String,
    /// Trust domain.
    pub trust_domain: String,
    /// Namespaces that are never enrolled.
    pub excluded: Vec<String>,
    /// Seconds the plugin waits for an answer.
    pub cni_timeout: u64,
    /// The worker's access log on its standard output: `text`, `json` or `off`.
    pub access_log: String,
    /// The worker's threads; its own choice when absent.
    pub threads: Option<usize>,
    /// Memory limit of the worker, bytes.
    pub worker_memory: Option<u64>,
    /// Memory limit of the keeper, bytes.
    pub keeper_memory: Option<u64>,
    /// pod-watcher puts the plugin into each node's chain, as on a real node; otherwise it is there from the start.
    pub install_chain: bool,
    /// More arguments for pod-watcher.
    pub watcher_args: Vec<String>,
    /// More arguments for the keeper.
    pub keeper_args: Vec<String>,
    /// More arguments for the worker.
    pub worker_args: Vec<String>,
    /// More arguments for the control plane.
    pub control_plane_args: Vec<String>,
}

impl Default for MeshConfig {
    fn default() -> MeshConfig {
        MeshConfig {
            control_plane: true,
            nodes: true,
            table_mode: "auto".into(),
            on_enroll: "keep".into(),
            default_mode: "permissive".into(),
            trust_domain: "cluster.local".into(),
            excluded: vec!["kube-system".into(), ROOT_NAMESPACE.into()],
            cni_timeout: 15,
            access_log: "json".into(),
            threads: None,
            worker_memory: None,
            keeper_memory: Some(64 << 20),
            install_chain: false,
            watcher_args: Vec::new(),
            keeper_args: Vec::new(),
            worker_args: Vec::new(),
            control_plane_args: Vec::new(),
        }
    }
}

impl MeshConfig {
    /// Our plugin's part of the conflist, unless pod-watcher puts it there.
    pub(crate) fn netconf(&self) -> Option<Value> {
        (!self.install_chain).then(|| {
            json!({
                "type": "culvert-cni", "socket": CNI_SOCKET, "timeoutSeconds": self.cni_timeout,
                "excludeNamespaces": self.excluded, "stateDir": "/var/lib/culvert/cni",
            })
        })
    }

    pub(crate) fn watcher(&self, node: &str, manifests: &str) -> Vec<String> {
        let mut args =
            strings(&["pod-watcher", "--node-name", node, "--source", manifests, "--cni-socket", CNI_SOCKET]);
        args.extend(strings(&["--proxy-socket", "/run/culvert/proxy.sock", "--state-dir", "/var/lib/culvert/cni"]));
        args.extend(strings(&["--table-mode", &self.table_mode, "--on-enroll", &self.on_enroll]));
        args.extend(strings(&["--metrics-address", "[::]:15025", "--status-dir", "/run/culvert/status"]));
        args.extend(strings(&["--admin-socket", "/run/culvert/watcher-admin.sock"]));
        for namespace in &self.excluded {
            args.extend(strings(&["--exclude-namespace", namespace]));
        }
        if self.install_chain {
            args.extend(strings(&["--cni-conf-dir", "/etc/cni/net.d", "--cni-bin-dir", "/opt/cni/bin"]));
            args.extend(["--cni-timeout-seconds".to_owned(), self.cni_timeout.to_string()]);
        }
        args.extend(self.watcher_args.iter().cloned());
        args
    }

    pub(crate) fn keeper(&self) -> Vec<String> {
        let mut args = strings(&["node-proxy", "keeper", "--watcher-socket", "/run/culvert/proxy.sock"]);
        args.extend(strings(&["--worker-socket", "/run/node-proxy/keeper.sock"]));
        args.extend(self.keeper_args.iter().cloned());
        args
    }

    pub(crate) fn worker(&self, node: &str, control_plane: Option<String>) -> Vec<String> {
        let mut args = strings(&["node-proxy", "worker", "--keeper-socket", "/run/node-proxy/keeper.sock"]);
        args.extend(strings(&["--state-dir", "/var/lib/culvert/node-proxy", "--node-name", node]));
        args.extend(strings(&["--cluster-id", "Kubernetes", "--trust-domain", &self.trust_domain]));
        args.extend(strings(&["--metrics-address", "[::]:15020", "--ready-address", "[::]:15021"]));
        args.extend(strings(&[
            "--admin-socket",
            "/run/node-proxy-worker/admin.sock",
            "--access-log",
            &self.access_log,
        ]));
        for range in plan::CLUSTER_RANGES {
            args.extend(strings(&["--cluster-range", range]));
        }
        if let Some(url) = control_plane {
            args.extend(strings(&["--control-plane", &url, "--control-plane-name", CONTROL_PLANE_NAME]));
            args.extend(strings(&["--control-plane-root", "/run/secrets/culvert/root-cert.pem"]));
            args.extend(strings(&["--token-file", "/run/secrets/culvert/token"]));
        }
        if let Some(threads) = self.threads {
            args.extend(["--threads".to_owned(), threads.to_string()]);
        }
        args.extend(self.worker_args.iter().cloned());
        args
    }

    pub(crate) fn control_plane(&self, manifests: &str, own: &str) -> Vec<String> {
        let mut args = strings(&["control-plane", "serve", "--source", manifests, "--tokens"]);
        args.extend([format!("{own}/tokens.json"), "--ca-dir".into(), own.into()]);
        args.extend(strings(&["--listen", "[::]:15012", "--metrics-address", "[::]:15014"]));
        args.extend(strings(&["--server-name", CONTROL_PLANE_NAME, "--trust-domain", &self.trust_domain]));
        args.extend(strings(&["--cluster-id", "Kubernetes", "--root-namespace", ROOT_NAMESPACE]));
        args.extend(strings(&["--default-mode", &self.default_mode]));
        args.extend(self.control_plane_args.iter().cloned());
        args
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

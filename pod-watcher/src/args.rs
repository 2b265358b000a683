//! What the command line says: as given, checked by clap, immutable after.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use mesh_kube::Place;

/// The node's daemon for pods: answers the CNI plugin, decides enrolment, writes and audits capture rules, tells node-proxy.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Ask a running pod-watcher instead of being one.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Asks a running pod-watcher.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a running pod-watcher knows: `admin pods`, `admin rules NAMESPACE/POD`, `admin chain`.
    Admin(AdminArgs),
    /// Take the CNI plugin out of this node: its entry from the network configuration first, then its binary. For a node on which
    /// pod-watcher was killed and does not come back.
    Uninstall(UninstallArgs),
}

/// `pod-watcher uninstall`.
#[derive(Debug, clap::Args)]
pub struct UninstallArgs {
    /// The node's network configurations.
    #[arg(long, env = "CULVERT_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// The node's CNI plugins.
    #[arg(long, env = "CULVERT_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Socket that the CNI plugin dials; a pod-watcher that runs holds a lock beside it.
    #[arg(long, env = "CULVERT_CNI_SOCKET", default_value = mesh_api::link::cni::SOCKET)]
    pub cni_socket: PathBuf,
    /// State shared with the CNI plugin.
    #[arg(long, env = "CULVERT_STATE_DIR", default_value = "/var/lib/culvert/cni")]
    pub state_dir: PathBuf,
    /// Where events and pod conditions were written: which pods have rules of ours.
    #[arg(long, env = "CULVERT_STATUS_DIR", default_value = "/run/culvert/status")]
    pub status_dir: PathBuf,
}

const EXAMPLES: &str = "Examples:
  pod-watcher admin pods                     every pod that is or was enrolled
  pod-watcher admin rules shop/cart          the rules in its namespace, read back, with counters
  pod-watcher admin chain                    whether the plugin is in the node's CNI chain
  pod-watcher admin pods -o json | jq .      for programs

Exit status: 0 answered, 1 pod-watcher refused, 2 the command line is wrong, 3 no answer.";

/// `pod-watcher admin`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct AdminArgs {
    /// Its admin socket.
    #[arg(long, global = true, env = "CULVERT_ADMIN_SOCKET", default_value = "/run/culvert/watcher-admin.sock")]
    pub admin_socket: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// What to show.
    #[command(subcommand)]
    pub verb: AdminVerb,
}

/// What `pod-watcher admin` shows.
#[derive(Debug, Subcommand)]
pub enum AdminVerb {
    /// Every pod that is or was enrolled, and the keepers.
    Pods,
    /// The rules in a pod's network namespace, read back, and their counters.
    Rules {
        /// NAMESPACE/POD.
        pod: String,
    },
    /// Whether the plugin is in the node's CNI chain, in which file, and if not, why.
    Chain,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns for people.
    Table,
    /// For programs.
    Json,
}

/// How rules are protected against other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableMode {
    /// Owned where the kernel can, else plain.
    Auto,
    /// An owned table; refuses to start where the kernel has none (before Linux 6.9).
    Owned,
    /// A plain table: what is changed by others is repaired.
    Plain,
}

/// What happens to connections that a pod has when it is enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnEnroll {
    /// They go on as they are.
    Keep,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Flags of the daemon; each has an environment variable.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// This node's name: pods bound to it are ours.
    #[arg(long, env = "CULVERT_NODE_NAME", required = true)]
    pub node_name: Option<String>,
    /// Where pods come from: `api` for the Kubernetes API server, or a directory of Kubernetes manifests.
    #[arg(long, env = "CULVERT_SOURCE", default_value = "api", value_name = "api|DIR")]
    pub source: Place,
    /// How the API server is reached; without it, as a pod of the cluster with its own service account.
    #[arg(long, env = "CULVERT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Socket that the CNI plugin dials.
    #[arg(long, env = "CULVERT_CNI_SOCKET", default_value = mesh_api::link::cni::SOCKET)]
    pub cni_socket: PathBuf,
    /// Socket that node-proxy's keepers dial.
    #[arg(long, env = "CULVERT_PROXY_SOCKET", default_value = mesh_api::link::proxy::SOCKET)]
    pub proxy_socket: PathBuf,
    /// Socket of `pod-watcher admin`.
    #[arg(long, env = "CULVERT_ADMIN_SOCKET", default_value = "/run/culvert/watcher-admin.sock")]
    pub admin_socket: PathBuf,
    /// State shared with the CNI plugin; survives a reboot.
    #[arg(long, env = "CULVERT_STATE_DIR", default_value = "/var/lib/culvert/cni")]
    pub state_dir: PathBuf,
    /// Where events and pod conditions are written.
    #[arg(long, env = "CULVERT_STATUS_DIR", default_value = "/run/culvert/status")]
    pub status_dir: PathBuf,
    /// How rules are protected against other programs.
    #[arg(long, env = "CULVERT_TABLE_MODE", value_enum, default_value_t = TableMode::Auto)]
    pub table_mode: TableMode,
    /// Address of metrics and health.
    #[arg(long, env = "CULVERT_METRICS_ADDRESS", default_value = "[::]:15025")]
    pub metrics_address: SocketAddr,
    /// Namespaces that are never enrolled.
    #[arg(
        long = "exclude-namespace",
        env = "CULVERT_EXCLUDE_NAMESPACES",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    pub exclude_namespaces: Vec<String>,
    /// Part of the name of a runtime class whose pods have a kernel of their own and are never captured. May be repeated; give the
    /// same to the control plane.
    #[arg(
        long = "uncaptured-runtime",
        env = "CULVERT_UNCAPTURED_RUNTIMES",
        value_delimiter = ',',
        default_value = mesh_api::manifests::OTHER_KERNELS,
        value_name = "PART"
    )]
    pub uncaptured_runtimes: Vec<String>,
    /// The mesh's own namespace: never enrolled.
    #[arg(long, env = "CULVERT_OWN_NAMESPACE", default_value = "culvert-system")]
    pub own_namespace: String,
    /// What happens to connections that a running pod has when it is enrolled.
    #[arg(long, env = "CULVERT_ON_ENROLL", value_enum, default_value_t = OnEnroll::Keep)]
    pub on_enroll: OnEnroll,
    /// Most connections, of each address family, that a pod may have beside the mesh: open ones when it is enrolled while it runs, and
    /// excluded ones. A running pod with more is not enrolled, an excluded connection beyond it is refused. Some 200 bytes of the
    /// kernel's memory for each that there is.
    #[arg(long, env = "CULVERT_FLOW_LIMIT", default_value_t = mesh_net::capture::FLOWS, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub flow_limit: u32,
    /// How long captured connections of a pod that opted out may go on before the last rules are removed; not less than the
    /// worker's `--opt-out-seconds`.
    #[arg(long, env = "CULVERT_LINGER_SECONDS", default_value_t = 600)]
    pub linger_seconds: u64,
    /// How our plugin comes into the node's CNI chain.
    #[command(flatten)]
    pub install: InstallArgs,
    /// Form of log lines.
    #[arg(long, env = "CULVERT_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How our plugin comes into the node's CNI chain.
#[derive(Clone, Debug, clap::Args)]
pub struct InstallArgs {
    /// The node's network configurations: our plugin is put into the chain of the first and kept there. Without it the chain is
    /// somebody else's care.
    #[arg(long, env = "CULVERT_CNI_CONF_DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Where the runtime looks for plugins.
    #[arg(long, env = "CULVERT_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// The plugin's binary that is copied there; without it, `culvert-cni` beside pod-watcher's own.
    #[arg(long, env = "CULVERT_CNI_PLUGIN", value_name = "FILE")]
    pub cni_plugin: Option<PathBuf>,
    /// How long the plugin waits for pod-watcher: its `timeoutSeconds`.
    #[arg(long, env = "CULVERT_CNI_TIMEOUT_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=120))]
    pub cni_timeout_seconds: u64,
    /// Our DaemonSet, in the mesh's own namespace: when it has gone, or is not for this node any more, the plugin is taken out at the
    /// end.
    #[arg(long, env = "CULVERT_DAEMON_SET", default_value = "pod-watcher", value_name = "NAME")]
    pub daemon_set: String,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_pods_come_from_the_api_server_unless_told_otherwise() {
        Cli::command().debug_assert();
        let parsed = |text: &str| Cli::try_parse_from(text.split(' ')).expect("parsed").run.source;
        assert_eq!(parsed("pod-watcher --node-name n1"), Place::Api);
        assert_eq!(parsed("pod-watcher --node-name n1 --source api"), Place::Api);
        assert_eq!(parsed("pod-watcher --node-name n1 --source /etc/mesh"), Place::Dir("/etc/mesh".into()));
        assert!(Cli::try_parse_from(["pod-watcher", "--source", "api"]).is_err(), "a node's name is needed");
    }
}

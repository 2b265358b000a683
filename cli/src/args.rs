//! What the command line says.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::failure::EXIT;
use crate::names::Component;

/// Culvert, a service mesh with one proxy per node.
///
/// Asks the Kubernetes API server, and through it (pods/exec) the mesh's own daemons; nothing else is connected to.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, arg_required_else_help = true, after_help = EXIT)]
pub struct Cli {
    /// Which cluster, and how to print.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of every verb.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// The kubeconfig; else those of KUBECONFIG, else ~/.kube/config, else, in a pod, its service account.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; else its current one.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// The namespace of pods that are named without one, and the only one that `ps` shows.
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// For the whole verb, such as 30s, 5m; else 30s, and 5m for install, uninstall and --wait.
    #[arg(long, global = true, value_parser = duration)]
    pub timeout: Option<Duration>,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Whether the mesh can be installed here, or is well: each failure with its cause and the next step.
    ///
    /// Changes nothing. Before an install: the API server's version and groups, kernels and architectures of the nodes, clocks,
    /// permissions, definitions of others. After it, also: components, the API server's view of captured pods, warnings of the
    /// last hour, certificates, the age of each proxy's configuration.
    #[command(
        after_help = "Exit status: 0 nothing failed (warnings do not count), 1 something failed, 2 the command line is wrong, 3 the API server does not answer."
    )]
    Check {
        /// Only what must hold before an install.
        #[arg(long)]
        pre: bool,
        /// With --pre: ask for the permissions that these manifests need; else those that the built-in ones need.
        #[arg(long, value_name = "FILE")]
        manifest: Vec<PathBuf>,
    },
    /// Install the mesh, or bring it to this version: applies the manifest (server-side) and waits until it is rolled out.
    ///
    /// Definitions of security.istio.io that somebody else installed are left as they are. Can be repeated.
    #[command(after_help = EXIT)]
    Install {
        /// The rendered manifest, or several; else those that this binary was built with.
        #[arg(long, value_name = "FILE")]
        manifest: Vec<PathBuf>,
        /// Let the API server judge everything and change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Return when everything is applied; do not wait for the roll-out.
        #[arg(long)]
        no_wait: bool,
    },
    /// Take the mesh away: pod-watcher first, which takes its chain entry along, then the rest. Its pods leave before that.
    ///
    /// Policies, and the definitions that they are made by, stay unless --crds.
    #[command(after_help = EXIT)]
    Uninstall {
        /// The manifest that was installed, or several; else those that this binary was built with.
        #[arg(long, value_name = "FILE")]
        manifest: Vec<PathBuf>,
        /// Delete Culvert's definitions too, and with them every AuthorizationPolicy and PeerAuthentication of the cluster.
        #[arg(long)]
        crds: bool,
        /// Take every label that asks for the mesh away first, and wait until no pod is captured. Without it, nothing is done while
        /// one is.
        #[arg(long)]
        unenroll: bool,
        /// Leave captured pods as they are: they reach nobody until they are restarted. For nodes that cannot free them any more.
        #[arg(long, conflicts_with = "unenroll")]
        force: bool,
        /// Say what would be deleted, in which order.
        #[arg(long)]
        dry_run: bool,
    },
    /// The components: how many are wanted, ready and of which version, and each node.
    #[command(
        after_help = "Exit status: 0 everything is ready, 1 something is not, 2 the command line is wrong, 3 no answer."
    )]
    Status {
        /// Do not ask the proxies: for large clusters, or without permission for pods/exec.
        #[arg(long)]
        brief: bool,
    },
    /// Pods: who enrolled them, what was observed, their identity, certificate and connections.
    #[command(after_help = EXIT)]
    Ps {
        /// Also pods that are not in the mesh, with the reason.
        #[arg(long, short)]
        all: bool,
        /// Do not ask the proxies: for large clusters, or without permission for pods/exec.
        #[arg(long)]
        brief: bool,
        /// Only pods of this node.
        #[arg(long)]
        node: Option<String>,
    },
    /// The identity of a pod and its certificate: serial number and times, never keys.
    #[command(after_help = EXIT)]
    Identity {
        /// NAMESPACE/POD, or POD with --namespace.
        pod: String,
    },
    /// The configuration in force in the proxy of a node: its origin, services and policies.
    #[command(after_help = EXIT)]
    Config(Target),
    /// Connections that are open now through the proxy of a node, or of one pod.
    #[command(after_help = EXIT)]
    Connections(Target),
    /// Certificates of a node's identities, or of one pod's.
    #[command(after_help = EXIT)]
    Certificates(Target),
    /// Metrics of the proxy of a node that are not zero, and the load of each thread.
    #[command(after_help = EXIT)]
    Stats(Target),
    /// Logs of a component, each line with its node and container.
    #[command(after_help = EXIT)]
    Logs {
        /// Which.
        #[arg(value_enum)]
        component: Component,
        /// Only that of this node.
        #[arg(long)]
        node: Option<String>,
        /// Lines from before, of each container.
        #[arg(long, default_value_t = 100)]
        tail: u32,
        /// Go on as lines come, until interrupted; --timeout does not apply.
        #[arg(long, short)]
        follow: bool,
        /// Of the container's run before this one: what it said before it crashed.
        #[arg(long, short, conflicts_with = "follow")]
        previous: bool,
    },
    /// Bring a namespace, or one pod, into the mesh: sets the label culvert.io/mesh.
    #[command(after_help = ENROLL)]
    Enroll(Enroll),
    /// Take a namespace, or one pod, out of the mesh.
    #[command(after_help = ENROLL)]
    Unenroll(Enroll),
    /// Print this build's version and the versions of the unix links that it speaks.
    Version {
        /// As JSON; the same as `-o json`.
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script: `source <(culvert completion bash)`.
    Completion {
        /// For this shell.
        shell: Shell,
    },
}

const ENROLL: &str = "Says per pod what will happen, by the same decision that the nodes take. What only the node can see it decides \
itself and reports as an Event and in the condition culvert.io/Captured: whether an application listens on a port that the mesh needs \
(15001, 15006, 15008), and other meshes' rules without their marks. Open connections are left alone.

Exit status: 0 done, 1 refused, or with --wait not captured in time, 2 the command line is wrong, 3 no answer in time.";

/// Whom to ask.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// The name of a node, or NAMESPACE/POD, or POD with --namespace.
    #[arg(value_name = "NODE|POD")]
    pub target: String,
}

/// Whose label to change.
#[derive(Clone, Debug, clap::Args)]
pub struct Enroll {
    /// A namespace, or NAMESPACE/POD.
    #[arg(value_name = "NAMESPACE|NAMESPACE/POD")]
    pub target: String,
    /// Only say what would happen.
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until the nodes have done it.
    #[arg(long, conflicts_with = "dry_run")]
    pub wait: bool,
}

/// `30s`, `5m`, `1h`; at least a second.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 30s, 5m or 1h");
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    match number.checked_mul(unit) {
        Some(0) | None => Err(wrong()),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound_and_flags_stand_before_and_after_the_verb() {
        Cli::command().debug_assert();
        for line in ["culvert -n shop -o json ps --all", "culvert ps --all -n shop --output json"] {
            let parsed = Cli::try_parse_from(line.split(' ')).expect("parsed");
            assert_eq!((parsed.common.namespace.as_deref(), parsed.common.output), (Some("shop"), Output::Json));
            assert!(matches!(parsed.verb, Verb::Ps { all: true, brief: false, node: None }));
        }
    }

    #[test]
    fn durations_have_a_unit_and_are_not_nothing() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "s", "5", "0s", "-1s", "5 m", "9999999999999999999h", "5é"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}

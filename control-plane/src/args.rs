//! The command line: text as given, checked once into [`Settings`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use mesh_api::manifests::Outside;
use mesh_daemon::logs::Format;
use mesh_kube::Place;
use mesh_model::TrustDomain;

use crate::compile::{CompileConfig, DefaultMode};
use crate::tokens::review::Expected;

/// Culvert's control plane: compiles Kubernetes objects into what the node proxies are told, and signs their certificates.
#[derive(Debug, Parser)]
#[command(version, after_help = "The log's level is set by CULVERT_LOG (for example CULVERT_LOG=debug).")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How logs are written to standard error.
    #[arg(long, env = "CULVERT_LOG_FORMAT", default_value = "text", global = true)]
    pub log_format: Format,
}

/// The commands.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // made once
pub enum Command {
    /// Serve configuration (delta xDS) and certificates to the node proxies, and follow the manifests.
    Serve(ServeArgs),
    /// Compile the manifests once, into the file that a node proxy starts from without a control plane.
    Compile(CompileArgs),
}

/// What both commands compile by.
#[derive(Clone, Debug, Args)]
pub struct MeshArgs {
    /// Where objects come from: `api` for the Kubernetes API server (`serve` only), or a directory of Kubernetes manifests (*.yaml,
    /// *.yml, *.json; replace files by rename).
    #[arg(long, env = "CULVERT_SOURCE", default_value = "api", value_name = "api|DIR")]
    pub source: Place,
    /// The cluster, as it stands in the names of workloads; the node proxies must use the same.
    #[arg(long, env = "CULVERT_CLUSTER_ID", default_value = "Kubernetes", value_name = "ID")]
    pub cluster_id: String,
    /// Trust domain in which identities are issued.
    #[arg(long, env = "CULVERT_TRUST_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    pub trust_domain: String,
    /// Another trust domain that means this mesh; policies that name one of them mean all. May be repeated.
    #[arg(long, env = "CULVERT_TRUST_DOMAIN_ALIASES", value_delimiter = ',', value_name = "NAME")]
    pub trust_domain_alias: Vec<String>,
    /// DNS domain of the cluster: services are NAME.NAMESPACE.svc.DOMAIN.
    #[arg(long, env = "CULVERT_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,
    /// Namespace whose policies apply to the whole mesh.
    #[arg(long, env = "CULVERT_ROOT_NAMESPACE", default_value = "culvert-system", value_name = "NAMESPACE")]
    pub root_namespace: String,
    /// Whether plaintext is taken where no PeerAuthentication says anything.
    #[arg(long, env = "CULVERT_DEFAULT_MODE", value_enum, default_value_t, value_name = "MODE")]
    pub default_mode: DefaultMode,
    /// Namespace whose pods are never in the mesh. May be repeated; give the same to pod-watcher.
    #[arg(
        long,
        env = "CULVERT_EXCLUDE_NAMESPACES",
        value_delimiter = ',',
        default_value = "kube-system",
        value_name = "NAMESPACE"
    )]
    pub exclude_namespace: Vec<String>,
    /// Part of the name of a runtime class whose pods have a kernel of their own and are never captured. May be repeated; give the
    /// same to pod-watcher.
    #[arg(
        long,
        env = "CULVERT_UNCAPTURED_RUNTIMES",
        value_delimiter = ',',
        default_value = mesh_api::manifests::OTHER_KERNELS,
        value_name = "PART"
    )]
    pub uncaptured_runtime: Vec<String>,
}

/// Flags of `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// What to compile, and how.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// How the API server is reached; without it, as a pod of the cluster with its own service account.
    #[arg(long, env = "CULVERT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// File with the nodes' tokens, a JSON object of token to node name; read again when it changes. Default: tokens.json in the
    /// source's directory; with `--source api` tokens are reviewed by the API server instead.
    #[arg(long, env = "CULVERT_TOKENS", value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Audience that a reviewed token must be for.
    #[arg(long, env = "CULVERT_TOKEN_AUDIENCE", default_value = "mesh-ca", value_name = "AUDIENCE")]
    pub token_audience: String,
    /// Service account that a reviewed token must be of.
    #[arg(
        long,
        env = "CULVERT_PROXY_ACCOUNT",
        default_value = "culvert-system/node-proxy",
        value_name = "NAMESPACE/NAME"
    )]
    pub proxy_account: String,
    /// Our own namespace: of the Secret with the authority, of the ConfigMap with its root, and of the Lease by which one of several
    /// control planes is chosen to write statuses (`--source api` only).
    #[arg(long, env = "CULVERT_OWN_NAMESPACE", default_value = "culvert-system", value_name = "NAMESPACE")]
    pub own_namespace: String,
    /// Our name in that Lease: the pod's, and no other's. Default: the host's name.
    #[arg(long, env = "CULVERT_POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,
    /// Where configuration and certificates are served.
    #[arg(long, env = "CULVERT_LISTEN", default_value = "[::]:15012", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Where metrics (/metrics) and readiness (/healthz/ready) are served.
    #[arg(long, env = "CULVERT_METRICS_ADDRESS", default_value = "[::]:15014", value_name = "ADDR:PORT")]
    pub metrics_address: SocketAddr,
    /// Directory of the certificate authority: root-key.pem (0600) and root-cert.pem; made there if neither exists. Default with
    /// `--source api`: the Secret culvert-ca in our namespace, with the same two keys; made there if there is none.
    #[arg(long, env = "CULVERT_CA_DIR", value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// A DNS name or address in our own certificate: what node proxies connect to. May be repeated.
    #[arg(long, env = "CULVERT_SERVER_NAMES", value_delimiter = ',', required = true, value_name = "NAME")]
    pub server_name: Vec<String>,
    /// No workload certificate lives longer than this many minutes.
    #[arg(long, env = "CULVERT_CERTIFICATE_MINUTES", default_value_t = 24 * 60, value_parser = clap::value_parser!(u32).range(1..=90 * 24 * 60), value_name = "MINUTES")]
    pub certificate_minutes: u32,
    /// How long open streams may take to end after SIGTERM.
    #[arg(long, env = "CULVERT_DRAIN_SECONDS", default_value_t = 5, value_name = "SECONDS")]
    pub drain_seconds: u32,
}

/// Flags of `compile`.
#[derive(Clone, Debug, Args)]
pub struct CompileArgs {
    /// What to compile, and how.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// The node that the file is for; its proxy takes no other's.
    #[arg(long, env = "CULVERT_NODE_NAME", value_name = "NODE")]
    pub node: String,
    /// The file to write; it is replaced in one step, readable by its owner alone.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Fail, and write nothing, if any document is refused or cannot be carried out as written.
    #[arg(long)]
    pub strict: bool,
}

/// The settings of `serve`, checked.
#[derive(Debug)]
pub struct Settings {
    /// Where objects come from.
    pub source: Place,
    /// How the API server is reached, if not as a pod.
    pub kubeconfig: Option<PathBuf>,
    /// Whose tokens are taken.
    pub callers: Callers,
    /// Our own namespace.
    pub own_namespace: String,
    /// Our name in the Lease.
    pub pod_name: String,
    /// For xDS and certificates.
    pub listen: SocketAddr,
    /// For metrics.
    pub metrics_address: SocketAddr,
    /// Where the authority is kept.
    pub authority: Keep,
    /// Names of our own certificate.
    pub names: Vec<String>,
    /// Longest life of a certificate.
    pub longest: Duration,
    /// How to compile.
    pub compile: CompileConfig,
    /// Time to drain.
    pub drain_for: Duration,
}

/// Where the certificate authority is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// In this directory.
    Dir(PathBuf),
    /// In a Secret of our own namespace.
    Secret,
}

/// Whose tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Those that this file names.
    File(PathBuf),
    /// Those that the API server takes.
    Reviewed(Expected),
}

impl MeshArgs {
    /// Checked.
    pub fn config(self) -> anyhow::Result<(Place, CompileConfig)> {
        let domain = |text: &String| TrustDomain::parse(text);
        let config = CompileConfig {
            cluster_id: self.cluster_id,
            trust_domain: domain(&self.trust_domain).context("--trust-domain")?,
            trust_domain_aliases: self
                .trust_domain_alias
                .iter()
                .map(domain)
                .collect::<Result<_, _>>()
                .context("--trust-domain-alias")?,
            cluster_domain: self.cluster_domain,
            root_namespace: self.root_namespace,
            default_mode: self.default_mode,
            outside: Outside { namespaces: self.exclude_namespace, runtimes: self.uncaptured_runtime },
        };
        anyhow::ensure!(
            !config.cluster_id.is_empty() && !config.cluster_id.contains('/'),
            "--cluster-id: empty or with a '/'"
        );
        Ok((self.source, config))
    }
}

impl ServeArgs {
    /// Checked.
    pub fn settings(self) -> anyhow::Result<Settings> {
        let (source, compile) = self.mesh.config()?;
        let callers = match (self.tokens, &source) {
            (Some(file), _) => Callers::File(file),
            (None, Place::Dir(dir)) => Callers::File(dir.join(mesh_api::manifests::TOKENS)),
            (None, Place::Api) => {
                let account = self.proxy_account.split_once('/').filter(|(namespace, name)| {
                    !namespace.is_empty() && !name.is_empty() && !name.contains(['/', ':']) && !namespace.contains(':')
                });
                let (namespace, name) = account.context("--proxy-account: not NAMESPACE/NAME")?;
                anyhow::ensure!(
                    !self.token_audience.is_empty(),
                    "--token-audience: empty, which is the API server's own"
                );
                let account = (namespace.to_owned(), name.to_owned());
                Callers::Reviewed(Expected { audience: self.token_audience, account })
            }
        };
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = self.pod_name.unwrap_or_else(host);
        anyhow::ensure!(!name.is_empty() && !self.own_namespace.is_empty(), "--pod-name or --own-namespace: empty");
        let authority = match (self.ca_dir, &source) {
            (Some(dir), _) => Keep::Dir(dir),
            (None, Place::Api) => Keep::Secret,
            (None, Place::Dir(_)) => anyhow::bail!("--ca-dir: needed when --source is a directory"),
        };
        Ok(Settings {
            callers,
            kubeconfig: self.kubeconfig,
            own_namespace: self.own_namespace,
            pod_name: name,
            source,
            listen: self.listen,
            metrics_address: self.metrics_address,
            authority,
            names: self.server_name,
            longest: Duration::from_secs(60 * u64::from(self.certificate_minutes)),
            compile,
            drain_for: Duration::from_secs(self.drain_seconds.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_its_defaults_pass() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(
            "control-plane serve --source /s --ca-dir /c --server-name a --server-name 198.19.255.1".split(' '),
        )
        .expect("parsed");
        let Command::Serve(args) = cli.command else { panic!("serve") };
        let settings = args.settings().expect("checked");
        assert_eq!(settings.source, Place::Dir("/s".into()));
        assert_eq!(settings.callers, Callers::File("/s/tokens.json".into()));
        assert_eq!(settings.names, ["a", "198.19.255.1"]);
        assert_eq!(settings.longest, Duration::from_secs(24 * 3600));
        assert_eq!(settings.compile.outside.namespaces, ["kube-system"]);
    }

    #[test]
    fn with_the_api_server_tokens_are_reviewed_for_one_account_and_audience() {
        let settings = |more: &str| {
            let text = format!("control-plane serve --server-name a{more}");
            let Command::Serve(args) = Cli::try_parse_from(text.split(' ')).expect("parsed").command else {
                panic!("serve")
            };
            args.settings()
        };
        let account = ("culvert-system".to_owned(), "node-proxy".to_owned());
        let expected = Expected { audience: "mesh-ca".to_owned(), account };
        let by_default = settings("").expect("checked");
        assert_eq!((by_default.source, by_default.callers), (Place::Api, Callers::Reviewed(expected)));
        assert_eq!(by_default.authority, Keep::Secret);
        assert_eq!(settings(" --ca-dir /c").expect("checked").authority, Keep::Dir("/c".into()));
        assert!(settings(" --source /s").expect_err("no directory").to_string().contains("--ca-dir"));
        assert_eq!(settings(" --tokens /t").expect("checked").callers, Callers::File("/t".into()));
        for wrong in ["node-proxy", "/node-proxy", "a/", "a/b/c", "a/b:c"] {
            let error = settings(&format!(" --proxy-account {wrong}")).expect_err(wrong);
            assert!(error.to_string().contains("--proxy-account"), "{error}");
        }
        assert!(settings(" --token-audience=").is_err());
    }

    #[test]
    fn a_trust_domain_that_is_none_is_refused_by_the_flags_name() {
        let cli = Cli::try_parse_from(
            "control-plane compile --source /s --node n --out /o --trust-domain-alias UPPER".split(' '),
        )
        .expect("parsed");
        let Command::Compile(args) = cli.command else { panic!("compile") };
        let error = args.mesh.config().expect_err("refused");
        assert!(error.to_string().contains("--trust-domain-alias"), "{error}");
    }
}

//! The worker's settings: text as given, checked once into [`Settings`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum, value_parser};
use ipnetwork::IpNetwork;
use mesh_model::{BadIdentity, ClusterRanges, TrustDomain, TrustDomains};
use mesh_net::socket_options::Keepalive;

use super::metrics::{MetricsConfig, SERIES_IDLE, SERIES_PER_POD};

use super::access_log::AccessLogArgs;

/// When a silent peer outside of tunnels is given up: 14 s. Without a mesh the application's own settings would say; most that have
/// any say seconds. Shorter than the 30 s of a tunnel, since the kernel answers and not a process that may be busy.
pub const KEEPALIVE: Keepalive = Keepalive { idle: Duration::from_secs(5), interval: Duration::from_secs(3), count: 3 };

/// How long a connect may take, as in the reference proxy. A kernel goes on asking for one to two minutes (tcp_syn_retries), but an
/// application behind the proxy has its open connection meanwhile, and most give up a connect sooner.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// As it should be.
    #[default]
    On,
    /// Left out.
    Off,
}

/// Flags of `node-proxy worker`; each may also come from the environment.
#[derive(Clone, Debug, Parser)]
pub struct Args {
    /// Where the keeper listens.
    #[arg(long, env = "CULVERT_KEEPER_SOCKET", default_value = "/run/node-proxy/keeper.sock")]
    pub keeper_socket: PathBuf,
    /// Where the last good configuration is kept.
    #[arg(long, env = "CULVERT_STATE_DIR", default_value = "/var/lib/culvert/node-proxy")]
    pub state_dir: PathBuf,
    /// Kubernetes' name of this node.
    #[arg(long, env = "CULVERT_NODE_NAME")]
    pub node_name: String,
    /// The cluster, as the control plane calls it.
    #[arg(long, env = "CULVERT_CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Trust domain of the mesh.
    #[arg(long, env = "CULVERT_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Further trust domains that mean this mesh.
    #[arg(long, env = "CULVERT_TRUST_DOMAIN_ALIASES", value_delimiter = ',')]
    pub trust_domain_alias: Vec<String>,
    /// The control plane, `https://HOST:15012`; without it only the last good configuration is followed.
    #[arg(long, env = "CULVERT_CONTROL_PLANE")]
    pub control_plane: Option<String>,
    /// PEM file with the root that the control plane's certificate is checked against.
    #[arg(long, env = "CULVERT_CONTROL_PLANE_ROOT")]
    pub control_plane_root: Option<PathBuf>,
    /// Name in the control plane's certificate.
    #[arg(long, env = "CULVERT_CONTROL_PLANE_NAME")]
    pub control_plane_name: Option<String>,
    /// File with the token for the control plane (read again for every request).
    #[arg(long, env = "CULVERT_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// A pod or service range of the cluster: what lies inside must be named by a record.
    #[arg(long, env = "CULVERT_CLUSTER_RANGES", value_delimiter = ',')]
    pub cluster_range: Vec<IpNetwork>,
    /// Threads that move bytes; default: one per core.
    #[arg(long, env = "CULVERT_THREADS")]
    pub threads: Option<u8>,
    /// Where metrics are served.
    #[arg(long, env = "CULVERT_METRICS_ADDRESS", default_value = "[::]:15020")]
    pub metrics_address: SocketAddr,
    /// Where readiness is served.
    #[arg(long, env = "CULVERT_READY_ADDRESS", default_value = "[::]:15021")]
    pub ready_address: SocketAddr,
    /// The admin socket.
    #[arg(long, env = "CULVERT_ADMIN_SOCKET", default_value = "/run/node-proxy-worker/admin.sock")]
    pub admin_socket: PathBuf,
    /// The access log.
    #[command(flatten)]
    pub access_log: AccessLogArgs,
    /// Metrics of connections and pods: Istio's TCP metrics, the time to the first byte, work, memory and bytes per pod. Without them
    /// refusals by reason and what is open are still counted.
    #[arg(long, env = "CULVERT_CONNECTION_METRICS", value_enum, default_value_t)]
    pub connection_metrics: OnOff,
    /// Label sets of traffic series that one workload of this node may have; what is beyond counts as `other`.
    #[arg(long, env = "CULVERT_SERIES_PER_POD", default_value_t = SERIES_PER_POD)]
    pub series_per_pod: usize,
    /// After so long without a connection a label set leaves; what it came to counts as `other`.
    #[arg(long, env = "CULVERT_SERIES_IDLE_SECONDS", default_value_t = SERIES_IDLE.as_secs() as u32)]
    pub series_idle_seconds: u32,
    /// How long open connections may live on after SIGTERM.
    #[arg(long, env = "CULVERT_DRAIN_SECONDS", default_value_t = 30)]
    pub drain_seconds: u32,
    /// How long captured connections of a running pod that opted out may live on. Longer than a drain: nothing waits for their end.
    /// pod-watcher keeps what they need for `--linger-seconds`, which must not be less.
    #[arg(long, env = "CULVERT_OPT_OUT_SECONDS", default_value_t = 600)]
    pub opt_out_seconds: u32,
    /// How long after it was last confirmed by the control plane a last good configuration may let callers in to this node's pods; past
    /// that they are refused (PolicyUnknown) until the control plane is back. The default is the life of a certificate. 0: never.
    #[arg(long, env = "CULVERT_LAST_GOOD_INBOUND_SECONDS", default_value_t = 86_400)]
    pub last_good_inbound_seconds: u32,
    /// A peer outside of tunnels that says nothing is asked after this time whether it is still there. Tunnels ask every 10 s by PING.
    #[arg(long, env = "CULVERT_KEEPALIVE_IDLE_SECONDS", default_value_t = KEEPALIVE.idle.as_secs() as u16, value_parser = value_parser!(u16).range(1..=32_767))]
    pub keepalive_idle_seconds: u16,
    /// And again after this time.
    #[arg(long, env = "CULVERT_KEEPALIVE_INTERVAL_SECONDS", default_value_t = KEEPALIVE.interval.as_secs() as u16, value_parser = value_parser!(u16).range(1..=32_767))]
    pub keepalive_interval_seconds: u16,
    /// After so many questions without an answer it is given up; likewise when it has acknowledged nothing for as long as all of that
    /// takes together.
    #[arg(long, env = "CULVERT_KEEPALIVE_COUNT", default_value_t = KEEPALIVE.count as u8, value_parser = value_parser!(u8).range(1..=127))]
    pub keepalive_count: u8,
    /// A destination that does not answer a connect is given up after this time; the next one of a service is tried then, and after the last
    /// the caller's connection is reset. The kernel itself gives up after one to two minutes.
    #[arg(long, env = "CULVERT_CONNECT_TIMEOUT_SECONDS", default_value_t = CONNECT_TIMEOUT.as_secs() as u16, value_parser = value_parser!(u16).range(1..=300))]
    pub connect_timeout_seconds: u16,
    /// How this process logs.
    #[arg(long, env = "CULVERT_LOG_FORMAT", default_value = "text")]
    pub log_format: mesh_daemon::logs::Format,
}

/// A flag cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadArgs {
    /// `--trust-domain` or `--trust-domain-alias`.
    #[error("--trust-domain: {0}")]
    TrustDomain(#[from] BadIdentity),
    /// `--control-plane` needs its companions.
    #[error("--control-plane needs --{0} as well")]
    Companion(&'static str),
}

/// Checked settings of the data path.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// The cluster's id.
    pub cluster: String,
    /// Accepted trust domains.
    pub trust: TrustDomains,
    /// Where every destination must be known.
    pub ranges: ClusterRanges,
    /// How many threads move bytes.
    pub threads: u8,
    /// What is counted.
    pub metrics: MetricsConfig,
    /// How long open connections may live on when the worker stops.
    pub drain: Duration,
    /// How long those of a pod that opted out may.
    pub opt_out: Duration,
    /// When a silent peer is given up.
    pub keepalive: Keepalive,
    /// When a destination that does not answer a connect is given up.
    pub connect_timeout: Duration,
}

impl Args {
    /// Checks what clap cannot.
    pub fn settings(&self) -> Result<Settings, BadArgs> {
        let aliases = self.trust_domain_alias.iter().map(|text| TrustDomain::parse(text)).collect::<Result<_, _>>()?;
        if self.control_plane.is_some() {
            for (name, given) in
                [("control-plane-root", self.control_plane_root.is_some()), ("token-file", self.token_file.is_some())]
            {
                if !given {
                    return Err(BadArgs::Companion(name));
                }
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        // The keeper gives one sock_diag socket per thread, sixteen at most on one message.
        let threads = self.threads.unwrap_or(cores.min(16) as u8).clamp(1, 16);
        Ok(Settings {
            node: self.node_name.clone(),
            cluster: self.cluster_id.clone(),
            trust: TrustDomains::new(TrustDomain::parse(&self.trust_domain)?, aliases),
            ranges: ClusterRanges::new(self.cluster_range.iter().copied()),
            threads,
            metrics: MetricsConfig {
                threads: usize::from(threads),
                connections: self.connection_metrics == OnOff::On,
                series_per_pod: self.series_per_pod,
                series_idle: Duration::from_secs(u64::from(self.series_idle_seconds)),
            },
            drain: Duration::from_secs(u64::from(self.drain_seconds)),
            opt_out: Duration::from_secs(u64::from(self.opt_out_seconds)),
            keepalive: Keepalive {
                idle: Duration::from_secs(self.keepalive_idle_seconds.into()),
                interval: Duration::from_secs(self.keepalive_interval_seconds.into()),
                count: self.keepalive_count.into(),
            },
            connect_timeout: Duration::from_secs(self.connect_timeout_seconds.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Args {
        let all = ["worker", "--node-name", "node-1"].iter().chain(flags);
        Args::try_parse_from(all).expect("flags are valid")
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let args = parse(&[]);
        assert_eq!(args.metrics_address.port(), 15020);
        assert_eq!(args.ready_address.port(), 15021);
        let settings = args.settings().expect("settings");
        assert_eq!(settings.trust.own().as_str(), "cluster.local");
        assert!(settings.threads >= 1);
    }

    #[test]
    fn a_control_plane_without_root_or_token_is_refused() {
        let args = parse(&["--control-plane", "https://cp:15012"]);
        assert!(matches!(args.settings(), Err(BadArgs::Companion("control-plane-root"))));
        let args = parse(&["--control-plane", "https://cp:15012", "--control-plane-root", "/r.pem"]);
        assert!(matches!(args.settings(), Err(BadArgs::Companion("token-file"))));
    }

    #[test]
    fn the_chart_gives_the_worker_no_flag_that_it_does_not_know() {
        let template = include_str!("../../../manifests/chart/templates/node-proxy.yaml");
        let (_, worker) = template.split_once("- worker\n").expect("the worker's arguments");
        let (given, _) = worker.split_once(" env:").expect("an end of them");
        let command = <Args as clap::CommandFactory>::command();
        let known: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
        let flags = given.split("--").skip(1).map(|text| text.split(['=', '\n']).next().unwrap_or_default().trim());
        let flags: Vec<&str> = flags.collect();
        assert!(flags.contains(&"access-log-filter") && flags.contains(&"drain-seconds"), "{flags:?}");
        assert!(flags.iter().all(|flag| known.contains(flag)), "{flags:?}");
    }

    #[test]
    fn keepalive_is_what_the_kernel_takes() {
        assert_eq!(parse(&[]).settings().expect("settings").keepalive, KEEPALIVE);
        let args =
            parse(&["--keepalive-idle-seconds", "60", "--keepalive-interval-seconds", "10", "--keepalive-count", "6"]);
        assert_eq!(args.settings().expect("settings").keepalive.patience(), Duration::from_secs(120));
        for refused in [["--keepalive-count", "0"], ["--keepalive-count", "128"], ["--keepalive-idle-seconds", "40000"]]
        {
            let all = ["worker", "--node-name", "node-1"].iter().chain(&refused);
            assert!(Args::try_parse_from(all).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn the_time_for_a_connect_is_a_setting_and_never_none_at_all() {
        assert_eq!(parse(&[]).settings().expect("settings").connect_timeout, CONNECT_TIMEOUT);
        let args = parse(&["--connect-timeout-seconds", "60"]);
        assert_eq!(args.settings().expect("settings").connect_timeout, Duration::from_secs(60));
        for refused in ["0", "301", "-1", "never"] {
            let all = ["worker", "--node-name", "node-1", "--connect-timeout-seconds", refused];
            assert!(Args::try_parse_from(all).is_err(), "{refused}");
        }
    }

    #[test]
    fn ranges_and_aliases_are_lists() {
        let args = parse(&["--cluster-range", "198.18.0.0/15,fd77::/16", "--trust-domain-alias", "old.local"]);
        let settings = args.settings().expect("settings");
        assert!(settings.ranges.contains("fd77::1".parse().expect("address")));
        assert!(settings.trust.accepts(&TrustDomain::parse("old.local").expect("name")));
    }
}

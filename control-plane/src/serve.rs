//! `control-plane serve`: puts the parts together, and takes them apart in one order.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_api::manifests::Kind;
use mesh_api::xds::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use mesh_daemon::{drain, http, ready::Readiness, tasks};
use mesh_kube::{Api, Files, Following, Place, Server, Timing};
use mesh_tls::authority::Authority;
use mesh_tls::endpoint_server_config;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::ads::Ads;
use crate::args::{Callers, Keep, ServeArgs, Settings};
use crate::ca::{Budgets, Ca};
use crate::lease::Lease;
use crate::metrics::Metrics;
use crate::services::Services;
use crate::source::Compiling;
use crate::statuses::writer::Writer;
use crate::tokens::review::Reviewer;
use crate::tokens::{self, Tokens};
use crate::{incoming, kept};

/// What is compiled. Service accounts are not: a pod names its own.
const KINDS: [Kind; 8] = [
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::NetworkPolicy,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
];
/// Streams of one connection: one for configuration, the rest for certificates of a full node.
const STREAMS: u32 = 256;
/// Finds dead nodes.
const PING: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(10);
/// If the certificate cannot be renewed, try again then.
const RENEW_RETRY: Duration = Duration::from_secs(60);

/// A control plane that runs: what tests need to know of it.
pub struct Running {
    /// Where configuration and certificates are served.
    #[cfg_attr(not(test), expect(dead_code, reason = "for tests, which listen on port 0"))]
    pub address: std::net::SocketAddr,
    /// Its metrics.
    pub metrics: Metrics,
    /// What is missing until it is ready.
    pub readiness: Readiness,
    trigger: drain::Trigger,
    http: Option<drain::Trigger>,
    tasks: tasks::Group,
    drain_for: Duration,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let metrics_address = settings.metrics_address;
    let mut running = start(settings).await?;
    running.serve_http(metrics_address).await?;
    let signal = mesh_daemon::signals::stop().await.context("listen for signals")?;
    tracing::info!(signal, "stopping");
    running.stop().await;
    Ok(())
}

/// Starts everything but the metrics endpoint.
pub async fn start(settings: Settings) -> anyhow::Result<Running> {
    let Settings {
        source,
        kubeconfig,
        callers,
        own_namespace,
        pod_name,
        listen,
        metrics_address: _,
        authority,
        names,
        longest,
        compile,
        drain_for,
    } = settings;
    let metrics = Metrics::new();
    let readiness = Readiness::new();
    let listening = readiness.latch("listener");
    let (trigger, watch) = drain::pair();
    let group = tasks::Group::new("control-plane");

    let trust_domain = compile.trust_domain.clone();
    let api = match (&source, &callers) {
        (Place::Dir(_), Callers::File(_)) => None,
        _ => Some(Api::connect(kubeconfig.as_deref()).await.context("--source api")?),
    };
    let authority = match (authority, &api) {
        (Keep::Dir(dir), _) => Authority::load_or_create(&dir)
            .with_context(|| format!("certificate authority in {} (--ca-dir)", dir.display()))?,
        (Keep::Secret, Some(api)) => kept::authority(api, &own_namespace).await?,
        (Keep::Secret, None) => anyhow::bail!("the authority can be kept in a Secret only with --source api"),
    };
    let authority = Arc::new(authority);
    if let Some(api) = api.clone() {
        let publisher = kept::Publisher::new(api, &own_namespace, authority.root_pem());
        group.spawn("root", publisher.run(watch.clone()));
    }
    let config = certificate(&authority, names, &metrics, &group, watch.clone())?;

    let tokens = match (callers, &api) {
        (Callers::Reviewed(expected), Some(api)) => {
            Tokens::of_review(Reviewer::new(api.clone(), expected), &compile.cluster_id)
        }
        (Callers::File(path), _) => {
            let (mut writer, known) = tokens::file::tokens(&path, metrics.clone());
            writer.read();
            group.spawn("tokens", writer.follow(watch.clone()));
            Tokens::of_file(known, &compile.cluster_id)
        }
        (Callers::Reviewed(_), None) => anyhow::bail!("tokens can be reviewed only with --source api"),
    };
    let snapshots = match (source, api) {
        (Place::Api, Some(api)) => {
            let follow = KINDS.map(|kind| Following { kind, node: None });
            let (lease, leads) = Lease::new(api.clone(), own_namespace, pod_name.clone(), metrics.leader.clone());
            group.spawn("lease", lease.run(watch.clone()));
            let source =
                Server::start(api.clone(), &follow, Timing::default(), metrics.source.clone(), &group.handle());
            let (mut compiling, snapshots) = Compiling::new(source, compile, metrics.clone(), &readiness);
            let writer = Writer::new(api, pod_name, leads, compiling.statuses(), metrics.source.clone());
            group.spawn("statuses", writer.run(watch.clone()));
            group.spawn("source", compiling.run(watch.clone()));
            snapshots
        }
        (Place::Dir(dir), _) => {
            anyhow::ensure!(dir.is_dir(), "{} (--source) is not a directory", dir.display());
            let (compiling, snapshots) = Compiling::new(Files::new(dir), compile, metrics.clone(), &readiness);
            group.spawn("source", compiling.run(watch.clone()));
            snapshots
        }
        (Place::Api, None) => anyhow::bail!("--source api needs the API server"),
    };

    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen} (--listen)"))?;
    let address = listener.local_addr().context("own address")?;
    let ads = Ads {
        snapshots: snapshots.clone(),
        tokens: tokens.clone(),
        streams: group.handle(),
        drain: watch.clone(),
        metrics: metrics.clone(),
    };
    let ca = Ca {
        authority,
        tokens,
        snapshots,
        trust_domain,
        longest,
        metrics: metrics.clone(),
        budgets: Budgets::default(),
    };
    let incoming = incoming::accept(listener, config, metrics.clone(), &group, watch.clone());
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PING_PATIENCE));
    let services = Services { ads, ca: IstioCertificateServiceServer::new(ca) };
    group.spawn("gRPC server", async move {
        let asked = watch.clone();
        let served = server.serve_with_incoming_shutdown(services, incoming, async move { asked.asked().await }).await;
        if let Err(error) = served {
            tracing::error!(%error, "gRPC server ended");
        }
    });
    listening.release();
    tracing::info!(%address, "serving configuration and certificates");
    Ok(Running { address, metrics, readiness, trigger, http: None, tasks: group, drain_for })
}

impl Running {
    /// Serves metrics and readiness: until the very end, so that it can be watched.
    async fn serve_http(&mut self, address: std::net::SocketAddr) -> anyhow::Result<()> {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("listen on {address} (--metrics-address)"))?;
        let (trigger, watch) = drain::pair();
        let metrics = self.metrics.clone();
        let routes = http::Routes::new().metrics(metrics.registry.clone()).ready(self.readiness.clone());
        let routes = routes.refresh(Arc::new(move || metrics.refresh()));
        self.tasks.spawn("metrics", http::serve(listener, routes, watch));
        self.http = Some(trigger);
        Ok(())
    }

    /// Stops: no new connections, streams are told and end, what is left is cut.
    pub async fn stop(self) {
        let Self { trigger, http, tasks, drain_for, readiness, .. } = self;
        // Whoever asks meanwhile is sent elsewhere.
        let _stopping = readiness.latch("stopping");
        trigger.drained(drain_for).await;
        if let Some(http) = http {
            http.drained(Duration::from_secs(1)).await;
        }
        tasks.finish(Duration::from_secs(1)).await;
    }
}

/// Our own certificate, made anew at half of its life.
fn certificate(
    authority: &Arc<Authority>,
    names: Vec<String>,
    metrics: &Metrics,
    group: &tasks::Group,
    drain: drain::Watch,
) -> anyhow::Result<incoming::Config> {
    let first = authority.server_cert(&names).context("own certificate (--server-name)")?;
    let (send, receive) = watch::channel(endpoint_server_config(&first)?);
    metrics.expiries(authority.root_not_after(), first.not_after());
    let (authority, metrics) = (authority.clone(), metrics.clone());
    group.spawn("own certificate", async move {
        let mut ends = first.not_after();
        loop {
            let wait = ends.duration_since(SystemTime::now()).unwrap_or_default() / 2;
            tokio::select! {
                () = drain.asked() => return,
                () = tokio::time::sleep(wait.max(RENEW_RETRY)) => {}
            }
            let renewed = authority
                .server_cert(&names)
                .map_err(|error| error.to_string())
                .and_then(|cert| Ok((cert.not_after(), endpoint_server_config(&cert).map_err(|e| e.to_string())?)));
            match renewed {
                Ok((not_after, config)) => {
                    ends = not_after;
                    metrics.expiries(authority.root_not_after(), not_after);
                    send.send_replace(config);
                    tracing::info!("own certificate renewed");
                }
                Err(error) => tracing::error!(error, "own certificate cannot be renewed"),
            }
        }
    });
    Ok(receive)
}

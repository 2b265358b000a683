//! Start and stop of the worker: the only place that knows all of its parts.
//!
//! Start: settings → last good configuration → link → certificates → threads → pods as the keeper names them.
//! Stop, in this order: take no new pod or connection → tunnels send GOAWAY, connections end or the deadline passes → what is
//! left is reset with Reason Draining → threads end → the last access lines are written.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use mesh_api::link::worker::{Family, Purpose};
use mesh_daemon::{admin as admin_socket, drain, http, logs, ready, signals, tasks};
use mesh_model::Reason;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};

use super::access_log::{self, AccessLog};
use super::admin;
use super::args::{Args, Settings};
use super::certs::{self, CertConfig, Certificates, Keep};
use super::control::{self, Control};
use super::link::{self, Link};
use super::metrics::Metrics;
use super::mint::{Maker, Mint};
use super::pods::{Pod, Pods};
use super::record::Sinks;
use super::route::Loads;
use super::threads::{Proxy, Threads};
use super::xds::{self, ControlPlane, Floor, Guard, Published, XdsConfig};

/// Descriptors that connections may not use: listeners of 250 pods, minted stock, tunnels, files.
const RESERVED_FDS: u64 = 2_500;
/// A connection holds two sockets; a third is for the moment in which a taken port is tried again.
const FDS_PER_CONNECTION: u64 = 2;
/// How long cut connections have to notice, and the access log to be written.
const CUT: Duration = Duration::from_secs(1);

/// How often a drain looks whether all places are free.
const LOOK: Duration = Duration::from_millis(20);

/// What the supervisor says of the workers before this one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Starts {
    /// How many in a row ended within ten seconds of their start.
    pub crashes: u32,
    /// How many ended unasked in all.
    pub restarts: u32,
}

/// Why the worker ends.
enum Why {
    /// By a signal.
    Asked(&'static str),
    /// The link to the keeper has ended.
    Link(Result<(), link::LinkDown>),
    /// An accept loop has.
    Lost(String),
}

/// Runs the worker on the calling thread, hardened already.
pub fn run(args: Args, starts: Starts) -> anyhow::Result<()> {
    logs::init("worker", args.log_format);
    let settings = args.settings()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(work(args, settings, starts))
}

async fn work(args: Args, settings: Settings, starts: Starts) -> anyhow::Result<()> {
    let crashes = starts.crashes;
    let places = places();
    tracing::info!(node = settings.node, threads = settings.threads, places, crashes, "worker starts");
    let readiness = ready::Readiness::new();
    let snapshot = readiness.latch("keeper-snapshot");
    let configuration = readiness.latch("configuration");
    let tasks = tasks::Group::new("worker");
    let servers = tasks::Group::new("servers");
    let metrics = Arc::new(Metrics::new(settings.metrics.clone()));
    metrics.plain.restarts.inc_by(u64::from(starts.restarts));
    let counters = access_log::Counters::of(&metrics.plain.lines_written, &metrics.plain.lines_dropped);
    let (access, writer) = AccessLog::start(&args.access_log, counters)?;
    tasks.spawn("reopen", reopen_on_hangup(access.clone()));
    // Also when all of this fails half-way, this is what ends the servers.
    let (stop, stopping) = drain::pair();

    let plane = control_plane(&args)?;
    let xds_metrics = xds::Metrics::default();
    xds_metrics.register(metrics.registry()).context("register metrics")?;
    let (floor, (settled, settling)) = (watch::Sender::new(Floor::Unknown), oneshot::channel());
    let (written, counters) = watch::channel(0);
    let guard = Guard { floor: floor.subscribe(), written, settled };
    let config = XdsConfig {
        node: settings.node.clone(),
        cluster: settings.cluster.clone(),
        trust_domains: settings.trust.clone(),
        pod: None,
        instance_ip: None,
        control_plane: plane.clone(),
        state_dir: args.state_dir.clone(),
        crashes,
        latch: Some(configuration),
        metrics: xds_metrics.clone(),
        inbound_age: Duration::from_secs(u64::from(args.last_good_inbound_seconds)),
        guard: Some(guard),
    };
    let published = xds::start(config, &tasks.handle());
    tasks.spawn("series", metrics.clone().sweep_now_and_then());
    // Known once the keeper is there; scraped before.
    let certificates_later = Arc::new(OnceLock::<Certificates>::new());
    let refresh = refresh(&metrics, &published, &certificates_later, xds_metrics);
    serve_http(&args, &metrics, refresh, &readiness, &servers, &stopping).await?;

    // Signals are heard from here on, also while the keeper is not there yet.
    let mut asked = std::pin::pin!(signals::stop());
    let connecting = link::connect(&args.keeper_socket, settings.threads, floor);
    // Dropping the dialling half-way leaves nothing behind.
    let (link, mut events) = tokio::select! {
        biased;
        signal = &mut asked => {
            tracing::info!(signal = signal.context("signals")?, "asked to stop before the keeper was there");
            return Ok(());
        }
        connected = connecting => connected.context("connect to the keeper")?,
    };
    tasks.spawn("last good counter", tell_counters(link.clone(), counters));
    // Before any pod is served: what the last good configuration says is in force, or it will not be. Its end is bounded by the client.
    tokio::select! {
        biased;
        signal = &mut asked => {
            tracing::info!(signal = signal.context("signals")?, "asked to stop before the configuration was loaded");
            return Ok(());
        }
        _ = settling => {}
    }
    let cert_config =
        CertConfig { trust_domains: settings.trust.clone(), control_plane: plane, validity: CertConfig::VALIDITY };
    let certificates = certs::start(cert_config, Some(keep(&link)), &tasks.handle());
    let _ = certificates_later.set(certificates.clone());
    let mint = Mint::new(Arc::new(link.clone()), tasks.handle(), metrics.clone());
    tasks.spawn("mint stock", mint.clone().shrink());
    let drain_after = settings.drain;
    let sinks = Sinks { metrics, access, published: published.clone(), node: settings.node.as_str().into() };
    let proxy = Arc::new(Proxy {
        settings,
        pods: Pods::default(),
        published,
        certificates,
        mint,
        sinks,
        loads: Arc::new(Loads::default()),
        budget: Arc::new(Semaphore::new(places)),
        waiting: Default::default(),
        stopping: Default::default(),
        lost: Default::default(),
    });
    let (threads, joining) = Threads::start(&proxy).context("start threads")?;
    tasks.spawn("judge again", control::judge_again(proxy.clone()));
    serve_admin(&args, &proxy, &threads, &servers, &stopping);

    // Half of all places: one pod alone can never take them all from the others.
    let pod_budget = places.div_ceil(2);
    let mut control = Control::new(proxy.clone(), threads.clone(), link.clone(), tasks.handle(), pod_budget, snapshot);
    // Half-way through an event at a signal: the keeper gets no answer to it, and starts over with the next worker.
    let ended = tokio::select! {
        biased;
        signal = &mut asked => Why::Asked(signal.context("signals")?),
        lost = proxy.lost.heard() => Why::Lost(lost),
        ended = control.follow(&mut events) => Why::Link(ended),
    };
    let result = match ended {
        Why::Asked(signal) => {
            let _unready = readiness.latch("draining");
            proxy.stopping.store(true, Ordering::Relaxed);
            tracing::info!(signal, deadline = ?drain_after, "draining");
            control.leave();
            let left: Vec<_> = proxy.pods.table().pods().cloned().collect();
            left.iter().for_each(|pod| pod.leave());
            let drained = drained(&left, &proxy.budget, places);
            // The link stays: connections that are being set up still need sockets. Its end ends the drain, nothing more can come.
            let all_ended = tokio::select! {
                drained = tokio::time::timeout(drain_after, drained) => drained.is_ok(),
                _ = control.follow(&mut events) => false,
            };
            tracing::info!(all_ended, "drained");
            Ok(())
        }
        // Without the keeper no pod can be told apart from a dead one: the supervisor starts another worker, which is told all.
        Why::Link(Ok(())) => Err(anyhow::anyhow!("the keeper closed the link; the supervisor starts another worker")),
        Why::Link(Err(error)) => Err(anyhow::Error::new(error).context("the link to the keeper broke")),
        // Its pod would be without service until somebody notices; a new worker takes the listener up.
        Why::Lost(what) => Err(anyhow::anyhow!("{what} has ended; the supervisor starts another worker")),
    };
    let left: Vec<_> = proxy.pods.table().pods().cloned().collect();
    left.iter().for_each(|pod| {
        pod.leave();
        pod.live().cut_all(Reason::Draining);
    });
    let emptied = futures_util::future::join_all(left.iter().map(|pod| pod.live().emptied()));
    let _ = tokio::time::timeout(CUT, emptied).await;
    stop.ask();
    threads.end().await;
    drop((control, threads, events, stopping));
    // Servers that are in the middle of an answer end it; the other tasks are for ever and are cut.
    servers.finish(CUT).await;
    tasks.cut().await;
    joining.join();
    drop((proxy, link));
    writer.finish(CUT);
    result
}

/// Resolves when no connection is left: neither one of a pod's, nor one that was accepted and is on its way to be, which has its place
/// already. Pods are empty for a moment between two connections, so that each was so once says nothing. Safe to drop half-way, which the
/// drain's deadline does. (To wait for the places themselves would keep them from connections that come meanwhile.)
async fn drained(left: &[Arc<Pod>], budget: &Semaphore, places: usize) {
    loop {
        futures_util::future::join_all(left.iter().map(|pod| pod.live().emptied())).await;
        if budget.available_permits() >= places && left.iter().all(|pod| pod.live().is_empty()) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How many connections there may be, from the limit on descriptors.
fn places() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    // Never below what a small lab needs, even where the limit is absurd: then accept itself will back off.
    (limit.saturating_sub(RESERVED_FDS) / FDS_PER_CONNECTION).clamp(256, 500_000) as usize
}

fn control_plane(args: &Args) -> anyhow::Result<Option<ControlPlane>> {
    let (Some(address), Some(root), Some(token)) = (&args.control_plane, &args.control_plane_root, &args.token_file)
    else {
        return Ok(None);
    };
    let name = args.control_plane_name.as_deref();
    Ok(Some(ControlPlane::new(address, root.clone(), name, token.clone(), &args.cluster_id)?))
}

/// Tells the keeper of each last good configuration that lies on the disk, the latest only. A link that fails ends the worker elsewhere.
async fn tell_counters(link: Link, mut counters: watch::Receiver<u64>) {
    counters.mark_changed();
    while counters.changed().await.is_ok() {
        let counter = *counters.borrow_and_update();
        if counter > 0 && link.written(counter).await.is_err() {
            return;
        }
    }
}

/// SIGHUP is how a rotation says that it has moved the access log's file away.
async fn reopen_on_hangup(access: AccessLog) {
    let mut hangups = match signals::Hangups::listen() {
        Ok(hangups) => hangups,
        Err(error) => return tracing::warn!(%error, "SIGHUP cannot be heard"),
    };
    loop {
        hangups.next().await;
        tracing::info!("SIGHUP: the access log is opened again");
        access.reopen();
    }
}

/// What is kept elsewhere, brought up to date before each scrape.
fn refresh(
    metrics: &Arc<Metrics>,
    published: &watch::Receiver<Arc<Published>>,
    certificates: &Arc<OnceLock<Certificates>>,
    xds: xds::Metrics,
) -> http::Refresh {
    let (metrics, published, certificates) = (metrics.clone(), published.clone(), certificates.clone());
    Arc::new(move || {
        metrics.scraped();
        let (generation, origin) = {
            let published = published.borrow();
            (published.generation, published.origin)
        };
        metrics.plain.config_generation.set(generation as i64);
        metrics.plain.config_age.set(xds.age(origin).as_secs_f64());
        if let Some(certificates) = certificates.get() {
            let (attempts, failures) = certificates.counters();
            metrics.plain.certificates(attempts, failures);
            let wanted = certificates.state().into_iter().filter(|state| state.wanted);
            let expiries = wanted.filter_map(|state| Some((state.identity, state.not_after?)));
            metrics.plain.expiries(SystemTime::now(), expiries);
        }
    })
}

async fn serve_http(
    args: &Args,
    metrics: &Arc<Metrics>,
    refresh: http::Refresh,
    readiness: &ready::Readiness,
    tasks: &tasks::Group,
    stopping: &drain::Watch,
) -> anyhow::Result<()> {
    let bind = async |address| {
        TcpListener::bind(address).await.with_context(|| format!("bind {address}: is another worker still there?"))
    };
    let routes = http::Routes::new().metrics(metrics.registry().clone()).refresh(refresh);
    let listener = bind(args.metrics_address).await?;
    tasks.spawn("metrics", http::serve(listener, routes, stopping.clone()));
    let listener = bind(args.ready_address).await?;
    let routes = http::Routes::new().ready(readiness.clone());
    tasks.spawn("readiness", http::serve(listener, routes, stopping.clone()));
    Ok(())
}

fn serve_admin(args: &Args, proxy: &Arc<Proxy>, threads: &Threads, tasks: &tasks::Group, stopping: &drain::Watch) {
    match admin_socket::bind(&args.admin_socket) {
        Ok(listener) => {
            let handler = admin::handler(proxy.clone(), threads.clone());
            tasks.spawn("admin", admin_socket::serve(listener, handler, stopping.clone()));
        }
        // Pods are served without it.
        Err(error) => tracing::warn!(socket = %args.admin_socket.display(), %error, "no admin socket"),
    }
}

/// How certificates reach the keeper.
fn keep(link: &Link) -> Keep {
    let link = link.clone();
    Arc::new(move |memfd| {
        let link = link.clone();
        Box::pin(async move { link.keep(memfd).await.map_err(std::io::Error::other) })
    })
}

impl Maker for Link {
    fn mint(
        &self,
        slot: u32,
        family: Family,
        purpose: Purpose,
        count: u8,
    ) -> BoxFuture<'static, Result<Vec<std::os::fd::OwnedFd>, Reason>> {
        let link = self.clone();
        Box::pin(async move { Link::mint(&link, slot, family, purpose, count).await })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use mesh_model::ClientAddr;

    use super::super::connection::{Connection, ConnectionId, Direction};
    use super::super::live;
    use super::super::pods::testing::{facts, pod};
    use super::*;

    async fn is_over(draining: Pin<&mut impl Future<Output = ()>>) -> bool {
        tokio::time::timeout(Duration::from_secs(1), draining).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_what_is_accepted_and_for_all_pods_to_be_empty_at_the_same_time() {
        let pods = [pod(1, &facts("shop", "web", "198.18.1.5")), pod(2, &facts("shop", "cart", "198.18.1.6"))];
        let enter = |pod| {
            let client = ClientAddr::new(([198, 18, 1, 9], 4000).into());
            live::enter(pod, &Arc::new(Connection::new(ConnectionId::random(), Direction::Inbound, client, None)))
        };
        let budget = Arc::new(Semaphore::new(10));
        let accepted = budget.clone().try_acquire_owned().expect("room");
        let mut draining = Box::pin(drained(&pods, &budget, 10));
        assert!(!is_over(draining.as_mut()).await, "one is accepted and not yet a pod's");
        let first = enter(&pods[0]);
        assert!(!is_over(draining.as_mut()).await);
        // The first is empty, then the second, and never both.
        let second = enter(&pods[1]);
        drop(first);
        assert!(!is_over(draining.as_mut()).await);
        let first = enter(&pods[0]);
        drop(second);
        assert!(!is_over(draining.as_mut()).await);
        drop((first, accepted));
        assert!(is_over(draining.as_mut()).await);
    }
}

//! Starting and stopping. The order matters: one pod-watcher a node (lock), then what is wanted (source), then what is there
//! (every running pod read back), and only then the sockets: a keeper that got a snapshot too early would let go of live pods.

use std::fs::{DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, bail};
use mesh_api::manifests::Kind;
use mesh_daemon::ready::Readiness;
use mesh_daemon::{drain, http, signals, tasks};
use mesh_kube::{Api, Files, Following, Place, Reporter, Server, Source, Timing};
use mesh_model::PodName;
use mesh_net::capture::{self, Mode};
use mesh_net::seqpacket::AsyncListener;
use mesh_net::{Netns, procfs};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::args::{InstallArgs, OnEnroll, RunArgs, TableMode};
use crate::install::chain::{Entry, PLUGIN};
use crate::install::{Install, Installation, rules};
use crate::metrics::Metrics;
use crate::node::{Inputs, Node, Parts};
use crate::sandbox::Kernel;
use crate::source::{Records, Scope};
use crate::status::{CONDITION, Status};
use crate::{admin, cni, counter, facts, keepers, state_dir, watch};

/// A predecessor that is being stopped gives the lock back within this time.
const LOCK: Duration = Duration::from_secs(10);
/// ADDs whose pods are looked for: as many as there may be calls at a time.
const WANTED: usize = 256;
/// After the stop was asked for.
const STOP: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT. Rules stay: pods are captured with or without us.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let RunArgs {
        node_name,
        source: place,
        kubeconfig,
        cni_socket,
        proxy_socket,
        admin_socket,
        state_dir,
        status_dir,
        table_mode,
        metrics_address,
        exclude_namespaces,
        uncaptured_runtimes,
        own_namespace,
        on_enroll: OnEnroll::Keep,
        flow_limit,
        linger_seconds,
        install,
        log_format: _,
    } = args;
    let node = node_name.context("--node-name is required")?;
    if let Place::Dir(dir) = &place
        && !dir.is_dir()
    {
        bail!("--source {} is not a directory", dir.display());
    }
    // The mesh's own pods need nobody's answer: they start with pod-watcher dead, too.
    let mut excluded = exclude_namespaces.clone();
    if !excluded.contains(&own_namespace) {
        excluded.push(own_namespace.clone());
    }
    let daemon_set = (own_namespace.clone(), install.daemon_set.clone());
    let install = installed(install, &cni_socket, &state_dir, excluded)?;
    for socket in [&cni_socket, &proxy_socket, &admin_socket] {
        let parent = socket.parent().with_context(|| format!("socket {} has no directory", socket.display()))?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .with_context(|| format!("create {}", parent.display()))?;
        // kubelet makes a hostPath for everybody to read.
        std::fs::set_permissions(parent, Permissions::from_mode(0o700))
            .with_context(|| format!("keep {} to ourselves", parent.display()))?;
    }
    let lock_file = cni_socket.with_file_name("pod-watcher.lock");
    let _lock = lock(&lock_file).await?;
    let run = (vec![cni_socket.clone(), proxy_socket.clone(), admin_socket.clone(), lock_file], status_dir.clone());
    state_dir::prepare(&state_dir).with_context(|| format!("create --state-dir {}", state_dir.display()))?;

    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry)?;
    let readiness = Readiness::new();
    let (loaded, adopted, sockets) =
        (readiness.latch("source"), readiness.latch("running pods"), readiness.latch("sockets"));
    let chained = install.is_some().then(|| readiness.latch("cni chain"));
    let listener = tokio::net::TcpListener::bind(metrics_address)
        .await
        .with_context(|| format!("listen on --metrics-address {metrics_address}"))?;

    let shown = metrics.clone();
    let routes = http::Routes::new().metrics(registry).refresh(Arc::new(move || shown.refresh()));
    let group = tasks::Group::new("pod-watcher");
    let (trigger, stop) = drain::pair();
    group.spawn("metrics", http::serve(listener, routes.ready(readiness), stop.clone()));

    let scope =
        Scope { node: node.clone(), excluded: exclude_namespaces, runtimes: uncaptured_runtimes, own: own_namespace };
    let (asks, wanted) = mpsc::channel(WANTED);
    let (inputs, queue) = Inputs::new();
    let watching = Pending {
        scope: scope.clone(),
        state_dir: state_dir.clone(),
        metrics: metrics.clone(),
        wanted,
        inputs: inputs.clone(),
    };
    let (first, begin, mut reporter, api) = match place {
        Place::Dir(dir) => {
            let (first, begin) = watching.start(Files::new(dir), &group, &stop);
            (first, begin, None, None)
        }
        Place::Api => {
            let api = Api::connect(kubeconfig.as_deref()).await.context("--source api")?;
            let follow = [
                Following { kind: Kind::Pod, node: Some(node.clone()) },
                Following { kind: Kind::Namespace, node: None },
            ];
            let server =
                Server::start(api.clone(), &follow, Timing::default(), metrics.source.clone(), &group.handle());
            let reporter = Reporter::start(api.clone(), &node, CONDITION, metrics.source.clone(), &group.handle());
            let (first, begin) = watching.start(server, &group, &stop);
            (first, begin, Some(reporter), Some(api))
        }
    };
    let chain_metrics = metrics.chain.clone();
    let asking = api.map(|api| (api, node.as_str(), (daemon_set.0.as_str(), daemon_set.1.as_str())));
    let mut install = install.map(|install| Installation::new(install, asking, &group, &stop));
    let status = Status::open(&status_dir, reporter.clone())
        .with_context(|| format!("create --status-dir {}", status_dir.display()))?;
    let records = tokio::select! {
        why = signals::stop() => {
            tracing::info!(why = why?, "stopping before the source was read; rules stay in place");
            let left = left(install).await;
            trigger.ask();
            group.cut().await;
            return if left { remove_traces(&state_dir, &run) } else { Ok(()) };
        }
        // An error means that the task has ended, which its log explains.
        records = first => records.context("reading the source")?,
    };
    tracing::info!(node, pods = records.pods.len(), namespaces = records.namespaces.len(), "source read");
    loaded.release();

    let kernel = kernel(table_mode, flow_limit)?;
    metrics.table_mode(kernel.mode);
    let look = Arc::new(Notify::new());
    let (adoption, wait) = oneshot::channel();
    let parts = Parts {
        scope,
        kernel,
        linger: Duration::from_secs(linger_seconds),
        records,
        facts: facts::read(&node).context("addresses of the node")?,
        status,
        metrics: metrics.clone(),
        group: group.handle(),
        inputs: inputs.clone(),
        look: look.clone(),
        wanted: asks,
        adopted,
        adoption,
    };
    group.spawn("node", Node::new(parts).run(queue, stop.clone()));
    look.notify_one();
    group.spawn("processes", until(stop.clone(), watch::processes(look, inputs.clone())));
    let asked = tokio::select! {
        asked = signals::stop() => Some(asked?),
        // An error means that the node has ended, which its task's log explains.
        read = wait => { read.context("reading running pods back")?; None }
    };
    if asked.is_none() {
        let cni = AsyncListener::bind(&cni_socket, 0o600)
            .with_context(|| format!("listen on --cni-socket {}", cni_socket.display()))?;
        let proxy = AsyncListener::bind(&proxy_socket, 0o600)
            .with_context(|| format!("listen on --proxy-socket {}", proxy_socket.display()))?;
        let chain = install.as_ref().map(Installation::seen);
        let people = mesh_daemon::admin::bind(&admin_socket)
            .with_context(|| format!("listen on --admin-socket {}", admin_socket.display()))?;
        group.spawn("cni socket", cni::serve(cni, inputs.clone(), metrics.clone(), group.handle(), stop.clone()));
        let counter = counter::Counter::load(&state_dir);
        group.spawn("last good counter", counter.clone().keep(state_dir.clone()));
        let keepers = keepers::serve(proxy, inputs.clone(), metrics, counter, group.handle(), stop.clone());
        group.spawn("keeper socket", keepers);
        group.spawn(
            "admin socket",
            mesh_daemon::admin::serve(people, admin::handler(inputs.clone(), chain), stop.clone()),
        );
        // An error: the source's task has ended, which its log explains.
        let _ = begin.send(());
        group.spawn("markers", until(stop.clone(), watch::markers(state_dir.clone(), inputs.clone())));
        group.spawn("node facts", until(stop.clone(), watch::node_facts(node, inputs.clone())));
        sockets.release();
        // Not before: who is in the chain is asked.
        if let (Some(install), Some(chained)) = (&mut install, chained) {
            install.begin(chained, chain_metrics, reporter.take(), &group);
        }
        tracing::info!("serving");
        let why = signals::stop().await?;
        tracing::info!(why, "stopping; rules stay in place");
    }
    // First of all: while we still answer, no pod waits for us.
    let left = left(install).await;
    trigger.ask();
    // What is written back ends with the last who could have it written.
    drop((inputs, reporter));
    let cut = group.finish(STOP).await;
    if cut > 0 {
        tracing::warn!(cut, "tasks did not end in time; what they held is read back at the next start");
    }
    if left { remove_traces(&state_dir, &run) } else { Ok(()) }
}

/// What of us is on the node and nobody will need: rules, sockets, files. The tasks have ended: nobody puts any of it back.
fn remove_traces(state_dir: &Path, (files, status_dir): &(Vec<PathBuf>, PathBuf)) -> anyhow::Result<()> {
    let cleared = rules::take_out(status_dir).context("look for pods of this node")?;
    tracing::info!(pods = cleared.clear, "no rules of ours are left in pods");
    for failed in cleared.failed {
        tracing::error!(failed, "rules stay in a pod; they go with it");
    }
    state_dir::remove(state_dir).context("remove the state directory")?;
    state_dir::remove_run(files, status_dir).context("remove sockets and statuses")
}

/// Whether this was the end of us on this node.
async fn left(install: Option<Installation>) -> bool {
    match install {
        Some(install) => install.end().await,
        None => false,
    }
}

/// What is to be put into the node's CNI chain, if that is our care.
fn installed(
    args: InstallArgs,
    socket: &Path,
    state_dir: &Path,
    excluded: Vec<String>,
) -> anyhow::Result<Option<Install>> {
    let InstallArgs { cni_conf_dir, cni_bin_dir, cni_plugin, cni_timeout_seconds, daemon_set: _ } = args;
    let Some(conf_dir) = cni_conf_dir else { return Ok(None) };
    let plugin = match cni_plugin {
        Some(plugin) => plugin,
        None => std::env::current_exe().context("own path")?.with_file_name(PLUGIN),
    };
    if !plugin.is_file() {
        bail!("--cni-plugin {} is not a file", plugin.display());
    }
    // The plugin takes absolute paths only, and its configuration is text.
    for path in [socket, state_dir] {
        if !path.is_absolute() || path.to_str().is_none() {
            bail!(
                "{} cannot be written into a network configuration: it is not an absolute path in UTF-8",
                path.display()
            );
        }
    }
    let entry = Entry::new(socket.to_owned(), cni_timeout_seconds, excluded, state_dir.to_owned());
    Ok(Some(Install { conf_dir, bin_dir: cni_bin_dir, plugin, entry }))
}

/// What following a source needs besides the source.
struct Pending {
    scope: Scope,
    state_dir: PathBuf,
    metrics: Metrics,
    wanted: mpsc::Receiver<PodName>,
    inputs: Inputs,
}

impl Pending {
    /// Follows the source in a task: the first records come by one channel; what follows goes to the node once the other says so.
    fn start<S: Source>(
        self,
        source: S,
        group: &tasks::Group,
        stop: &drain::Watch,
    ) -> (oneshot::Receiver<Records>, oneshot::Sender<()>) {
        let Self { scope, state_dir, metrics, wanted, inputs } = self;
        let (tell, first) = oneshot::channel();
        let (begin, begun) = oneshot::channel();
        let mut watching = watch::Watching::new(source, scope, state_dir, metrics);
        let work = async move {
            // Both ends go with the process.
            let _ = tell.send(watching.first().await);
            if begun.await.is_ok() {
                watching.run(wanted, inputs).await;
            }
        };
        group.spawn("source", until(stop.clone(), work));
        (first, begin)
    }
}

/// Ends the work when the stop is asked for: what it reads, it reads again at the next start.
async fn until(stop: drain::Watch, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = stop.asked() => {}
        () = work => {}
    }
}

/// One writer of pods' netns on a node. The file stays; the lock goes with the process, however it ends.
pub async fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    let until = tokio::time::Instant::now() + LOCK;
    while let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if errno != rustix::io::Errno::WOULDBLOCK {
            return Err(errno).with_context(|| format!("lock {}", path.display()));
        }
        if tokio::time::Instant::now() >= until {
            bail!("{} is locked: another pod-watcher runs on this node; stop it first", path.display());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(file)
}

fn kernel(mode: TableMode, flows: u32) -> anyhow::Result<Kernel> {
    let mode = match mode {
        TableMode::Plain => Mode::Plain,
        TableMode::Owned if !capture::owned_supported() => {
            bail!("this kernel has no persistent owned tables (Linux 6.9): start with --table-mode plain or auto")
        }
        TableMode::Owned => Mode::Owned,
        TableMode::Auto if capture::owned_supported() => Mode::Owned,
        TableMode::Auto => Mode::Plain,
    };
    tracing::info!(?mode, "table mode");
    // Ours is the node's (hostNetwork), and so should be that of pid 1 (hostPID). Neither is ever written to.
    let host = Netns::current()?.id();
    let pid1 = procfs::host_netns().unwrap_or(host);
    if host != pid1 {
        tracing::warn!(own = %host, %pid1, "pod-watcher does not run in the network namespace of pid 1: is hostNetwork missing?");
    }
    Ok(Kernel { mode, host, pid1, flows, former_serves: Arc::new(AtomicBool::new(true)) })
}

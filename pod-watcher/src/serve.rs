//! Starting and stopping. The order matters: one pod-watcher a node (lock), then what is wanted (source), then what is there
//! (every running pod read back), and only then the sockets: a keeper that got a snapshot too early would let go of live pods.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use mesh_daemon::ready::Readiness;
use mesh_daemon::{drain, http, signals, tasks};
use mesh_net::capture::{self, Mode};
use mesh_net::seqpacket::AsyncListener;
use mesh_net::{Netns, procfs};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{Notify, oneshot};

use crate::args::{OnEnroll, RunArgs, TableMode};
use crate::metrics::Metrics;
use crate::node::{Inputs, Node, Parts};
use crate::sandbox::Kernel;
use crate::source::Scope;
use crate::status::Status;
use crate::{admin, cni, facts, keepers, state_dir, watch};

/// A predecessor that is being stopped gives the lock back within this time.
const LOCK: Duration = Duration::from_secs(10);
/// After the stop was asked for.
const STOP: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT. Rules stay: pods are captured with or without us.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let RunArgs {
        node_name,
        source,
        cni_socket,
        proxy_socket,
        admin_socket,
        state_dir,
        status_dir,
        table_mode,
        metrics_address,
        exclude_namespaces,
        own_namespace,
        on_enroll: OnEnroll::Keep,
        linger_seconds,
        log_format: _,
    } = args;
    let node = node_name.context("--node-name is required")?;
    let dir = source.context("--source is required")?;
    if !dir.is_dir() {
        bail!("--source {} is not a directory", dir.display());
    }
    for socket in [&cni_socket, &proxy_socket, &admin_socket] {
        let parent = socket.parent().with_context(|| format!("socket {} has no directory", socket.display()))?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .with_context(|| format!("create {}", parent.display()))?;
    }
    let _lock = lock(&cni_socket.with_file_name("pod-watcher.lock")).await?;
    state_dir::prepare(&state_dir).with_context(|| format!("create --state-dir {}", state_dir.display()))?;
    let status = Status::open(&status_dir).with_context(|| format!("create --status-dir {}", status_dir.display()))?;

    let registry = prometheus::Registry::new();
    let metrics = Metrics::new(&registry)?;
    let readiness = Readiness::new();
    let (loaded, adopted, sockets) =
        (readiness.latch("source"), readiness.latch("running pods"), readiness.latch("sockets"));
    let listener = tokio::net::TcpListener::bind(metrics_address)
        .await
        .with_context(|| format!("listen on --metrics-address {metrics_address}"))?;

    let shown = metrics.clone();
    let routes = http::Routes::new().metrics(registry).refresh(Arc::new(move || shown.refresh()));
    let group = tasks::Group::new("pod-watcher");
    let (trigger, stop) = drain::pair();
    group.spawn("metrics", http::serve(listener, routes.ready(readiness), stop.clone()));

    let scope = Scope { node: node.clone(), excluded: exclude_namespaces, own: own_namespace };
    let mut source = watch::Source::new(dir, scope.clone(), state_dir.clone(), metrics.clone());
    let (source, records) = tokio::task::spawn_blocking(move || {
        let records = source.load();
        (source, records)
    })
    .await?;
    tracing::info!(node, pods = records.pods.len(), namespaces = records.namespaces.len(), "source read");
    loaded.release();

    let kernel = kernel(table_mode)?;
    metrics.table_mode(kernel.mode);
    let (inputs, queue) = Inputs::new();
    let (look, wanted) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (adoption, wait) = oneshot::channel();
    let parts = Parts {
        scope,
        kernel,
        linger: Duration::from_secs(linger_seconds),
        records: records.clone(),
        facts: facts::read(&node).context("addresses of the node")?,
        status,
        metrics: metrics.clone(),
        group: group.handle(),
        inputs: inputs.clone(),
        look: look.clone(),
        wanted: wanted.clone(),
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
        let people = mesh_daemon::admin::bind(&admin_socket)
            .with_context(|| format!("listen on --admin-socket {}", admin_socket.display()))?;
        group.spawn("cni socket", cni::serve(cni, inputs.clone(), metrics.clone(), group.handle(), stop.clone()));
        group.spawn("keeper socket", keepers::serve(proxy, inputs.clone(), metrics, group.handle(), stop.clone()));
        group.spawn("admin socket", mesh_daemon::admin::serve(people, admin::handler(inputs.clone()), stop.clone()));
        group.spawn("source", until(stop.clone(), watch::source(source, records, wanted, inputs.clone())));
        group.spawn("markers", until(stop.clone(), watch::markers(state_dir, inputs.clone())));
        group.spawn("node facts", until(stop.clone(), watch::node_facts(node, inputs.clone())));
        sockets.release();
        tracing::info!("serving");
        let why = signals::stop().await?;
        tracing::info!(why, "stopping; rules stay in place");
    }
    trigger.ask();
    drop(inputs);
    let cut = group.finish(STOP).await;
    if cut > 0 {
        tracing::warn!(cut, "tasks did not end in time; what they held is read back at the next start");
    }
    Ok(())
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
async fn lock(path: &Path) -> anyhow::Result<File> {
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

fn kernel(mode: TableMode) -> anyhow::Result<Kernel> {
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
    Ok(Kernel { mode, host, pid1 })
}

//! Proxies of nodes that are objects only: streams that ask for everything, acknowledge it and keep nothing of it but its number, and
//! which pods they heard of while they are asked to listen. All of them show the token of node 1's proxy, and take part from the fabric.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use cluster::Cluster;
use cluster::mesh::NAMESPACE;
use mesh_api::xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_api::xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE, Resource, decode};
use mesh_model::Health;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::{Request, Streaming};

use crate::{control_plane, objects};

/// Connecting, with all others at once.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the largest answer: everything.
const LARGEST: usize = 256 * 1024 * 1024;

/// What each of them was told.
pub(crate) struct Seen {
    streams: Vec<Told>,
    /// Whether what they are told is looked at.
    listening: AtomicBool,
}

#[derive(Default)]
struct Told {
    /// Workloads and services that it has.
    records: AtomicUsize,
    /// Workloads and services in the answers since it listens, the same one again counted again.
    since: AtomicUsize,
    /// Pods of far nodes that it heard of since then, each with whether it was ready.
    pods: Mutex<BTreeSet<(String, bool)>>,
}

impl Seen {
    /// Those that have at least so many.
    pub(crate) fn complete(&self, records: usize) -> usize {
        self.streams.iter().filter(|told| told.records.load(Ordering::Relaxed) >= records).count()
    }

    /// From now on what is told is looked at.
    pub(crate) fn listen(&self) {
        self.listening.store(true, Ordering::Relaxed);
    }

    /// How many changes of pods' readiness the stream knows of that knows the fewest.
    pub(crate) fn fewest_changes(&self) -> usize {
        let known = self.streams.iter().map(|told| told.pods.lock().expect("no panic while held").len());
        known.min().unwrap_or(0)
    }

    /// Resources that one stream was sent for them, on average.
    pub(crate) fn resources(&self) -> f64 {
        let sent: usize = self.streams.iter().map(|told| told.since.load(Ordering::Relaxed)).sum();
        sent as f64 / self.streams.len() as f64
    }
}

impl Told {
    fn note(&self, answer: &DeltaDiscoveryResponse, listening: bool) {
        // Changes of what is there already do not add to it; none are told before everything is.
        self.records.fetch_max(answer.resources.len(), Ordering::Relaxed);
        if !listening {
            return;
        }
        self.since.fetch_add(answer.resources.len(), Ordering::Relaxed);
        let ready = answer.resources.iter().filter_map(|resource| {
            let body = &resource.resource.as_ref()?.value;
            match decode(ADDRESS_TYPE, &resource.name, body) {
                Ok(Resource::Workload(workload)) if objects::is_far(&workload.node) => {
                    Some((resource.name.clone(), workload.health == Health::Healthy))
                }
                _ => None,
            }
        });
        self.pods.lock().expect("no panic while held").extend(ready);
    }
}

/// Work with so many streams open.
pub(crate) fn with(cluster: &Cluster, count: usize, work: impl FnOnce(&Seen) -> Result<()>) -> Result<()> {
    let root = control_plane::root(cluster)?;
    let token = control_plane::bound_token(cluster, NAMESPACE, "node-proxy", &control_plane::proxy(cluster, 1)?)?;
    let streams = (0..count).map(|_| Told::default()).collect();
    let seen = Arc::new(Seen { streams, listening: AtomicBool::new(false) });
    let (over, ends) = watch::channel(());
    std::thread::scope(|scope| {
        let all = scope.spawn(|| {
            let seen = seen.clone();
            cluster.lab().fabric().in_netns(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(subscribe(root, token, seen, ends))
            })
        });
        // Gone when the work panics, too: the streams end with it, or the scope would wait for them.
        let over = over;
        let done = work(&seen);
        drop(over);
        let ended = all.join().map_err(|_| anyhow::anyhow!("the streams' thread panicked"))?;
        // What went wrong with the streams is why the work failed.
        ended.and(done)
    })
}

async fn subscribe(root: String, token: String, seen: Arc<Seen>, ends: watch::Receiver<()>) -> Result<()> {
    let mut streams = JoinSet::new();
    for number in 0..seen.streams.len() {
        let (root, token, seen, mut ends) = (root.clone(), token.clone(), seen.clone(), ends.clone());
        streams.spawn(async move {
            tokio::select! {
                ended = follow(&root, &token, &seen, number) => ended.with_context(|| format!("stream {number}")),
                _ = ends.changed() => Ok(()),
            }
        });
    }
    while let Some(ended) = streams.join_next().await {
        ended??;
    }
    Ok(())
}

async fn follow(root: &str, token: &str, seen: &Seen, number: usize) -> Result<()> {
    // A round is three answers at most.
    let (say, said) = mpsc::channel(8);
    for type_url in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
        say.send(DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..Default::default() }).await?;
    }
    let mut answers = tokio::time::timeout(PATIENCE, open(root, token, said)).await.context("not open in time")??;
    while let Some(answer) = answers.message().await? {
        if answer.type_url == ADDRESS_TYPE {
            seen.streams[number].note(&answer, seen.listening.load(Ordering::Relaxed));
        }
        let acknowledged =
            DeltaDiscoveryRequest { type_url: answer.type_url, response_nonce: answer.nonce, ..Default::default() };
        say.send(acknowledged).await?;
    }
    anyhow::bail!("the control plane ended it")
}

async fn open(
    root: &str,
    token: &str,
    said: mpsc::Receiver<DeltaDiscoveryRequest>,
) -> Result<Streaming<DeltaDiscoveryResponse>> {
    let channel = control_plane::channel(root).await?;
    let requests =
        futures_util::stream::unfold(said, |mut said| async { said.recv().await.map(|request| (request, said)) });
    let mut request = Request::new(requests);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    request.metadata_mut().insert("clusterid", "Kubernetes".parse()?);
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(LARGEST);
    Ok(client.delta_aggregated_resources(request).await?.into_inner())
}

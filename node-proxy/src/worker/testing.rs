//! One node's worker in a test: a real thread context over loopback addresses, with a stand-in for the keeper.
//!
//! Each pod has an address of 127.0.0.0/8, where Linux lets anyone bind any address: minted sockets are ordinary ones.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use mesh_api::link::worker::{Family, Purpose};
use mesh_daemon::tasks;
use mesh_model::{
    ClusterRanges, Health, Mesh, NetworkPolicy, OrigDst, PodName, PodUid, Reason, Service, ServiceKey, ServicePort,
    TrustDomain, TrustDomains, Tunnel, Workload, WorkloadUid,
};
use mesh_tls::authority::Authority;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::accept::{Accepted, Place, Port};
use super::access_log::{AccessLog, Captured, Line};
use super::args::{CONNECT_TIMEOUT, KEEPALIVE, Settings};
use super::certs::{self, CertConfig, SignError, Signer};
use super::connect::Dialer;
use super::metrics::Metrics;
use super::mint::{Maker, Mint};
use super::pods::{Pod, Pods, testing as pods};
use super::probe::NodeSockets;
use super::record::Sinks;
use super::route::Loads;
use super::threads::{Proxy, Thread};
use super::tunnel::Pool;
use super::xds::{Origin, Published};
use super::{control, inbound, outbound};

/// Nothing here takes longer.
pub const WAIT: Duration = Duration::from_secs(20);

/// The mesh of a test, shared by its nodes.
pub struct World {
    published: watch::Sender<Arc<Published>>,
    authority: Arc<Authority>,
}

/// One node.
pub struct Node {
    pub here: Arc<Thread>,
    pub lines: Captured,
    pub tasks: tasks::Group,
}

impl World {
    pub fn new() -> Self {
        Self::of(Origin::Live)
    }

    /// Of workers that have just started: the control plane answers with the first change.
    pub fn starting() -> Self {
        Self::of(Origin::Nothing)
    }

    fn of(origin: Origin) -> Self {
        let published = Published { mesh: Arc::default(), generation: 1, origin, received: None };
        Self {
            published: watch::Sender::new(Arc::new(published)),
            authority: Arc::new(Authority::create().expect("authority")),
        }
    }

    /// Publishes a changed mesh.
    pub fn change<T>(&self, change: impl FnOnce(&mut Mesh) -> T) {
        let before = self.published.borrow().clone();
        let mut mesh = Mesh::clone(&before.mesh);
        change(&mut mesh);
        let generation = before.generation + 1;
        self.published.send_replace(Arc::new(Published {
            mesh: Arc::new(mesh),
            generation,
            origin: Origin::Live,
            received: Some(std::time::Instant::now()),
        }));
    }

    /// A node of this mesh.
    pub fn node(&self, name: &str) -> Node {
        let tasks = tasks::Group::new("test");
        let metrics = Arc::new(Metrics::for_test());
        let addresses: Addresses = Arc::default();
        let trust = TrustDomains::new(TrustDomain::parse("cluster.local").expect("trust domain"), Vec::new());
        let config =
            CertConfig { trust_domains: trust.clone(), control_plane: None, validity: Duration::from_secs(3600) };
        let signer: Arc<dyn Signer> = Arc::new(InProcess(self.authority.clone()));
        let certificates = certs::start_with(config, Some(signer), None, Arc::new(SystemTime::now), &tasks.handle());
        let maker = Arc::new(Loopback { addresses: addresses.clone() });
        let mint = Mint::new(maker, tasks.handle(), metrics.clone());
        let (access, lines) = AccessLog::captured();
        let settings = Settings {
            node: name.into(),
            cluster: "Kubernetes".into(),
            trust,
            ranges: ClusterRanges::new(["127.77.0.0/16".parse().expect("network")]),
            threads: 1,
            metrics: Metrics::config_for_test(),
            drain: Duration::from_secs(1),
            opt_out: Duration::from_secs(1),
            keepalive: KEEPALIVE,
            connect_timeout: CONNECT_TIMEOUT,
        };
        let proxy = Arc::new(Proxy {
            settings,
            pods: Pods::default(),
            published: self.published.subscribe(),
            certificates: certificates.clone(),
            mint: mint.clone(),
            sinks: Sinks { metrics: metrics.clone(), access, published: self.published.subscribe(), node: name.into() },
            loads: Arc::new(Loads::default()),
            budget: Arc::new(Semaphore::new(1000)),
            waiting: Default::default(),
            stopping: Default::default(),
            lost: Default::default(),
        });
        proxy.pods.complete();
        tasks.spawn("judge again", control::judge_again(proxy.clone()));
        let pool = Pool::new(tasks.handle(), metrics, CONNECT_TIMEOUT);
        let here = Arc::new(Thread {
            proxy,
            dialer: Dialer { mint, pool, certificates, keepalive: KEEPALIVE, connect_timeout: CONNECT_TIMEOUT },
            sockets: NodeSockets::default(),
            tasks: tasks.handle(),
        });
        ADDRESSES.with(|all| all.borrow_mut().push((Arc::as_ptr(&here) as usize, addresses)));
        Node { here, lines, tasks }
    }
}

thread_local! {
    // Which maker belongs to which node: a test adds pods through the node alone.
    static ADDRESSES: std::cell::RefCell<Vec<(usize, Addresses)>> = const { std::cell::RefCell::new(Vec::new()) };
}

type Addresses = Arc<Mutex<BTreeMap<u32, IpAddr>>>;

impl Node {
    /// Adds a pod `shop/<name>` with this address.
    pub fn pod(&self, slot: u32, name: &str, address: &str) -> Arc<Pod> {
        let pod = pods::pod(slot, &pods::facts("shop", name, address));
        self.here.proxy.pods.add(pod.clone());
        let me = Arc::as_ptr(&self.here) as usize;
        ADDRESSES.with(|all| {
            let all = all.borrow();
            let (_, addresses) = all.iter().find(|(node, _)| *node == me).expect("made by World::node");
            addresses.lock().expect("not poisoned").insert(slot, address.parse().expect("address"));
        });
        pod
    }

    /// A client in `pod` connects to `destination`; what it connects with.
    pub async fn calls(&self, pod: &Arc<Pod>, destination: SocketAddr) -> TcpStream {
        let source = pod.facts().addresses[0];
        let (client, near) = captured(source).await;
        let accepted = self.accepted(near, pod, Port::Outbound, Some(OrigDst::new(destination)));
        self.tasks.spawn("outbound", outbound::serve(accepted, self.here.clone()));
        client
    }

    /// A caller from `source` connects to `destination` of `pod` in clear.
    pub async fn is_called(&self, pod: &Arc<Pod>, source: &str, destination: SocketAddr) -> TcpStream {
        let (client, near) = captured(source.parse().expect("address")).await;
        let accepted = self.accepted(near, pod, Port::Inbound, Some(OrigDst::new(destination)));
        self.tasks.spawn("inbound", inbound::serve(accepted, self.here.clone()));
        client
    }

    /// Accepts tunnels for `pod` at its own address, port 15008.
    pub async fn accepts_tunnels(&self, pod: &Arc<Pod>) {
        let address = pod.facts().addresses[0];
        let listener = TcpListener::bind((address, 15008)).await.expect("bind the tunnel port of a test address");
        let (here, pod, handle) = (self.here.clone(), pod.clone(), self.tasks.handle());
        let budget = here.proxy.budget.clone();
        self.tasks.spawn("tunnels", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let place = Place::of(budget.clone().try_acquire_owned().expect("room"), pod.room().expect("room"));
                let accepted = Accepted::of(stream, &pod, Port::Tunnel, None, place);
                handle.spawn("tunnel", inbound::serve_tunnel(accepted, here.clone()));
            }
        });
    }

    fn accepted(&self, stream: TcpStream, pod: &Arc<Pod>, port: Port, to: Option<OrigDst>) -> Accepted {
        let worker = self.here.proxy.budget.clone().try_acquire_owned().expect("room");
        Accepted::of(stream, pod, port, to, Place::of(worker, pod.room().expect("room")))
    }

    /// The next access line.
    pub async fn line(&self) -> Line {
        eventually(|| self.lines.try_recv()).await.as_ref().clone()
    }
}

/// Waits for a fact.
pub async fn eventually<T>(mut fact: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(fact) = fact() {
                return fact;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(WAIT, looking).await.expect("the fact did not come about")
}

/// A connection from `source`, and the proxy's end of it.
async fn captured(source: IpAddr) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let socket = TcpSocket::new_v4().expect("socket");
    // In a pod's own namespace the port would be free for the proxy's socket: here it is shared, which takes two that `connect` chose.
    mesh_net::socket::bind_address_no_port(&socket).expect("no port yet");
    socket.bind((source, 0).into()).expect("bind the source");
    let client = socket.connect(listener.local_addr().expect("address"));
    let (client, near) = tokio::join!(client, listener.accept());
    (client.expect("connect"), near.expect("accept").0)
}

/// The keeper: sockets that anyone may make.
struct Loopback {
    addresses: Addresses,
}

impl Maker for Loopback {
    fn mint(
        &self,
        slot: u32,
        family: Family,
        purpose: Purpose,
        count: u8,
    ) -> BoxFuture<'static, Result<Vec<OwnedFd>, Reason>> {
        assert_eq!(family, Family::V4);
        let address = self.addresses.lock().expect("not poisoned").get(&slot).copied();
        Box::pin(async move {
            let make = || {
                if purpose == Purpose::Inspect {
                    return mesh_net::diag::Diag::open().map(mesh_net::diag::Diag::into_fd);
                }
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                match (purpose, address) {
                    (Purpose::TowardsApp, _) => mesh_net::socket::bind_address_no_port(&socket)?,
                    (Purpose::TowardsPeer, Some(address)) => socket.bind(&SocketAddr::new(address, 0).into())?,
                    (Purpose::TowardsPeer | Purpose::Inspect, _) => {}
                }
                Ok::<OwnedFd, std::io::Error>(socket.into())
            };
            (0..count).map(|_| make()).collect::<Result<_, _>>().map_err(|_| Reason::Kernel)
        })
    }
}

/// Signs whatever it is asked to.
struct InProcess(Arc<Authority>);

impl Signer for InProcess {
    fn sign(
        &self,
        identity: &mesh_model::Identity,
        csr_pem: String,
        validity: Duration,
    ) -> BoxFuture<'static, Result<Vec<String>, SignError>> {
        let signed = self
            .0
            .sign(&csr_pem, identity, validity, SystemTime::now())
            .map_err(|error| SignError::Refused(error.to_string()));
        Box::pin(async move { signed })
    }
}

/// The record of pod `shop/<name>`.
pub fn workload(name: &str, node: &str, address: &str) -> Workload {
    Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/shop/{name}")),
        pod: PodName { namespace: "shop".into(), name: name.into() },
        pod_uid: PodUid::parse(&format!("uid-{name}")).ok(),
        service_account: format!("sa-{name}"),
        trust_domain: TrustDomain::parse("cluster.local").expect("trust domain"),
        addresses: vec![address.parse().expect("address")],
        node: node.into(),
        tunnel: Tunnel::Hbone,
        policies: Vec::new(),
        health: Health::Healthy,
        services: BTreeMap::new(),
        network_policy: NetworkPolicy::Unselected,
        host_network: false,
        needs_waypoint: false,
        telemetry: Default::default(),
    }
}

/// The key of service `shop/<name>`.
pub fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "shop".into(), hostname: format!("{name}.shop.svc.cluster.local") }
}

/// Service `shop/<name>` with one port, 80.
pub fn service(name: &str, vips: &[&str]) -> Service {
    Service {
        key: key(name),
        name: name.into(),
        vips: vips.iter().map(|ip| ip.parse().expect("address")).collect(),
        ports: vec![ServicePort { service_port: 80, target_port: Some(8080), app_protocol: Default::default() }],
        subject_alt_names: Vec::new(),
        publish_not_ready: false,
        near: mesh_model::Near::Any,
        external: None,
        session_affinity: None,
        ip_families: Default::default(),
        needs_waypoint: false,
    }
}

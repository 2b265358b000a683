//! A node without its pod-watcher: the real keeper and worker, pods on a bridge, capture rules in their namespaces, and a last
//! good configuration that the test rewrites as the control plane would. Needs root; everything ends with the test.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use mesh_api::link::PodFacts;
use mesh_api::link::proxy::ToKeeper;
use mesh_api::xds::saved::{Saved, SavedResource};
use mesh_api::xds::{self, ADDRESS_TYPE, AUTHORIZATION_TYPE};
use mesh_model::policy::Policy;
use mesh_model::{
    Health, Mark, Mesh, NetworkPolicy, PodName, PodUid, Service, ServiceKey, TrustDomain, Tunnel, Workload, WorkloadUid,
};
use mesh_net::Netns;
use mesh_net::capture::{Mode, Session, Spec, Stage};
use mesh_net::seqpacket::Listener;
use prost::Message as _;
use socket2::{Domain, Socket, Type};

use crate::common::{self, PATIENCE, Process, Watcher, eventually};

const MARK: u32 = 0x0123_4567;

/// A host on the bridge.
pub struct Host {
    pub netns: Netns,
    pub v4: IpAddr,
    pub v6: IpAddr,
    capture: Option<Session>,
}

impl Host {
    /// The address of the same family as `like`.
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6 } else { self.v4 }
    }

    /// An application.
    pub fn listens(&self, v6: bool) -> (TcpListener, SocketAddr) {
        self.listens_at(v6, 0)
    }

    /// An application at this port.
    pub fn listens_at(&self, v6: bool, port: u16) -> (TcpListener, SocketAddr) {
        let bound = self.netns.run(|| TcpListener::bind((self.address(v6), port))).expect("entered");
        let listener = bound.expect("the address is there");
        rustix::net::sockopt::set_socket_timeout(&listener, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))
            .expect("deadline");
        let address = listener.local_addr().expect("address");
        (listener, address)
    }

    /// A caller. Deadlines on, so that a test that hangs fails.
    pub fn connects(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.netns.run(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("entered")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
    /// A caller that chooses where it comes from, past its routes.
    pub fn connects_from(&self, source: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
        let dial = || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind_device(Some(b"lo"))?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
            socket.connect_timeout(&to.into(), PATIENCE)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(socket.into())
        };
        self.netns.run(dial).expect("entered")
    }

    /// An address that is nobody's, on its loopback device.
    pub fn claims(&self, v6: bool) -> IpAddr {
        let (address, add) = match v6 {
            true => ("fd77:0:0:1::77", "addr add fd77:0:0:1::77/128 dev lo nodad"),
            false => ("198.18.1.77", "addr add 198.18.1.77/32 dev lo"),
        };
        ip(&self.netns, &[add]);
        address.parse().expect("address")
    }
}

/// The node.
pub struct Lab {
    dir: tempfile::TempDir,
    node: Netns,
    watcher: Watcher,
    _sockets: Listener,
    _keeper: Process,
    pub supervisor: Process,
    mesh: Mesh,
    published: u32,
}

impl Lab {
    /// Keeper and worker are up, the bridge is there, nothing on it.
    pub fn up() -> Self {
        let dir = common::shared_dir();
        let sockets = common::watcher_socket(dir.path());
        let node = common::pod_netns();
        ip(&node, &["link add br0 type bridge", "link set br0 up"]);
        ip(&node, &["addr add 198.18.1.1/24 dev br0", "addr add fd77:0:0:1::1/64 dev br0 nodad"]);
        let state = dir.path().join("state");
        std::fs::create_dir(&state).expect("dir");
        std::os::unix::fs::chown(&state, Some(common::WORKER), Some(common::WORKER)).expect("chown");
        let keeper = common::keeper(dir.path(), common::WORKER);
        let mesh = Mesh::default();
        write(&state, &mesh);
        let supervisor = worker(&dir);
        let mut watcher = node.run(|| Watcher::accept(&sockets)).expect("entered");
        node.run(|| {
            let end = watcher.snapshot_end();
            watcher.done(end);
        })
        .expect("entered");
        Self { dir, node, watcher, _sockets: sockets, _keeper: keeper, supervisor, mesh, published: 0 }
    }

    /// The node's own namespace.
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// A host on the bridge, outside the mesh.
    pub fn host(&self, number: u8, v4: &str, v6: &str) -> Host {
        let netns = common::pod_netns();
        let veth = format!("veth{number}");
        // The far end goes by the descriptor's own path: no name is left behind.
        let far = format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd());
        ip(&self.node, &[&format!("link add {veth} type veth peer name eth0 netns {far}")]);
        ip(&self.node, &[&format!("link set {veth} master br0 up")]);
        ip(
            &netns,
            &["link set eth0 up", &format!("addr add {v4}/24 dev eth0"), &format!("addr add {v6}/64 dev eth0 nodad")],
        );
        // All subnets of the test are on the one bridge.
        let routes = ["198.18.0.0/15", "203.0.113.0/24"].map(|net| format!("route replace {net} dev eth0"));
        ip(&netns, &routes.iter().map(String::as_str).collect::<Vec<_>>());
        ip(&netns, &["-6 route replace fd77::/16 dev eth0", "-6 route replace 2001:db8::/64 dev eth0"]);
        let address = |text: &str| text.parse().expect("address");
        Host { netns, v4: address(v4), v6: address(v6), capture: None }
    }

    /// An enrolled pod `shop/<name>`: served, then captured.
    pub fn pod(&mut self, number: u8, name: &str) -> Host {
        let (v4, v6) = (format!("198.18.1.{number}"), format!("fd77:0:0:1::{number}"));
        let mut host = self.host(number, &v4, &v6);
        let mark = Mark::from_random(MARK).expect("a mark");
        let mut capture = Session::open(&host.netns, Mode::Plain).expect("capture session");
        capture.apply(&Spec { stage: Stage::Deny, mark, generation: 1 }).expect("deny");
        let facts = PodFacts {
            uid: format!("uid-{name}"),
            namespace: "shop".into(),
            name: name.into(),
            service_account: format!("sa-{name}"),
            addresses: vec![host.v4, host.v6],
            mark: MARK,
            probe_ports: vec![8080],
        };
        let id = u64::from(number) + 1_000;
        let (watcher, netns) = (&mut self.watcher, &host.netns);
        self.node
            .run(|| {
                watcher.send(&ToKeeper::Add { id, pod: facts }, &[netns.as_fd()]);
                watcher.done(id);
            })
            .expect("entered");
        capture.apply(&Spec { stage: Stage::Redirect, mark, generation: 2 }).expect("redirect");
        host.capture = Some(capture);
        host
    }

    /// Tells the worker of a changed mesh: a file renamed into place.
    pub fn change<T>(&mut self, change: impl FnOnce(&mut Mesh) -> T) {
        change(&mut self.mesh);
        write(&self.dir.path().join("state"), &self.mesh);
    }

    /// [`Lab::change`], and waits until the worker knows.
    pub fn publish<T>(&mut self, apply: impl FnOnce(&mut Mesh) -> T) {
        // A service that nobody uses says which version the worker has: it also reads the file anew at its own start.
        self.published += 1;
        let marker = ServiceKey { namespace: "test".into(), hostname: format!("version-{}.test", self.published) };
        let key = marker.to_string();
        self.change(|mesh| {
            apply(mesh);
            mesh.apply_service(Service {
                key: marker,
                name: "version".into(),
                vips: Vec::new(),
                ports: Vec::new(),
                subject_alt_names: Vec::new(),
                publish_not_ready: false,
                near: mesh_model::Near::Any,
                external: None,
                session_affinity: None,
                ip_families: Default::default(),
                needs_waypoint: false,
            })
        });
        eventually("the worker has the change", || {
            let config = self.asks("config");
            config["services"]
                .as_array()
                .is_some_and(|known| known.iter().any(|service| service["key"] == key.as_str()))
        });
    }

    /// The binary's own `admin` verb.
    pub fn asks(&self, verb: &str) -> serde_json::Value {
        let asked = Command::new(env!("CARGO_BIN_EXE_node-proxy"))
            .args(["admin", "-o", "json", "--admin-socket"])
            .arg(self.dir.path().join("state/admin.sock"))
            .arg(verb)
            .output()
            .expect("runs");
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        serde_json::from_slice(&asked.stdout).expect("JSON")
    }

    /// Access lines so far.
    pub fn lines(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.dir.path().join("access.log")).expect("log");
        // The last one may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect()
    }

    /// The worker's pid: the supervisor's only child.
    pub fn worker(&self) -> rustix::process::Pid {
        let children = format!("/proc/{0}/task/{0}/children", self.supervisor.0.id());
        let children = std::fs::read_to_string(children).expect("alive");
        let pid = children.split_whitespace().next().expect("a worker").parse().expect("pid");
        rustix::process::Pid::from_raw(pid).expect("pid")
    }
}

fn worker(dir: &tempfile::TempDir) -> Process {
    let state = dir.path().join("state");
    let log = std::fs::File::create(dir.path().join("access.log")).expect("log");
    let child = Command::new("setpriv")
        .args(["--reuid=65532", "--regid=65532", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--"])
        .arg(crate::common::reachable_binary(dir.path()))
        .args(["worker", "--node-name", "node-1", "--threads", "2", "--access-log", "json", "--drain-seconds", "20"])
        .args(["--cluster-range", "198.18.0.0/15,fd77::/16"])
        .args(["--metrics-address", "127.0.0.1:0", "--ready-address", "127.0.0.1:0"])
        .arg("--keeper-socket")
        .arg(dir.path().join("keeper.sock"))
        .arg("--admin-socket")
        .arg(state.join("admin.sock"))
        .arg("--state-dir")
        .arg(&state)
        .stdout(log)
        .spawn()
        .expect("setpriv (util-linux) is there");
    Process(child)
}

fn write(state: &Path, mesh: &Mesh) {
    let address = |name: String, address: xds::workload::Address| SavedResource {
        type_url: ADDRESS_TYPE.into(),
        name,
        version: "1".into(),
        body: address.encode_to_vec(),
    };
    let policies = mesh.policies().map(|policy: &std::sync::Arc<Policy>| SavedResource {
        type_url: AUTHORIZATION_TYPE.into(),
        name: policy.key.to_string(),
        version: "1".into(),
        body: xds::security::Authorization::from(&**policy).encode_to_vec(),
    });
    let workloads = mesh.workloads().map(|workload| address(workload.uid.to_string(), (&**workload).into()));
    let services =
        mesh.services().map(|service: &std::sync::Arc<Service>| address(service.key.to_string(), (&**service).into()));
    let resources = policies.chain(workloads).chain(services).collect();
    let (node, cluster, written_at) = ("node-1".into(), "Kubernetes".into(), SystemTime::now());
    let saved = Saved { node, cluster, written_at, resources, counter: 0 };
    let new = state.join("new");
    std::fs::write(&new, saved.encode()).expect("write");
    std::os::unix::fs::chown(&new, Some(common::WORKER), Some(common::WORKER)).expect("chown");
    std::fs::rename(&new, state.join("last-good")).expect("rename");
}

/// `ip` with each of the lines.
fn ip(netns: &Netns, lines: &[&str]) {
    for line in lines {
        let ran = netns.run(|| Command::new("ip").args(line.split_whitespace()).output()).expect("entered");
        let ran = ran.expect("ip (iproute2) is there");
        assert!(ran.status.success(), "ip {line}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

/// The record of pod `shop/<name>` of this node.
pub fn workload(name: &str, number: u8) -> Workload {
    let address = |text: String| text.parse().expect("address");
    Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/shop/{name}")),
        pod: PodName { namespace: "shop".into(), name: name.into() },
        pod_uid: PodUid::parse(&format!("uid-{name}")).ok(),
        service_account: format!("sa-{name}"),
        trust_domain: TrustDomain::parse("cluster.local").expect("trust domain"),
        addresses: vec![address(format!("198.18.1.{number}")), address(format!("fd77:0:0:1::{number}"))],
        node: "node-1".into(),
        tunnel: Tunnel::Hbone,
        policies: Vec::new(),
        health: Health::Healthy,
        services: Default::default(),
        network_policy: NetworkPolicy::Unselected,
        host_network: false,
        needs_waypoint: false,
        telemetry: Default::default(),
    }
}

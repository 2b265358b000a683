//! Both far ends of the keeper, played by the test over real sockets, and the real binary started as the DaemonSet starts it.
#![allow(dead_code)] // Each test binary uses its part.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use mesh_api::link::proxy::{FromKeeper, KeeperStats, OWNED, STATS, ToKeeper};
use mesh_api::link::worker::{Family, FromWorker, LISTENERS, ToWorker};
use mesh_api::link::{self, Hello, NodeFacts, PodFacts};
use mesh_net::Netns;
use mesh_net::diag::Diag;
use mesh_net::seqpacket::{Conn, Listener, Packet};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{Pid, Signal};
use rustix::thread::{Gid, Uid};

/// Whatever a test waits for has come by then, or never will.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The worker's user, and group.
pub const WORKER: u32 = 65532;

/// The ports that are listened on in a pod that is served.
pub const OURS: &[u16] = &LISTENERS;

/// A TCP connection made inside the pod, or to it over `lo`.
pub fn connect(netns: &Netns, to: SocketAddr) -> TcpStream {
    netns.run(|| TcpStream::connect(to)).expect("entered").expect("connects")
}

/// A port of the pod itself.
pub fn loopback(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => (Ipv4Addr::LOCALHOST, port).into(),
        Family::V6 => (Ipv6Addr::LOCALHOST, port).into(),
    }
}

/// A directory as the emptyDir between keeper and worker: only root changes it, of the worker's group, setgid.
pub fn shared_dir() -> tempfile::TempDir {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root: it makes network namespaces and drops privileges"
    );
    let dir = tempfile::tempdir().expect("dir");
    std::os::unix::fs::chown(dir.path(), Some(0), Some(WORKER)).expect("chown");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o2751)).expect("chmod");
    dir
}

/// The binary at a place that the worker's user can reach: a checkout or a cache below root's home is closed to it.
pub fn reachable_binary(dir: &Path) -> PathBuf {
    let (built, place) = (Path::new(env!("CARGO_BIN_EXE_node-proxy")), dir.join("node-proxy"));
    if !place.exists() && std::fs::hard_link(built, &place).is_err() {
        // Another file system.
        std::fs::copy(built, &place).expect("copy of the binary");
    }
    place
}

/// A process that is ended with the test.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).expect("pid")).expect("pid")
    }

    /// A line of `/proc/PID/status`.
    pub fn status(&self, field: &str) -> String {
        status(self.pid(), field)
    }

    pub fn fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).expect("alive").count()
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("alive");
    }

    pub fn ended(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.0.try_wait().expect("our child");
            status.is_some()
        });
        status.expect("just seen")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn status(pid: Pid, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).expect("alive");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).split_whitespace().next().unwrap_or_default().to_owned()
}

/// Waits for a fact.
pub fn eventually(what: &str, mut fact: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < until, "not in time: {what}");
        // A yield of the processor, with the kernel's own timer: facts of other processes cannot be waited for otherwise.
        let _ = rustix::event::poll(&mut [], Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 1_000_000 }));
    }
}

/// The keeper with exactly its two capabilities.
pub fn keeper(dir: &Path, worker_uid: u32) -> Process {
    let child = Command::new("setpriv")
        .args(["--bounding-set=-all,+sys_admin,+net_admin", "--inh-caps=-all", "--"])
        .arg(env!("CARGO_BIN_EXE_node-proxy"))
        .arg("keeper")
        .arg("--watcher-socket")
        .arg(dir.join("proxy.sock"))
        .arg("--worker-socket")
        .arg(dir.join("keeper.sock"))
        .arg("--worker-uid")
        .arg(worker_uid.to_string())
        .spawn()
        .expect("setpriv (util-linux) is there");
    Process(child)
}

/// A pod's namespace with `lo` up.
pub fn pod_netns() -> Netns {
    let netns = Netns::create().expect("needs root");
    let up = netns.run(|| Command::new("ip").args(["link", "set", "lo", "up"]).status()).expect("entered");
    assert!(up.expect("ip runs").success());
    netns
}

pub fn facts(uid: &str) -> PodFacts {
    PodFacts {
        uid: uid.to_owned(),
        namespace: "shop".to_owned(),
        name: format!("{uid}-pod"),
        service_account: "default".to_owned(),
        addresses: Vec::new(),
        mark: 0x0123_4567,
        probe_ports: vec![8080],
    }
}

/// Ports that something listens on in the pod.
pub fn listening(netns: &Netns) -> Vec<u16> {
    let listeners = netns.run(|| Diag::open()?.listeners()).expect("entered").expect("sock_diag");
    let mut ports: Vec<u16> = listeners.iter().map(|listener| listener.address.port()).collect();
    ports.sort_unstable();
    ports
}

/// pod-watcher's end.
pub struct Watcher {
    pub conn: Conn,
    next: u64,
    pub wanted: u64,
    takes_stats: bool,
}

/// Where keepers dial.
pub fn watcher_socket(dir: &Path) -> Listener {
    let listener = Listener::bind(&dir.join("proxy.sock"), 0o600).expect("bind");
    set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE)).expect("deadline");
    listener
}

impl Watcher {
    /// Takes the keeper's call, greets, and says what the node is.
    pub fn accept(listener: &Listener) -> Self {
        Self::greet(listener, Hello::of("pod-watcher").with(OWNED))
    }

    /// The same with a greeting of one's own.
    pub fn greet(listener: &Listener, hello: Hello) -> Self {
        let conn = listener.accept().expect("the keeper dials");
        conn.set_deadline(PATIENCE).expect("deadline");
        let heard = conn.recv().expect("recv").expect("open");
        assert!(matches!(link::decode("proxy", &heard.bytes).expect("message"), FromKeeper::Hello(_)));
        let takes_stats = hello.can(STATS);
        let watcher = Self { conn, next: 0, wanted: 0, takes_stats };
        watcher.send(&ToKeeper::Hello(hello), &[]);
        let addresses = vec!["198.18.1.1".parse().expect("address")];
        watcher.send(&ToKeeper::Node(NodeFacts { name: "node-1".to_owned(), addresses }), &[]);
        watcher
    }

    pub fn send(&self, message: &ToKeeper, fds: &[BorrowedFd<'_>]) {
        self.conn.send(&link::encode(message), fds).expect("send");
    }

    pub fn add(&mut self, uid: &str, netns: &Netns) -> u64 {
        self.next += 1;
        self.send(&ToKeeper::Add { id: self.next, pod: facts(uid) }, &[netns.as_fd()]);
        self.next
    }

    pub fn del(&mut self, uid: &str) -> u64 {
        self.next += 1;
        self.send(&ToKeeper::Del { id: self.next, uid: uid.to_owned(), drain: false }, &[]);
        self.next
    }

    pub fn snapshot_end(&mut self) -> u64 {
        self.next += 1;
        self.send(&ToKeeper::SnapshotEnd { id: self.next }, &[]);
        self.next
    }

    /// The next acknowledgement: its id, and why not.
    pub fn answer(&mut self) -> (u64, Option<link::proxy::Refused>) {
        loop {
            let packet = self.conn.recv().expect("recv").expect("open");
            match link::decode("proxy", &packet.bytes).expect("message") {
                FromKeeper::Ack { id, refused } => return (id, refused),
                FromKeeper::WantDiag { count } => {
                    self.wanted += u64::from(count);
                    let sockets: Vec<OwnedFd> = (0..count).map(|_| Diag::open().expect("diag").into_fd()).collect();
                    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|fd| fd.as_fd()).collect();
                    self.send(&ToKeeper::Diag, &fds);
                }
                FromKeeper::Hello(_) => panic!("second greeting"),
                FromKeeper::Leaving => panic!("says that it leaves to a pod-watcher that knows nothing of it"),
                FromKeeper::Stats(_) => assert!(self.takes_stats, "counts for a pod-watcher that did not ask for them"),
                FromKeeper::Counter { .. } => panic!("a counter for a pod-watcher that keeps none"),
            }
        }
    }

    /// Waits until the keeper says that it leaves.
    pub fn leaving(&mut self) {
        loop {
            let packet = self.conn.recv().expect("recv").expect("open");
            if let FromKeeper::Leaving = link::decode("proxy", &packet.bytes).expect("message") {
                return;
            }
        }
    }

    /// The next counts; nothing else is waited for.
    pub fn next_stats(&mut self) -> KeeperStats {
        loop {
            let packet = self.conn.recv().expect("recv").expect("open");
            if let FromKeeper::Stats(stats) = link::decode("proxy", &packet.bytes).expect("message") {
                return stats;
            }
        }
    }

    /// These were done, in whatever order.
    #[track_caller]
    pub fn all_done(&mut self, ids: [u64; 2]) {
        let mut answers = ids.map(|_| self.answer());
        answers.sort_by_key(|(id, _)| *id);
        assert_eq!(answers, ids.map(|id| (id, None)));
    }

    #[track_caller]
    pub fn done(&mut self, id: u64) {
        assert_eq!(self.answer(), (id, None));
    }
}

/// The worker's end.
pub struct Worker {
    pub conn: Conn,
    requests: u32,
}

/// Connects as another user: the kernel notes the thread's at connect.
pub fn connect_as(uid: u32, path: &Path) -> io::Result<Conn> {
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        if uid != 0 {
            rustix::thread::set_thread_groups(&[]).expect("needs root");
            let (gid, uid) = (Gid::from_raw(uid), Uid::from_raw(uid));
            rustix::thread::set_thread_res_gid(gid, gid, gid).expect("needs root");
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("needs root");
        }
        Conn::connect(&path)
    });
    thread.join().expect("connects")
}

impl Worker {
    pub fn connect(dir: &Path) -> Self {
        Self::connect_as(dir, WORKER)
    }

    /// Dials as this user and sends the greeting; does not wait for one.
    pub fn connect_as(dir: &Path, uid: u32) -> Self {
        let path: PathBuf = dir.join("keeper.sock");
        let mut conn = None;
        eventually("the keeper listens", || {
            conn = connect_as(uid, &path).ok();
            conn.is_some()
        });
        let worker = Self { conn: conn.expect("just made"), requests: 0 };
        worker.conn.set_deadline(PATIENCE).expect("deadline");
        let _ = worker.try_send(FromWorker::Hello { oldest: 1, newest: 1, threads: 2 });
        worker
    }

    pub fn try_send(&self, record: FromWorker) -> io::Result<()> {
        self.conn.send(&record.to_bytes(), &[])
    }

    pub fn send(&self, record: FromWorker) {
        self.try_send(record).expect("send");
    }

    /// The next message.
    pub fn next(&self) -> (ToWorker, Vec<OwnedFd>) {
        let Packet { bytes, fds } = self.conn.recv().expect("recv").expect("open");
        (link::decode("worker", &bytes).expect("message"), fds)
    }

    /// Reads what was on its way, and then the end of the link.
    #[track_caller]
    pub fn cut(&self) {
        let end = std::iter::repeat_with(|| self.conn.recv()).find(|packet| !matches!(packet, Ok(Some(_))));
        let end = end.expect("repeats for ever").map_err(|error| error.kind());
        assert!(!matches!(end, Err(std::io::ErrorKind::WouldBlock)), "the link is still up");
    }

    /// The greeting and the node's facts.
    pub fn greeted(&self) -> Vec<OwnedFd> {
        assert!(matches!(self.next().0, ToWorker::Hello(_)));
        match self.next() {
            (ToWorker::Node(node), diag) => {
                assert_eq!(node.name, "node-1");
                diag
            }
            other => panic!("{other:?}"),
        }
    }

    /// The next message but for further node facts, which may come at any time.
    pub fn next_of_pods(&self) -> (ToWorker, Vec<OwnedFd>) {
        loop {
            match self.next() {
                (ToWorker::Node(_), _) => {}
                other => return other,
            }
        }
    }

    /// The next pod, acknowledged.
    pub fn pod(&self) -> (u32, PodFacts, Vec<TcpListener>) {
        match self.next_of_pods() {
            (ToWorker::Pod { id, slot, pod }, fds) => {
                assert_eq!(fds.len(), 3);
                self.send(FromWorker::Ack { id });
                (slot, pod, fds.into_iter().map(blocking).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn snapshot_end(&self) {
        match self.next_of_pods() {
            (ToWorker::SnapshotEnd { id }, _) => self.send(FromWorker::Ack { id }),
            other => panic!("{other:?}"),
        }
    }

    pub fn mint(
        &mut self,
        slot: u32,
        family: link::worker::Family,
        purpose: link::worker::Purpose,
        count: u8,
    ) -> (Vec<OwnedFd>, Option<String>) {
        self.requests += 1;
        self.send(FromWorker::Mint { request: self.requests, slot, family, purpose, count });
        match self.next_of_pods() {
            (ToWorker::Minted { request, short }, fds) => {
                assert_eq!(request, self.requests);
                (fds, short)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn blocking(fd: OwnedFd) -> TcpListener {
    let listener = TcpListener::from(fd);
    listener.set_nonblocking(false).expect("fcntl");
    set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE)).expect("deadline");
    listener
}

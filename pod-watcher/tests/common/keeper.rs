//! A keeper over the real link that does what the test says, and writes down what it was told and what was in force then.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_api::link::proxy::{FromKeeper, Refused, ToKeeper};
use mesh_api::link::worker::LISTENERS;
use mesh_api::link::{self, Hello, PodFacts};
use mesh_model::Mark;
use mesh_net::Netns;
use mesh_net::capture::{Mode, Session, Stage};
use mesh_net::seqpacket::Conn;
use mesh_net::socket::{self, Reach};

use super::flows::{PROXY, Server};
use super::{Node, eventually, within};

/// One message, with what was in force in the pod's netns when it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Node(usize),
    Diag(usize),
    Add { pod: String, facts: PodFacts, in_force: Option<Stage> },
    Update(PodFacts),
    Del { uid: String, drain: bool, in_force: Option<Stage> },
    SnapshotEnd,
}

/// How it answers an Add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// Opens listeners, then acks.
    Serve,
    /// The same, and takes connections as the proxy does: see [`Server`].
    Proxy,
    /// Acks without opening listeners.
    Lie,
    /// Refuses.
    Refuse,
    /// Says nothing.
    Silence,
}

pub struct FakeKeeper {
    pub seen: Arc<Mutex<Vec<Seen>>>,
    conn: Arc<Conn>,
    held: Arc<Mutex<Pods>>,
    thread: Option<JoinHandle<()>>,
}

/// By uid.
type Pods = BTreeMap<String, Held>;

/// A keeper of the node that has had its snapshot.
pub fn connected(node: &Node, answers: Answers) -> FakeKeeper {
    FakeKeeper::connect(&node.path("run/proxy.sock"), answers, Arc::default()).with_snapshot()
}

impl FakeKeeper {
    fn connect(socket: &Path, answers: Answers, held: Arc<Mutex<Pods>>) -> Self {
        let conn = Arc::new(Conn::connect(socket).expect("pod-watcher listens"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let thread = std::thread::spawn({
            let (conn, seen, held) = (conn.clone(), seen.clone(), held.clone());
            move || serve(&conn, &seen, &mut held.lock().expect("one link at a time"), answers)
        });
        Self { seen, conn, held, thread: Some(thread) }
    }

    fn with_snapshot(self) -> Self {
        eventually("the keeper has its snapshot", || self.seen().contains(&Seen::SnapshotEnd));
        self
    }

    /// The same keeper on a new link, once the earlier one has ended: what it holds, it holds.
    pub fn again(mut self, node: &Node, answers: Answers) -> Self {
        self.end();
        Self::connect(&node.path("run/proxy.sock"), answers, self.held.clone()).with_snapshot()
    }

    /// Ends the link.
    fn end(&mut self) {
        let _ = rustix::net::shutdown(self.conn.as_ref(), rustix::net::Shutdown::Both);
        let Some(thread) = self.thread.take() else { return };
        if !std::thread::panicking() {
            within(Duration::from_secs(10), "the keeper's thread ends with its link", || thread.is_finished());
            let _ = thread.join();
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    pub fn adds(&self) -> usize {
        self.seen().iter().filter(|seen| matches!(seen, Seen::Add { .. })).count()
    }

    /// Says that it leaves.
    pub fn leave(&self) {
        self.conn.send(&link::encode(&FromKeeper::Leaving), &[]).expect("sent");
    }

    pub fn want_diag(&self, count: u8) {
        self.conn.send(&link::encode(&FromKeeper::WantDiag { count }), &[]).expect("sent");
    }
}

impl Drop for FakeKeeper {
    fn drop(&mut self) {
        self.end();
    }
}

/// A pod that it serves.
struct Held {
    netns: Netns,
    mark: u32,
    /// By the snapshot that is going on.
    named: bool,
    listeners: Vec<OwnedFd>,
    servers: Vec<Server>,
}

impl Held {
    fn open(netns: Netns, mark: Mark, answers: Answers) -> Result<Self, socket::ListenError> {
        let open = || LISTENERS.iter().map(|port| socket::listen(*port, Reach::Owned(mark), 128)).collect();
        let opened: Result<Vec<OwnedFd>, _> = netns.run(open).expect("entered");
        let mut held = Self { netns, mark: mark.value(), named: true, listeners: opened?, servers: Vec::new() };
        if answers == Answers::Proxy {
            let serve = |listener| Server::start(TcpListener::from(listener), PROXY);
            held.servers = held.listeners.drain(..).map(serve).collect();
        }
        Ok(held)
    }

    /// Lets go of it, with its connections unless they may live on.
    fn let_go(self, drain: bool) {
        if !drain {
            self.servers.into_iter().for_each(Server::cut);
        }
    }
}

fn in_force(netns: &Netns) -> Option<Stage> {
    Session::open(netns, Mode::Plain)
        .expect("session")
        .read()
        .expect("read")
        .and_then(|found| found.spec)
        .map(|spec| spec.stage)
}

fn serve(conn: &Conn, seen: &Mutex<Vec<Seen>>, pods: &mut Pods, answers: Answers) {
    pods.values_mut().for_each(|held| held.named = false);
    conn.send(&link::encode(&FromKeeper::Hello(Hello::of("keeper"))), &[]).expect("greets");
    let note = |one: Seen| seen.lock().expect("no panic").push(one);
    let ack = |id: u64, refused: Option<Refused>| drop(conn.send(&link::encode(&FromKeeper::Ack { id, refused }), &[]));
    while let Ok(Some(packet)) = conn.recv() {
        let message: ToKeeper = link::decode("proxy", &packet.bytes).expect("a message");
        let mut fds = packet.fds;
        match message {
            ToKeeper::Hello(hello) => drop(hello.agree().expect("a version")),
            ToKeeper::Node(facts) => note(Seen::Node(facts.addresses.len())),
            ToKeeper::Successor | ToKeeper::Predecessor => panic!("introduced, and never said that it knows hand-over"),
            ToKeeper::Counter { .. } => panic!("told a counter, and never said that it keeps one"),
            ToKeeper::Diag => note(Seen::Diag(fds.len())),
            ToKeeper::Add { id, pod } => {
                let netns = Netns::from_fd(fds.pop().expect("one descriptor")).expect("a netns");
                let (uid, name) = (pod.uid.clone(), format!("{}/{}", pod.namespace, pod.name));
                let mark = Mark::from_random(pod.mark).expect("a mark");
                note(Seen::Add { pod: name, facts: pod, in_force: in_force(&netns) });
                match answers {
                    Answers::Serve | Answers::Proxy => {
                        let same = |held: &Held| held.netns.id() == netns.id() && held.mark == mark.value();
                        if let Some(held) = pods.get_mut(&uid).filter(|held| same(held)) {
                            held.named = true;
                            ack(id, None);
                            continue;
                        }
                        if let Some(held) = pods.remove(&uid) {
                            held.let_go(false);
                        }
                        match Held::open(netns, mark, answers) {
                            Ok(held) => {
                                pods.insert(uid, held);
                                ack(id, None);
                            }
                            Err(error) => {
                                ack(id, Some(Refused { reason: "Conflict".to_owned(), message: error.to_string() }))
                            }
                        }
                    }
                    Answers::Lie => ack(id, None),
                    Answers::Refuse => {
                        ack(id, Some(Refused { reason: "Conflict".to_owned(), message: "15001 is taken".to_owned() }))
                    }
                    Answers::Silence => {}
                }
            }
            ToKeeper::Update { id, pod } => {
                note(Seen::Update(pod));
                ack(id, None);
            }
            ToKeeper::Del { id, uid, drain } => {
                let held = pods.remove(&uid);
                let in_force = held.as_ref().and_then(|held| in_force(&held.netns));
                if let Some(held) = held {
                    held.let_go(drain);
                }
                note(Seen::Del { uid, drain, in_force });
                ack(id, None);
            }
            ToKeeper::SnapshotEnd { id } => {
                // What was not named, it lets go, as the real one does.
                for held in pods.extract_if(.., |_, held| !held.named).map(|(_, held)| held) {
                    held.let_go(false);
                }
                note(Seen::SnapshotEnd);
                ack(id, None);
            }
        }
    }
}

//! A keeper over the real link that does what the test says, and writes down what it was told and what was in force then.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use mesh_api::link::proxy::{FromKeeper, Refused, ToKeeper};
use mesh_api::link::worker::LISTENERS;
use mesh_api::link::{self, Hello, PodFacts};
use mesh_net::Netns;
use mesh_net::capture::{Mode, Session, Stage};
use mesh_net::seqpacket::Conn;
use mesh_net::socket::{self, Reach};

use super::{Node, eventually};

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
    thread: Option<JoinHandle<()>>,
}

/// A keeper of the node that has had its snapshot.
pub fn connected(node: &Node, answers: Answers) -> FakeKeeper {
    let keeper = FakeKeeper::connect(&node.path("run/proxy.sock"), answers);
    eventually("the keeper has its snapshot", || keeper.seen().contains(&Seen::SnapshotEnd));
    keeper
}

impl FakeKeeper {
    pub fn connect(socket: &Path, answers: Answers) -> Self {
        let conn = Arc::new(Conn::connect(socket).expect("pod-watcher listens"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let thread = std::thread::spawn({
            let (conn, seen) = (conn.clone(), seen.clone());
            move || serve(&conn, &seen, answers)
        });
        Self { seen, conn, thread: Some(thread) }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    pub fn adds(&self) -> usize {
        self.seen().iter().filter(|seen| matches!(seen, Seen::Add { .. })).count()
    }

    pub fn want_diag(&self, count: u8) {
        self.conn.send(&link::encode(&FromKeeper::WantDiag { count }), &[]).expect("sent");
    }
}

impl Drop for FakeKeeper {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(self.conn.as_ref(), rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Held {
    netns: Netns,
    _listeners: Vec<OwnedFd>,
}

impl Held {
    fn in_force(&self) -> Option<Stage> {
        in_force(&self.netns)
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

fn serve(conn: &Conn, seen: &Mutex<Vec<Seen>>, answers: Answers) {
    conn.send(&link::encode(&FromKeeper::Hello(Hello::of("keeper"))), &[]).expect("greets");
    let mut pods: BTreeMap<String, Held> = BTreeMap::new();
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
                let mark = mesh_model::Mark::from_random(pod.mark).expect("a mark");
                note(Seen::Add { pod: name, facts: pod, in_force: in_force(&netns) });
                match answers {
                    Answers::Serve => {
                        pods.remove(&uid);
                        let open = netns.run(|| {
                            let reach = Reach::Owned(mark);
                            LISTENERS
                                .iter()
                                .map(|port| socket::listen(*port, reach, 128))
                                .collect::<Result<Vec<_>, _>>()
                        });
                        match open.expect("entered") {
                            Ok(listeners) => {
                                pods.insert(uid, Held { netns, _listeners: listeners });
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
                let in_force = pods.remove(&uid).and_then(|held| held.in_force());
                note(Seen::Del { uid, drain, in_force });
                ack(id, None);
            }
            ToKeeper::SnapshotEnd { id } => {
                note(Seen::SnapshotEnd);
                ack(id, None);
            }
        }
    }
}

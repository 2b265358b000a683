//! One real keeper after another: what the older one holds goes to the newer, whoever comes first and however it ends. Needs root.

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;

use common::{OURS, Watcher, Worker, connect, keeper, listening, loopback, pod_netns, shared_dir, watcher_socket};
use mesh_api::link::handover::Handed;
use mesh_api::link::proxy::{HANDOVER, ToKeeper};
use mesh_api::link::worker::{Family, FromWorker, LISTENERS, Purpose, ToWorker};
use mesh_net::socket;
use rustix::process::Signal;

#[test]
fn a_successor_has_the_same_listeners_and_certificates_and_the_older_keepers_end_costs_no_connection() {
    hand_over(false);
}

#[test]
fn a_worker_that_is_there_before_the_handover_gets_listeners_and_certificates_all_the_same() {
    hand_over(true);
}

fn hand_over(worker_first: bool) {
    let (old_dir, new_dir) = (shared_dir(), shared_dir());
    let sockets = [&old_dir, &new_dir].map(|dir| watcher_socket(dir.path()));
    let hello = || mesh_api::link::Hello::of("pod-watcher").with(HANDOVER);
    let mut old = keeper(old_dir.path(), common::WORKER);
    let mut watcher = Watcher::greet(&sockets[0], hello());
    let mut first = Worker::connect(old_dir.path());
    first.greeted();
    let (pod, gone) = (pod_netns(), pod_netns());
    let slots = [("a", &pod), ("b", &gone)].map(|(uid, netns)| {
        let add = watcher.add(uid, netns);
        let (slot, _, _listeners) = first.pod();
        watcher.done(add);
        slot
    });
    let memfd = rustix::fs::memfd_create("certificates", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    first.conn.send(&FromWorker::Keep.to_bytes(), &[memfd.as_fd()]).expect("send");
    // Taken before anything is handed over: what comes behind it on the same link is answered.
    assert_eq!(first.mint(slots[0], Family::V4, Purpose::TowardsPeer, 1).1, None);

    let _new = keeper(new_dir.path(), common::WORKER);
    let mut heir = Watcher::greet(&sockets[1], hello());
    let (giver, taker) = mesh_net::seqpacket::Conn::pair().expect("pair");
    // What is named comes after what is handed over, however long that takes.
    heir.send(&ToKeeper::Predecessor, &[taker.as_fd()]);
    let add = heir.add("a", &pod);
    let end = heir.snapshot_end();
    let arrive = || {
        let worker = Worker::connect(new_dir.path());
        worker.greeted();
        worker
    };
    let early = worker_first.then(arrive);
    watcher.send(&ToKeeper::Successor, &[giver.as_fd()]);
    drop((giver, taker));
    let second = early.unwrap_or_else(arrive);
    assert!(matches!(second.next_of_pods().0, ToWorker::Certificates));
    let (_, facts, listeners) = second.pod();
    assert_eq!(facts, common::facts("a"));
    second.snapshot_end();
    heir.all_done([add, end]);

    // Who waits in the old one's queue, whose worker accepts no more, is served by the new one after the old one's end.
    let mut waiting: Vec<TcpStream> =
        [Family::V4, Family::V6].map(|family| connect(&pod, loopback(family, 15006))).into_iter().collect();
    old.signal(Signal::TERM);
    watcher.leaving();
    drop(first);
    assert!(old.ended().success());
    assert_eq!((listening(&pod).as_slice(), listening(&gone).len()), (OURS, 0));
    for stream in &mut waiting {
        stream.write_all(b"early").expect("write");
        let (mut far, _) = listeners[1].accept().expect("accept");
        let mut early = [0; 5];
        far.read_exact(&mut early).expect("read");
        assert_eq!(&early, b"early");
    }
}

#[test]
fn a_predecessor_that_stands_still_or_hands_over_something_else_costs_nothing_but_time() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let _keeper = keeper(dir.path(), common::WORKER);
    let mut watcher = Watcher::greet(&listener, mesh_api::link::Hello::of("pod-watcher").with(HANDOVER));
    let worker = Worker::connect(dir.path());
    worker.greeted();
    let pod = pod_netns();
    let (giver, taker) = mesh_net::seqpacket::Conn::pair().expect("pair");
    watcher.send(&ToKeeper::Predecessor, &[taker.as_fd()]);
    // Listeners in the wrong order, too few descriptors, and no listener at all; then silence.
    let other = pod_netns();
    let open = |port| other.run(|| socket::listen(port, socket::Reach::OwnPort, 1)).expect("entered").expect("listen");
    let [out, inbound, tunnel] = LISTENERS.map(open);
    let netns = (pod.id().dev, pod.id().ino);
    let hand = |uid: &str, fds: &[std::os::fd::BorrowedFd<'_>]| {
        let message = Handed::Pod { uid: uid.to_owned(), netns };
        giver.send(&mesh_api::link::encode(&message), fds).expect("send");
    };
    hand("a", &[inbound.as_fd(), out.as_fd(), tunnel.as_fd()]);
    hand("a", &[out.as_fd()]);
    hand("a", &[giver.as_fd(), giver.as_fd(), giver.as_fd()]);
    // Good ones of another sandbox of the pod.
    let message = Handed::Pod { uid: "a".to_owned(), netns: (other.id().dev, other.id().ino) };
    giver.send(&mesh_api::link::encode(&message), &[out.as_fd(), inbound.as_fd(), tunnel.as_fd()]).expect("send");
    let add = watcher.add("a", &pod);
    let end = watcher.snapshot_end();
    let (_, _, listeners) = worker.pod();
    watcher.all_done([add, end]);
    drop((out, inbound, tunnel));
    assert_eq!((listening(&pod).as_slice(), listening(&other).len()), (OURS, 0));
    for (listener, port) in listeners.iter().zip(LISTENERS) {
        let _near = connect(&pod, loopback(Family::V4, port));
        listener.accept().expect("accept");
    }
}

//! The real keeper, with exactly the user and capabilities of the DaemonSet, between a watcher and workers played by the test, in
//! real network namespaces. Needs root.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use common::{
    OURS, Watcher, Worker, connect, eventually, keeper, listening, loopback, pod_netns, shared_dir, watcher_socket,
};
use mesh_api::link::worker::{Family, FromWorker, LISTENERS, Purpose, ToWorker};
use mesh_net::Netns;
use mesh_net::socket;
use rustix::process::Signal;

#[test]
fn a_pod_is_served_by_one_worker_after_another_and_no_connection_is_lost_between_them() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let _keeper = keeper(dir.path(), common::WORKER);
    let mut watcher = Watcher::accept(&listener);
    let first = Worker::connect(dir.path());
    first.greeted();
    let pod = pod_netns();
    let add = watcher.add("a", &pod);
    let (slot, facts, listeners) = first.pod();
    assert_eq!(facts, common::facts("a"));
    watcher.done(add);
    assert_eq!(listening(&pod), OURS);
    let end = watcher.snapshot_end();
    first.snapshot_end();
    watcher.done(end);
    for family in [Family::V4, Family::V6] {
        for (listener, port) in listeners.iter().zip(LISTENERS) {
            let _near = connect(&pod, loopback(family, port));
            listener.accept().expect("accept");
        }
    }

    // The worker dies: nothing of the pod closes, and who connects meanwhile waits in the queue.
    drop((first, listeners));
    let mut waiting: Vec<TcpStream> =
        [Family::V4, Family::V6].map(|family| connect(&pod, loopback(family, 15006))).into_iter().collect();
    for stream in &mut waiting {
        stream.write_all(b"early").expect("write");
    }
    // The watcher is gone as well: the next worker is served from what is held.
    drop((watcher, listener));
    let second = Worker::connect(dir.path());
    second.greeted();
    let (again, _, listeners) = second.pod();
    assert_eq!(again, slot);
    second.snapshot_end();
    for _ in &waiting {
        let (mut far, _) = listeners[1].accept().expect("accept");
        let mut early = [0; 5];
        far.read_exact(&mut early).expect("read");
        assert_eq!(&early, b"early");
    }

    // The watcher comes back, and names the pod no more.
    let listener = watcher_socket(dir.path());
    let mut watcher = Watcher::accept(&listener);
    let end = watcher.snapshot_end();
    match second.next_of_pods() {
        (ToWorker::Gone { id, slot: gone, drain: false }, _) => {
            assert_eq!(gone, slot);
            drop(listeners);
            second.send(FromWorker::Ack { id });
        }
        other => panic!("{other:?}"),
    }
    watcher.done(end);
    eventually("the listeners are closed", || listening(&pod).is_empty());
}

#[test]
fn the_keeper_is_what_the_design_says_and_one_thread() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let keeper = keeper(dir.path(), common::WORKER);
    let _watcher = Watcher::accept(&listener);
    // CAP_NET_ADMIN is bit 12, CAP_SYS_ADMIN bit 21.
    let two = format!("{:016x}", 1_u64 << 12 | 1 << 21);
    let none = format!("{:016x}", 0);
    let expected = [("CapEff", &two), ("CapPrm", &two), ("CapBnd", &two), ("CapInh", &none), ("CapAmb", &none)];
    for (field, expected) in expected {
        assert_eq!(keeper.status(field), *expected, "{field}");
    }
    for (field, expected) in
        [("Uid", "0"), ("NoNewPrivs", "1"), ("Seccomp", "2"), ("Seccomp_filters", "2"), ("Threads", "1")]
    {
        assert_eq!(keeper.status(field), expected, "{field}");
    }
    let socket = std::fs::metadata(dir.path().join("keeper.sock")).expect("socket");
    assert_eq!((socket.uid(), socket.gid(), socket.mode() & 0o7777), (0, common::WORKER, 0o660));
}

#[test]
fn minted_sockets_are_of_the_pod_and_reach_its_app_from_a_foreign_source() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let _keeper = keeper(dir.path(), common::WORKER);
    let mut watcher = Watcher::accept(&listener);
    let mut worker = Worker::connect(dir.path());
    worker.greeted();
    let pod = pod_netns();
    for rule in [
        "ip rule add iif lo lookup 100 pref 1",
        "ip route add local default dev lo table 100",
        "ip -6 rule add iif lo lookup 100 pref 1",
        "ip -6 route add local default dev lo table 100",
    ] {
        let done = pod.run(|| std::process::Command::new("sh").args(["-c", rule]).status()).expect("entered");
        assert!(done.expect("sh runs").success(), "{rule}");
    }
    let app = pod.run(|| TcpListener::bind("[::]:8080")).expect("entered").expect("bind");
    let add = watcher.add("a", &pod);
    let (slot, _, _listeners) = worker.pod();
    watcher.done(add);
    let foreign: [(Family, IpAddr); 2] = [
        (Family::V4, Ipv4Addr::new(198, 18, 7, 7).into()),
        (Family::V6, Ipv6Addr::new(0xfd77, 7, 0, 0, 0, 0, 0, 7).into()),
    ];
    for (family, source) in foreign {
        let (sockets, short) = worker.mint(slot, family, Purpose::TowardsApp, 64);
        assert_eq!((sockets.len(), short), (64, None));
        let socket = sockets.into_iter().next().expect("64");
        socket::bind_source(&socket, SocketAddr::new(source, 0)).expect("bind a foreign source");
        let near = socket2::Socket::from(socket);
        assert_eq!(near.mark().expect("mark"), common::facts("a").mark);
        near.set_nonblocking(false).expect("fcntl");
        near.connect(&loopback(family, 8080).into()).expect("connect");
        assert_eq!(app.accept().expect("accept").1.ip().to_canonical(), source);
        let (sockets, short) = worker.mint(slot, family, Purpose::TowardsPeer, 1);
        assert_eq!((sockets.len(), short), (1, None));
    }
    let (sockets, short) = worker.mint(slot + 1, Family::V4, Purpose::TowardsApp, 1);
    assert_eq!((sockets.len(), short.as_deref()), (0, Some("NotReady")), "unknown slots get nothing");
    // Rate: 4,096 at once and 20,000 a second; a greedy worker is told so and the keeper lives.
    let (mut got, mut refused) = (0, 0);
    for _ in 0..2_000 {
        let (sockets, short) = worker.mint(slot, Family::V4, Purpose::TowardsPeer, 64);
        got += sockets.len();
        refused += usize::from(short.as_deref() == Some("Overloaded"));
    }
    assert!(got >= 3_900 && refused > 0, "{got} minted, {refused} times told off");
}

#[test]
fn what_a_pod_cost_is_given_back_when_it_goes() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let keeper = keeper(dir.path(), common::WORKER);
    let mut watcher = Watcher::accept(&listener);
    let mut worker = Worker::connect(dir.path());
    worker.greeted();
    // Both sides' stocks of sock_diag sockets are full once the snapshot is acknowledged and nothing more is wanted.
    let end = watcher.snapshot_end();
    worker.snapshot_end();
    watcher.done(end);
    let warm = pod_netns();
    for round in 0..2 {
        let add = watcher.add(&format!("warm-{round}"), &warm);
        let (_, _, listeners) = worker.pod();
        watcher.done(add);
        let del = watcher.del(&format!("warm-{round}"));
        let (ToWorker::Gone { id, .. }, _) = worker.next_of_pods() else { panic!("not gone") };
        drop(listeners);
        worker.send(FromWorker::Ack { id });
        watcher.done(del);
    }
    let before = keeper.fds();
    let pods: Vec<Netns> = (0..50).map(|_| pod_netns()).collect();
    let mut held = Vec::new();
    for (n, pod) in pods.iter().enumerate() {
        let add = watcher.add(&format!("p-{n}"), pod);
        held.push(worker.pod());
        watcher.done(add);
    }
    assert_eq!(keeper.fds(), before + 4 * pods.len(), "a namespace and three listeners each");
    for (n, (slot, _, listeners)) in held.into_iter().enumerate() {
        let (sockets, _) = worker.mint(slot, Family::V4, Purpose::TowardsApp, 8);
        let del = watcher.del(&format!("p-{n}"));
        let (ToWorker::Gone { id, slot: gone, .. }, _) = worker.next_of_pods() else { panic!("not gone") };
        assert_eq!(gone, slot);
        drop((listeners, sockets));
        worker.send(FromWorker::Ack { id });
        watcher.done(del);
        assert!(listening(&pods[n]).is_empty(), "closed before the acknowledgement");
        let (sockets, _) = worker.mint(slot, Family::V4, Purpose::TowardsApp, 1);
        assert!(sockets.is_empty(), "a slot that is gone stays gone");
    }
    assert_eq!(keeper.fds(), before);
}

#[test]
fn an_app_on_one_of_our_ports_is_a_conflict_that_names_the_port_and_leaves_the_pod_untouched() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let _keeper = keeper(dir.path(), common::WORKER);
    let mut watcher = Watcher::accept(&listener);
    let worker = Worker::connect(dir.path());
    worker.greeted();
    for (n, port) in LISTENERS.into_iter().enumerate() {
        let pod = pod_netns();
        let app = pod.run(|| TcpListener::bind(("127.0.0.1", port))).expect("entered").expect("bind");
        let add = watcher.add(&format!("p-{n}"), &pod);
        let (id, refused) = watcher.answer();
        let refused = refused.expect("refused");
        assert_eq!((id, refused.reason.as_str()), (add, "Conflict"));
        assert!(
            refused.message.contains(&port.to_string()) && refused.message.contains("shop/p-"),
            "{}",
            refused.message
        );
        assert_eq!(listening(&pod), [port], "only the app listens");
        // The app goes, and the pod can be served.
        drop(app);
        // A process that another test starts has it open until it has become that.
        eventually("the app is gone", || listening(&pod).is_empty());
        let add = watcher.add(&format!("p-{n}"), &pod);
        let (_, _, _listeners) = worker.pod();
        watcher.done(add);
    }
}

#[test]
fn an_add_that_carries_no_pods_namespace_is_refused() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let _keeper = keeper(dir.path(), common::WORKER);
    let mut watcher = Watcher::accept(&listener);
    let add = mesh_api::link::proxy::ToKeeper::Add { id: 90, pod: common::facts("a") };
    let file = std::fs::File::open("/dev/null").expect("null");
    for fds in [vec![], vec![file.as_fd()], vec![file.as_fd(), file.as_fd()]] {
        watcher.send(&add, &fds);
        assert_eq!(watcher.answer().1.map(|refused| refused.reason).as_deref(), Some("Malformed"));
    }
    // The keeper's own namespace is the test's.
    let own = Netns::current().expect("netns");
    let id = watcher.add("b", &own);
    let (answered, refused) = watcher.answer();
    assert_eq!((answered, refused.map(|refused| refused.reason).as_deref()), (id, Some("Conflict")));
}

#[test]
fn what_the_keeper_counts_reaches_a_pod_watcher_that_takes_it_and_no_other() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let keeper = keeper(dir.path(), common::WORKER);
    // An older pod-watcher: it is served, and `Watcher` fails on counts that it did not ask for.
    let mut older = Watcher::accept(&listener);
    let end = older.snapshot_end();
    let worker = Worker::connect(dir.path());
    worker.greeted();
    worker.snapshot_end();
    older.done(end);
    drop(older);

    let hello = mesh_api::link::Hello::of("pod-watcher").with(mesh_api::link::proxy::STATS);
    let mut watcher = Watcher::greet(&listener, hello);
    let first = watcher.next_stats();
    assert_eq!((first.workers, first.worker_up, first.pods, first.minted), (1, true, 0, 0));
    let pod = pod_netns();
    let add = watcher.add("a", &pod);
    let (slot, _, _listeners) = worker.pod();
    watcher.done(add);
    let own = Netns::current().expect("netns");
    watcher.add("b", &own);
    assert!(watcher.answer().1.is_some());
    for count in [3, 64] {
        let mint = FromWorker::Mint { request: 1, slot, family: Family::V6, purpose: Purpose::TowardsApp, count };
        worker.send(mint);
        let (answer, fds) = worker.next();
        assert!(matches!(answer, ToWorker::Minted { .. }) && fds.len() == usize::from(count), "{answer:?}");
    }
    // Of a pod that is not there.
    let nobody =
        FromWorker::Mint { request: 2, slot: slot + 99, family: Family::V4, purpose: Purpose::TowardsPeer, count: 1 };
    worker.send(nobody);
    let (answer, _) = worker.next();
    assert!(matches!(answer, ToWorker::Minted { short: Some(_), .. }), "{answer:?}");
    drop(worker);

    let stats = loop {
        let stats = watcher.next_stats();
        if !stats.worker_up {
            break stats;
        }
    };
    assert_eq!((stats.mint_requests, stats.minted, stats.mint_short.values().sum::<u64>()), (3, 67, 1));
    assert_eq!((stats.listeners_opened, stats.listeners_handed, stats.pods), (3, 3, 1));
    assert_eq!((stats.workers, stats.workers_lost, stats.worker_up), (1, 1, false));
    assert_eq!(stats.refused.get("Conflict"), Some(&1));
    assert_eq!(stats.start_millis, first.start_millis);
    assert!(stats.resident_bytes > 1 << 20 && stats.max_fds >= stats.open_fds, "{stats:?}");
    let open = std::fs::read_dir(format!("/proc/{}/fd", keeper.0.id())).expect("the keeper lives").count() as u64;
    assert!(stats.open_fds.abs_diff(open) <= 1, "{open} open, told {}", stats.open_fds);
}

#[test]
fn only_one_worker_of_the_right_user_is_served_and_a_bad_one_harms_nobody() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let mut keeper = keeper(dir.path(), common::WORKER);
    let mut watcher = Watcher::accept(&listener);
    // Root is not the worker.
    let stranger = Worker::connect_as(dir.path(), 0);
    assert!(matches!(stranger.conn.recv(), Ok(None) | Err(_)), "a stranger is cut without a word");
    let first = Worker::connect(dir.path());
    first.greeted();
    let pod = pod_netns();
    let add = watcher.add("a", &pod);
    let (slot, _, _listeners) = first.pod();
    watcher.done(add);
    // A second one waits until the first has gone.
    let second = Worker::connect(dir.path());
    second.conn.set_deadline(std::time::Duration::from_millis(200)).expect("deadline");
    assert_eq!(second.conn.recv().map(|_| ()).map_err(|error| error.kind()), Err(std::io::ErrorKind::WouldBlock));
    second.conn.set_deadline(common::PATIENCE).expect("deadline");
    // The first says nonsense: it is cut, and the second has its place.
    first.conn.send(&[9; 32], &[]).expect("send");
    first.cut();
    second.greeted();
    assert_eq!(second.pod().0, slot);
    // Descriptors where none belong, wrong sizes, a greeting too many: each costs the sender its link and nothing else.
    let null = std::fs::File::open("/dev/null").expect("null");
    let hello = FromWorker::Hello { oldest: 1, newest: 1, threads: 2 }.to_bytes();
    let ack = FromWorker::Ack { id: 1 }.to_bytes();
    let mut last = second;
    let bad: [(&[u8], usize); 5] =
        [(&ack, 1), (&ack[..31], 0), (&hello, 0), (&[0; 40_000], 0), (&FromWorker::Keep.to_bytes(), 2)];
    for (bytes, fds) in bad {
        last.conn.send(bytes, &vec![null.as_fd(); fds]).expect("send");
        last.cut();
        last = Worker::connect(dir.path());
        last.greeted();
        assert_eq!(last.pod().0, slot);
    }
    // Versions that have nothing in common.
    drop(last);
    let path = dir.path().join("keeper.sock");
    let future = common::connect_as(common::WORKER, &path).expect("connect");
    future.send(&FromWorker::Hello { oldest: 9, newest: 9, threads: 2 }.to_bytes(), &[]).expect("send");
    assert!(matches!(future.recv(), Ok(None) | Err(_)));
    assert!(keeper.0.try_wait().expect("our child").is_none(), "the keeper lives");
}

#[test]
fn the_certificates_of_a_worker_are_kept_unread_for_the_next_and_only_a_memfd_is_taken() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let _keeper = keeper(dir.path(), common::WORKER);
    let _watcher = Watcher::accept(&listener);
    let first = Worker::connect(dir.path());
    first.greeted();
    let memfd = rustix::fs::memfd_create("certificates", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    rustix::io::write(&memfd, b"secret").expect("write");
    let null = std::fs::File::open("/dev/null").expect("null");
    first.conn.send(&FromWorker::Keep.to_bytes(), &[memfd.as_fd()]).expect("send");
    first.conn.send(&FromWorker::Keep.to_bytes(), &[null.as_fd()]).expect("send");
    drop((first, memfd));
    let second = Worker::connect(dir.path());
    second.greeted();
    let (message, fds) = second.next();
    assert_eq!(message, ToWorker::Certificates);
    let [kept] = <[OwnedFd; 1]>::try_from(fds).expect("one");
    let mut bytes = [0; 16];
    let length = rustix::io::pread(&kept, &mut bytes, 0).expect("read");
    assert_eq!(&bytes[..length], b"secret");
}

#[test]
fn sock_diag_sockets_reach_each_worker_and_answer_it() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let _keeper = keeper(dir.path(), common::WORKER);
    let mut watcher = Watcher::accept(&listener);
    // Answering the acknowledgement's wait also hands over what the keeper asks for.
    let end = watcher.snapshot_end();
    watcher.done(end);
    let app = TcpListener::bind("127.0.0.1:0").expect("bind");
    let near = TcpStream::connect(app.local_addr().expect("bound")).expect("connect");
    let (local, remote) = (near.local_addr().expect("local"), near.peer_addr().expect("peer"));
    for _ in 0..3 {
        let worker = Worker::connect(dir.path());
        let mut sockets = worker.greeted();
        let end = watcher.snapshot_end();
        watcher.done(end);
        while sockets.len() < 2 {
            match worker.next() {
                (ToWorker::Node(_), more) => sockets.extend(more),
                (ToWorker::SnapshotEnd { .. }, _) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sockets.len(), 2, "one for each thread");
        for socket in sockets {
            let mut diag = mesh_net::diag::Diag::from_fd(socket);
            assert!(diag.has_socket(local, remote).expect("ask"));
        }
    }
}

#[test]
fn a_keeper_asked_to_stop_stays_until_its_worker_has_gone() {
    let dir = shared_dir();
    let listener = watcher_socket(dir.path());
    let mut keeper = keeper(dir.path(), common::WORKER);
    let mut watcher = Watcher::accept(&listener);
    let mut worker = Worker::connect(dir.path());
    worker.greeted();
    let pod = pod_netns();
    let add = watcher.add("a", &pod);
    let (slot, _, _listeners) = worker.pod();
    watcher.done(add);
    keeper.signal(Signal::TERM);
    // It drains, and may need sockets for that.
    let (sockets, _) = worker.mint(slot, Family::V4, Purpose::TowardsPeer, 1);
    assert_eq!(sockets.len(), 1);
    assert!(keeper.0.try_wait().expect("our child").is_none());
    drop(worker);
    assert!(keeper.ended().success());
    assert!(!dir.path().join("keeper.sock").exists(), "its socket goes with it");
}

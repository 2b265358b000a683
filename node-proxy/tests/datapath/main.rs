//! The data path in real namespaces, with the real keeper and worker as the DaemonSet runs them, over IPv4 and IPv6. Needs root.

#![allow(clippy::print_stdout)] // Figures are printed, for who runs it with --nocapture.

#[path = "../common/mod.rs"]
mod common;
mod lab;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{PATIENCE, eventually};
use ipnetwork::IpNetwork;
use lab::{Host, Lab, workload};
use mesh_model::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch};
use mesh_model::{Service, ServiceKey, ServicePort};
use rustix::process::Signal;

const FAMILIES: [bool; 2] = [false, true];

fn policy(name: &str, action: Action, account: &str) -> Policy {
    let principals = vec![StringMatch::Exact(format!("cluster.local/ns/shop/sa/{account}"))];
    let matches = vec![Match { principals, ..Match::default() }];
    Policy {
        key: PolicyKey { namespace: "shop".into(), name: name.into() },
        scope: Scope::Namespace,
        action,
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        dry_run: false,
        invalid: false,
    }
}

fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, peer) = listener.accept().expect("accept");
    stream.set_read_timeout(Some(PATIENCE)).expect("deadline");
    (stream, peer)
}

fn converse(client: &mut TcpStream, server: &mut TcpStream) {
    let mut bytes = [0; 4];
    client.write_all(b"ping").expect("write");
    server.read_exact(&mut bytes).expect("read");
    server.write_all(b"pong").expect("write");
    client.read_exact(&mut bytes).expect("read");
    assert_eq!(&bytes, b"pong");
}

fn is_reset(client: &mut TcpStream) {
    let error = loop {
        match client.read(&mut [0]).expect_err("a reset") {
            // A read with a deadline is not started again by the kernel after a signal or a stop: signal(7).
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

/// The connection is reset, maybe already while `connect` looks at what the handshake gave.
fn is_refused(connected: io::Result<TcpStream>) {
    match connected {
        Ok(mut client) => is_reset(&mut client),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// 10 MB each way, the server's after the client's end of data.
fn bulk(client: TcpStream, server: TcpStream) {
    const SIZE: usize = 10 * 1024 * 1024;
    let pattern = |seed: u32| -> Vec<u8> {
        (0..SIZE as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 11) as u8).collect()
    };
    let (up, down) = (pattern(1), pattern(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = client;
            client.write_all(&up).expect("write");
            client.shutdown(Shutdown::Write).expect("half-close");
            let mut got = Vec::new();
            client.read_to_end(&mut got).expect("read");
            assert!(got == down, "what the client got differs");
        });
        let mut server = server;
        let mut got = Vec::new();
        server.read_to_end(&mut got).expect("read");
        assert!(got == up, "what the server got differs");
        server.write_all(&down).expect("write after the client's half-close");
    });
}

fn two_pods() -> (Lab, Host, Host) {
    let mut lab = Lab::up();
    let (web, cart) = (lab.pod(5, "web"), lab.pod(6, "cart"));
    lab.publish(|mesh| {
        mesh.apply_workload(workload("web", 5));
        mesh.apply_workload(workload("cart", 6));
    });
    (lab, web, cart)
}

#[test]
fn pods_of_one_node_talk_by_pod_address_and_service_and_see_each_others_own_addresses() {
    let (mut lab, web, cart) = two_pods();
    for v6 in FAMILIES {
        let (app, address) = cart.listens(v6);
        let mut client = web.connects(address).expect("connect");
        let (mut server, seen) = accept(&app);
        assert_eq!(seen, client.local_addr().expect("address"), "the caller's own address and port");
        converse(&mut client, &mut server);
        bulk(client, server);

        let vip: SocketAddr = if v6 { "[fd77:0:0:80::9]:80" } else { "198.18.128.9:80" }.parse().expect("address");
        let key = ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() };
        lab.publish(|mesh| {
            mesh.apply_service(Service {
                key: key.clone(),
                name: "cart".into(),
                vips: vec![vip.ip()],
                ports: vec![ServicePort {
                    service_port: 80,
                    target_port: Some(address.port()),
                    app_protocol: Default::default(),
                }],
                subject_alt_names: Vec::new(),
                publish_not_ready: false,
                near: mesh_model::Near::Any,
                external: None,
                session_affinity: None,
                ip_families: Default::default(),
                needs_waypoint: false,
            });
            let mut behind = workload("cart", 6);
            behind.services.insert(key.clone(), mesh_model::Endpoint::at([(80, address.port())]));
            mesh.apply_workload(behind)
        });
        let mut client = web.connects(vip).expect("connect");
        let (mut server, seen) = accept(&app);
        assert_eq!(seen.ip(), web.address(v6));
        converse(&mut client, &mut server);
        drop((client, server));
    }
    eventually("both ends of each connection have a line", || lab.lines().len() == 8);
    for line in lab.lines() {
        assert_eq!(line["source_identity"], "spiffe://cluster.local/ns/shop/sa/sa-web", "{line}");
        assert_eq!(line["destination_identity"], "spiffe://cluster.local/ns/shop/sa/sa-cart", "{line}");
        assert_eq!(line["route"], "same-node", "{line}");
    }
}

#[test]
fn outside_passes_from_the_pods_own_address_and_an_unknown_inside_is_refused_in_two_seconds() {
    let (lab, web, _cart) = two_pods();
    let outside = lab.host(20, "203.0.113.5", "2001:db8::5");
    for v6 in FAMILIES {
        let (app, address) = outside.listens(v6);
        let mut client = web.connects(address).expect("connect");
        let (mut server, seen) = accept(&app);
        assert_eq!(seen.ip(), web.address(v6));
        converse(&mut client, &mut server);
        let unknown: SocketAddr = if v6 { "[fd77::99]:80" } else { "198.19.9.9:80" }.parse().expect("address");
        let started = Instant::now();
        is_refused(web.connects(unknown));
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }
    eventually("refusals are told", || {
        lab.lines().iter().filter(|line| line["reason"] == "UnknownDestination").count() == 2
    });
}

#[test]
fn plaintext_from_outside_passes_without_policy_and_is_refused_by_one_that_wants_an_identity() {
    let (mut lab, _web, cart) = two_pods();
    let plain = lab.host(9, "198.18.1.9", "fd77:0:0:1::9");
    for v6 in FAMILIES {
        let (app, address) = cart.listens(v6);
        let mut client = plain.connects(address).expect("connect");
        let (mut server, seen) = accept(&app);
        assert_eq!(seen, client.local_addr().expect("address"));
        converse(&mut client, &mut server);
        lab.publish(|mesh| mesh.apply_policy(policy("only-web", Action::Allow, "sa-web")));
        is_reset(&mut client);
        is_refused(plain.connects(address));
        lab.publish(|mesh| mesh.remove_policy(&policy("only-web", Action::Allow, "sa-web").key));
    }
}

#[test]
fn a_caller_that_binds_what_is_not_its_own_is_seen_and_judged_by_its_own_address() {
    let (mut lab, web, cart) = two_pods();
    for v6 in FAMILIES {
        let (app, address) = cart.listens(v6);
        let own = web.address(v6);
        let loopback: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let claimed = [loopback, web.claims(v6)];
        for source in claimed {
            let mut client = web.connects_from(source, address).expect("connect");
            assert_eq!(client.local_addr().expect("address").ip(), source);
            let (mut server, seen) = accept(&app);
            assert_eq!(seen.ip(), own, "{source}");
            converse(&mut client, &mut server);
        }
        let mut no_web = policy("no-web", Action::Deny, "sa-web");
        no_web.rules[0].clauses[0].matches[0] = Match { source_ips: vec![IpNetwork::from(own)], ..Match::default() };
        lab.publish(|mesh| mesh.apply_policy(no_web.clone()));
        claimed.into_iter().for_each(|source| is_refused(web.connects_from(source, address)));
        lab.publish(|mesh| mesh.remove_policy(&no_web.key));
    }
}

#[test]
fn a_probe_of_the_node_passes_a_closed_pod_and_nothing_else_from_there() {
    let (mut lab, _web, cart) = two_pods();
    lab.publish(|mesh| mesh.apply_policy(policy("only-nobody", Action::Allow, "nobody")));
    let (app, address) = cart.listens_at(false, 8080);
    let from_node = |to: SocketAddr| lab.node().run(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("entered");
    let mut probe = from_node(address).expect("connect");
    let (mut server, seen) = accept(&app);
    assert_eq!(seen, probe.local_addr().expect("address"));
    converse(&mut probe, &mut server);
    let (_other, not_probed) = cart.listens_at(false, 8081);
    is_refused(from_node(not_probed));
    // The node's address, forged by a neighbour: the node has no such socket.
    let liar = lab.host(10, "198.18.1.10", "fd77:0:0:1::10");
    is_refused(liar.connects(address));
}

#[test]
fn a_policy_renamed_into_place_resets_the_newly_denied_connection_within_a_second() {
    let (mut lab, web, cart) = two_pods();
    let mut longest = Duration::ZERO;
    for v6 in FAMILIES {
        let (app, address) = cart.listens(v6);
        let plain = lab.host(
            30 + u8::from(v6),
            &format!("198.18.1.{}", 30 + u8::from(v6)),
            &format!("fd77:0:0:1::3{}", u8::from(v6)),
        );
        let mut untouched = plain.connects(address).expect("connect");
        let (mut other, _) = accept(&app);
        for _ in 0..10 {
            let mut denied = web.connects(address).expect("connect");
            let (mut server, _) = accept(&app);
            converse(&mut denied, &mut server);
            let renamed = Instant::now();
            lab.change(|mesh| mesh.apply_policy(policy("no-web", Action::Deny, "sa-web")));
            is_reset(&mut denied);
            longest = longest.max(renamed.elapsed());
            lab.publish(|mesh| mesh.remove_policy(&policy("no-web", Action::Deny, "sa-web").key));
        }
        converse(&mut untouched, &mut other);
    }
    println!("rename to reset, longest of 20: {longest:?}");
    assert!(longest <= Duration::from_secs(1), "{longest:?}");
}

#[test]
fn a_killed_worker_loses_no_waiting_connection_and_the_next_serves() {
    let (lab, web, cart) = two_pods();
    let (app, address) = cart.listens(false);
    let before = lab.worker();
    rustix::process::kill_process(before, Signal::KILL).expect("alive");
    let started = Instant::now();
    let mut client = web.connects(address).expect("the keeper holds the listener");
    let (mut server, _) = accept(&app);
    converse(&mut client, &mut server);
    println!("kill -9 to a served new connection: {:?}", started.elapsed());
    assert_ne!(lab.worker(), before);
}

#[test]
fn a_worker_asked_to_stop_lets_connections_end_takes_no_new_one_and_leaves_in_good_order() {
    let (mut lab, web, cart) = two_pods();
    let (app, address) = cart.listens(false);
    let mut client = web.connects(address).expect("connect");
    let (mut server, _) = accept(&app);
    converse(&mut client, &mut server);
    lab.supervisor.signal(Signal::TERM);
    // Who comes now waits in the keeper's queue for a successor.
    eventually("the worker takes no new connection", || {
        let mut late = web.connects(address).expect("the keeper holds the listener");
        late.set_nonblocking(true).expect("fcntl");
        app.set_nonblocking(true).expect("fcntl");
        let _ = rustix::event::poll(&mut [], Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
        let taken = app.accept().is_ok();
        !taken && late.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    });
    converse(&mut client, &mut server);
    drop((client, server));
    // Not at the deadline: as soon as the last connection has ended.
    let started = Instant::now();
    assert!(lab.supervisor.ended().success());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(lab.lines().iter().filter(|line| line["reason"].is_null()).count() % 2, 0);
}

/// Not a measurement to be quoted: both ends, the proxy and the test share the machine with everything else.
#[test]
fn figures_of_the_short_way() {
    let (lab, web, cart) = two_pods();
    let (app, address) = cart.listens(false);
    let mut client = web.connects(address).expect("connect");
    let (mut server, _) = accept(&app);
    client.set_nodelay(true).expect("nodelay");
    server.set_nodelay(true).expect("nodelay");
    converse(&mut client, &mut server);
    let mut times: Vec<Duration> = (0..2000)
        .map(|_| {
            let started = Instant::now();
            converse(&mut client, &mut server);
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("round trip, 4 bytes: p50 {:?}, p99 {:?}", times[1000], times[1980]);
    let started = Instant::now();
    const CONNECTIONS: u32 = 2000;
    for _ in 0..CONNECTIONS {
        let mut client = web.connects(address).expect("connect");
        let (mut server, _) = accept(&app);
        converse(&mut client, &mut server);
    }
    println!("connections, one after the other: {:.0}/s", f64::from(CONNECTIONS) / started.elapsed().as_secs_f64());
    let bytes = 512 << 20;
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let chunk = vec![7; 128 << 10];
            (0..bytes / chunk.len()).for_each(|_| client.write_all(&chunk).expect("write"));
            client.shutdown(Shutdown::Write).expect("half-close");
        });
        let mut sink = vec![0; 256 << 10];
        // A read with a deadline may be interrupted without a signal, when the machine itself stood still.
        loop {
            match server.read(&mut sink) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("read: {error}"),
            }
        }
    });
    println!("bulk: {:.1} Gbit/s", bytes as f64 * 8.0 / 1e9 / started.elapsed().as_secs_f64());
    let resident = || -> u64 {
        let pid = lab.worker().as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    let before = resident();
    const IDLE: usize = 2000;
    let held: Vec<_> = (0..IDLE)
        .map(|_| {
            let mut client = web.connects(address).expect("connect");
            let (mut server, _) = accept(&app);
            converse(&mut client, &mut server);
            (client, server)
        })
        .collect();
    println!("user memory of an idle connection: {:.1} KiB", resident().saturating_sub(before) as f64 / IDLE as f64);
    println!("resident before: {before} KiB");
    drop((held, client, server));
    eventually("all places are free again", || lab.asks("stats")["places_left"] == 8750);
}

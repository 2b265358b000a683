//! The serve functions of both directions, end to end over loopback: what a caller and an application see.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch};
use mesh_model::{NetworkPolicy, Reason, Workload};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::connection::Direction;
use super::pods::Pod;
use super::testing::*;

async fn app(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).await.expect("bind the application");
    let address = listener.local_addr().expect("address");
    (listener, address)
}

/// A policy of namespace shop about callers with the service account.
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

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    tokio::time::timeout(WAIT, listener.accept()).await.expect("in time").expect("accept")
}

/// A few bytes each way, then a half-close each way.
async fn converse(client: &mut TcpStream, server: &mut TcpStream) {
    let (mut to_server, mut to_client) = ([0; 4], Vec::new());
    client.write_all(b"ping").await.expect("write");
    server.read_exact(&mut to_server).await.expect("read");
    assert_eq!(&to_server, b"ping");
    client.shutdown().await.expect("shutdown");
    assert_eq!(server.read(&mut to_server).await.expect("end of data"), 0);
    server.write_all(b"pong").await.expect("write after the caller's half-close");
    server.shutdown().await.expect("shutdown");
    client.read_to_end(&mut to_client).await.expect("read");
    assert_eq!(to_client, b"pong");
}

async fn is_reset(client: &mut TcpStream) {
    let read = tokio::time::timeout(WAIT, client.read(&mut [0])).await.expect("in time");
    assert_eq!(read.expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
}

fn nobody_came(listener: &TcpListener) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(listener.poll_accept(&mut cx).is_pending(), "the application saw a connection");
}

/// web and cart on node-1, both known to the mesh.
fn same_node(world: &World, web: &str, cart: &str) -> (Node, Arc<Pod>, Arc<Pod>) {
    world.change(|mesh| {
        mesh.apply_workload(workload("web", "node-1", web));
        mesh.apply_workload(workload("cart", "node-1", cart));
    });
    let node = world.node("node-1");
    let (web, cart) = (node.pod(1, "web", web), node.pod(2, "cart", cart));
    (node, web, cart)
}

#[tokio::test]
async fn two_pods_of_one_node_talk_from_socket_to_socket_and_both_ends_tell_of_it() {
    let world = World::new();
    let (node, web, _cart) = same_node(&world, "127.77.1.1", "127.77.1.2");
    world.change(|mesh| mesh.apply_policy(policy("only-web", Action::Allow, "sa-web")));
    let (listener, address) = app("127.77.1.2").await;
    let mut client = node.calls(&web, address).await;
    let (mut server, seen) = accept(&listener).await;
    assert_eq!(seen, client.local_addr().expect("address"), "the application sees the caller's own address and port");
    converse(&mut client, &mut server).await;
    let (one, two) = (node.line().await, node.line().await);
    assert_eq!((one.direction, two.direction), (Direction::Inbound, Direction::Outbound));
    assert_eq!(one.id, two.id);
    for line in [one, two] {
        assert_eq!(line.source.map(|id| id.to_string()).as_deref(), Some("spiffe://cluster.local/ns/shop/sa/sa-web"));
        assert_eq!(line.target.map(|id| id.to_string()).as_deref(), Some("spiffe://cluster.local/ns/shop/sa/sa-cart"));
        assert_eq!((line.policy.as_deref(), line.reason, line.route), (Some("shop/only-web"), None, "same-node"));
        assert_eq!((line.sent, line.received), (4, 4));
    }
}

#[tokio::test]
async fn a_denied_caller_is_reset_before_the_application_sees_it_and_both_ends_name_the_policy() {
    let world = World::new();
    let (node, web, _cart) = same_node(&world, "127.77.2.1", "127.77.2.2");
    world.change(|mesh| mesh.apply_policy(policy("no-web", Action::Deny, "sa-web")));
    let (listener, address) = app("127.77.2.2").await;
    let mut client = node.calls(&web, address).await;
    is_reset(&mut client).await;
    for _ in 0..2 {
        let line = node.line().await;
        assert_eq!((line.policy.as_deref(), line.reason), (Some("shop/no-web"), Some(Reason::PolicyDenied)));
    }
    nobody_came(&listener);
    assert_eq!(node.here.proxy.sinks.metrics.events().refusals(Direction::Outbound, Reason::PolicyDenied), 1);
}

#[tokio::test]
async fn a_called_pod_of_this_node_where_nobody_listens_is_told_of_at_both_ends() {
    let world = World::new();
    let (node, web, _cart) = same_node(&world, "127.77.16.1", "127.77.16.2");
    let (listener, address) = app("127.77.16.2").await;
    drop(listener);
    let mut client = node.calls(&web, address).await;
    is_reset(&mut client).await;
    let (one, two) = (node.line().await, node.line().await);
    assert_eq!((one.direction, two.direction), (Direction::Inbound, Direction::Outbound));
    assert_eq!((one.id, one.reason), (two.id, two.reason));
    assert_eq!(one.reason, Some(Reason::ConnectFailed));
    for direction in [Direction::Inbound, Direction::Outbound] {
        assert_eq!(node.here.proxy.sinks.metrics.events().refusals(direction, Reason::ConnectFailed), 1);
    }
}

#[tokio::test]
async fn a_new_policy_resets_the_live_connection_it_denies_and_no_other() {
    let world = World::new();
    let (node, web, cart) = same_node(&world, "127.77.3.1", "127.77.3.2");
    let (listener, address) = app("127.77.3.2").await;
    let mut denied = node.calls(&web, address).await;
    let (_server, _) = accept(&listener).await;
    let mut untouched = node.is_called(&cart, "127.77.3.9", address).await;
    let (mut plain, seen) = accept(&listener).await;
    assert_eq!(seen, untouched.local_addr().expect("address"));
    eventually(|| (cart.live().connections().iter().filter(|open| open.permit().is_some()).count() == 2).then_some(()))
        .await;
    let changed = Instant::now();
    world.change(|mesh| mesh.apply_policy(policy("no-web", Action::Deny, "sa-web")));
    is_reset(&mut denied).await;
    assert!(changed.elapsed() < Duration::from_secs(1), "{:?}", changed.elapsed());
    let line = node.line().await;
    assert_eq!((line.reason, line.policy.as_deref()), (Some(Reason::PolicyChanged), Some("shop/no-web")));
    converse(&mut untouched, &mut plain).await;
}

#[tokio::test]
async fn a_connection_registered_under_a_listed_policy_that_never_arrives_is_ended_like_the_others() {
    let world = World::new();
    let (node, web, cart) = same_node(&world, "127.77.22.1", "127.77.22.2");
    let before = node.here.proxy.mesh();
    let (listener, address) = app("127.77.22.2").await;
    let _client = node.calls(&web, address).await;
    let _server = accept(&listener).await;
    let open = eventually(|| cart.live().connections().into_iter().find(|open| open.permit().is_some())).await;
    // Another, judged by the mesh as it was, while the policy of the newer one is listed and does not come.
    let coming = PolicyKey { namespace: "shop".into(), name: "coming".into() };
    world.change(|mesh| {
        mesh.apply_workload(Workload { policies: vec![coming], ..workload("cart", "node-1", "127.77.22.2") })
    });
    tokio::time::timeout(WAIT, open.was_cut()).await.expect("the sweep");
    let late = Arc::new(super::connection::Connection::new(
        super::connection::ConnectionId::random(),
        Direction::Inbound,
        open.client,
        None,
    ));
    let ticket = super::live::enter(&cart, &late);
    let permit = open.permit().expect("judged");
    let proxy = &node.here.proxy;
    ticket.judged(permit, super::live::Judged::Here, &before, || proxy.mesh(), &proxy.waiting);
    let cause = tokio::time::timeout(Duration::from_secs(2), late.was_cut()).await.expect("looked at again");
    assert_eq!(cause.reason, Reason::PolicyChanged);
}

#[tokio::test]
async fn an_unknown_destination_waits_for_its_record_and_is_refused_without_one() {
    let world = World::new();
    let (node, web, _cart) = same_node(&world, "127.77.4.1", "127.77.4.2");
    let started = Instant::now();
    let mut client = node.calls(&web, "127.77.4.200:80".parse().expect("address")).await;
    is_reset(&mut client).await;
    assert!((Duration::from_millis(900)..Duration::from_secs(2)).contains(&started.elapsed()));
    assert_eq!(node.line().await.reason, Some(Reason::UnknownDestination));
    // The record comes while the caller waits.
    let (listener, address) = app("127.77.4.3").await;
    let mut client = node.calls(&web, address).await;
    tokio::task::yield_now().await;
    let clear = Workload { tunnel: mesh_model::Tunnel::Clear, ..workload("plain", "node-2", "127.77.4.3") };
    world.change(|mesh| mesh.apply_workload(clear));
    let (mut server, seen) = accept(&listener).await;
    assert_eq!(seen.ip().to_string(), "127.77.4.1");
    converse(&mut client, &mut server).await;
}

#[tokio::test]
async fn a_worker_that_has_just_started_waits_for_the_record_of_a_called_pod_and_refuses_without_one() {
    let world = World::starting();
    let node = world.node("node-1");
    let cart = node.pod(2, "cart", "127.77.14.2");
    let (listener, address) = app("127.77.14.2").await;
    let started = Instant::now();
    is_reset(&mut node.is_called(&cart, "127.77.14.9", address).await).await;
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&started.elapsed()));
    assert_eq!(node.line().await.reason, Some(Reason::PolicyUnknown));
    nobody_came(&listener);
    // The control plane answers while the caller waits.
    let mut client = node.is_called(&cart, "127.77.14.9", address).await;
    tokio::task::yield_now().await;
    world.change(|mesh| mesh.apply_workload(workload("cart", "node-1", "127.77.14.2")));
    let (mut server, _) = accept(&listener).await;
    converse(&mut client, &mut server).await;
}

#[tokio::test]
async fn what_lies_outside_the_cluster_passes_from_the_pods_own_address() {
    let world = World::new();
    let (node, web, _cart) = same_node(&world, "127.77.5.1", "127.77.5.2");
    let (listener, address) = app("127.88.5.1").await;
    let mut client = node.calls(&web, address).await;
    let (mut server, seen) = accept(&listener).await;
    assert_eq!(seen.ip().to_string(), "127.77.5.1");
    converse(&mut client, &mut server).await;
    assert_eq!(node.line().await.route, "passthrough");
}

#[tokio::test]
async fn a_second_endpoint_serves_when_the_first_cannot_be_reached() {
    let world = World::new();
    let (node, web, _cart) = same_node(&world, "127.77.6.1", "127.77.6.2");
    let (listener, address) = app("127.77.6.2").await;
    // Nobody listens at 127.77.6.3, which may be chosen first.
    node.pod(3, "dead", "127.77.6.3");
    let mut behind = [workload("cart", "node-1", "127.77.6.2"), workload("dead", "node-1", "127.77.6.3")];
    for workload in &mut behind {
        workload.services.insert(key("cart"), mesh_model::Endpoint::at([(80, address.port())]));
    }
    world.change(|mesh| {
        for workload in behind {
            mesh.apply_workload(workload);
        }
        mesh.apply_service(service("cart", &["127.77.6.100"]));
    });
    for _ in 0..10 {
        let mut client = node.calls(&web, "127.77.6.100:80".parse().expect("address")).await;
        let (mut server, _) = accept(&listener).await;
        converse(&mut client, &mut server).await;
        let mut line = node.line().await;
        if line.reason == Some(Reason::ConnectFailed) {
            // The called end of the one that was tried first.
            assert_eq!(line.direction, Direction::Inbound);
            line = node.line().await;
        }
        assert_eq!((line.service, line.reason), (Some(key("cart")), None));
        assert_eq!(line.endpoint, Some(address));
        node.line().await;
    }
}

#[tokio::test]
async fn an_application_that_does_not_listen_is_a_reset_for_the_caller() {
    let world = World::new();
    let (node, web, cart) = same_node(&world, "127.77.7.1", "127.77.7.2");
    let (listener, address) = app("127.77.7.2").await;
    drop(listener);
    let mut client = node.calls(&web, address).await;
    is_reset(&mut client).await;
    assert_eq!(node.line().await.reason, Some(Reason::ConnectFailed));
    let mut client = node.is_called(&cart, "127.77.7.9", address).await;
    is_reset(&mut client).await;
    assert_eq!(node.line().await.reason, Some(Reason::ConnectFailed));
    assert!(cart.live().is_empty() && web.live().is_empty());
}

#[tokio::test]
async fn plaintext_without_identity_does_not_meet_a_policy_that_asks_for_one() {
    let world = World::new();
    let (node, _web, cart) = same_node(&world, "127.77.8.1", "127.77.8.2");
    world.change(|mesh| mesh.apply_policy(policy("only-web", Action::Allow, "sa-web")));
    let (listener, address) = app("127.77.8.2").await;
    // Also from the address of a mesh pod of this very node.
    for source in ["127.77.8.9", "127.77.8.1"] {
        let mut client = node.is_called(&cart, source, address).await;
        is_reset(&mut client).await;
        let line = node.line().await;
        assert_eq!((line.reason, line.source), (Some(Reason::PolicyDenied), None));
    }
    let mut client = node.is_called(&cart, "127.77.8.9", "127.77.8.77:80".parse().expect("address")).await;
    is_reset(&mut client).await;
    assert_eq!(node.line().await.reason, Some(Reason::WrongDestination));
    nobody_came(&listener);
}

/// web on node-1, cart on node-2 with its tunnel port open.
async fn two_nodes(world: &World, web: &str, cart: &str) -> (Node, Arc<Pod>, Node, Arc<Pod>) {
    world.change(|mesh| {
        mesh.apply_workload(workload("web", "node-1", web));
        mesh.apply_workload(workload("cart", "node-2", cart));
    });
    let (one, two) = (world.node("node-1"), world.node("node-2"));
    let (web, cart) = (one.pod(1, "web", web), two.pod(1, "cart", cart));
    two.accepts_tunnels(&cart).await;
    (one, web, two, cart)
}

#[tokio::test]
async fn between_nodes_a_tunnel_carries_identity_address_and_id() {
    let world = World::new();
    let (one, web, two, _cart) = two_nodes(&world, "127.77.10.1", "127.77.10.2").await;
    world.change(|mesh| mesh.apply_policy(policy("only-web", Action::Allow, "sa-web")));
    let (listener, address) = app("127.77.10.2").await;
    let mut client = one.calls(&web, address).await;
    let (mut server, seen) = accept(&listener).await;
    assert_eq!(seen, client.local_addr().expect("address"), "the application sees the caller's own address and port");
    converse(&mut client, &mut server).await;
    let (near, far) = (one.line().await, two.line().await);
    assert_eq!((near.direction, far.direction), (Direction::Outbound, Direction::Tunnel));
    assert_eq!(near.id, far.id);
    assert_eq!(far.source.map(|id| id.to_string()).as_deref(), Some("spiffe://cluster.local/ns/shop/sa/sa-web"));
    assert_eq!((near.policy, far.policy.as_deref()), (None, Some("shop/only-web")));
    assert_eq!((near.sent, far.sent, near.received, far.received), (4, 4, 4, 4));
    // A second connection shares the tunnel.
    let mut client = one.calls(&web, address).await;
    let (mut server, _) = accept(&listener).await;
    converse(&mut client, &mut server).await;
    assert_eq!(one.here.dialer.pool.handshakes(), 1);
}

/// The application answers and closes with bytes unread, or the caller sends and resets: each reads what the other had sent.
async fn last_bytes(node: &Node, web: &Arc<Pod>, listener: &TcpListener, address: SocketAddr) {
    for round in 0..200_usize {
        let (answer, from_app) = (vec![7; [1 << 10, 16 << 10, 64 << 10][round % 3]], round % 2 == 0);
        let mut client = node.calls(web, address).await;
        if from_app {
            client.write_all(b"never read").await.expect("write");
            let (mut server, _) = accept(listener).await;
            server.peek(&mut [0]).await.expect("the request");
            server.write_all(&answer).await.expect("write");
            drop(server);
        } else {
            client.write_all(&answer).await.expect("write");
            mesh_net::socket::reset_on_close(&client).expect("linger");
        }
        let mut got = Vec::new();
        let end = if from_app {
            client.read_to_end(&mut got).await
        } else {
            drop(client);
            accept(listener).await.0.read_to_end(&mut got).await
        };
        assert_eq!(end.expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(got.len(), answer.len(), "round {round}, from the application: {from_app}");
    }
}

#[tokio::test]
async fn the_last_bytes_before_a_reset_arrive_through_a_tunnel_and_between_two_pods_of_a_node() {
    let world = World::new();
    let (one, web, _two, _cart) = two_nodes(&world, "127.77.17.1", "127.77.17.2").await;
    let (listener, address) = app("127.77.17.2").await;
    last_bytes(&one, &web, &listener, address).await;
    let world = World::new();
    let (node, web, _cart) = same_node(&world, "127.77.18.1", "127.77.18.2");
    let (listener, address) = app("127.77.18.2").await;
    last_bytes(&node, &web, &listener, address).await;
}

/// A caller that fills the pipe and resets: the application's kernel says so within a second, though it never reads.
async fn dead_caller(node: &Node, web: &Arc<Pod>, listener: &TcpListener, address: SocketAddr) {
    let mut client = node.calls(web, address).await;
    let (server, _) = accept(listener).await;
    let block = vec![7; 64 << 10];
    while tokio::time::timeout(Duration::from_millis(300), client.write(&block)).await.is_ok() {}
    mesh_net::socket::reset_on_close(&client).expect("linger");
    drop(client);
    let heard = tokio::time::timeout(Duration::from_secs(1), server.ready(tokio::io::Interest::ERROR)).await;
    assert!(heard.is_ok_and(|ready| ready.is_ok_and(|ready| ready.is_error())), "not heard within a second");
}

#[tokio::test]
async fn a_caller_that_resets_behind_a_full_pipe_is_heard_within_a_second_through_a_tunnel_and_on_one_node() {
    let world = World::new();
    let (one, web, _two, _cart) = two_nodes(&world, "127.77.19.1", "127.77.19.2").await;
    let (listener, address) = app("127.77.19.2").await;
    dead_caller(&one, &web, &listener, address).await;
    let world = World::new();
    let (node, web, _cart) = same_node(&world, "127.77.20.1", "127.77.20.2");
    let (listener, address) = app("127.77.20.2").await;
    dead_caller(&node, &web, &listener, address).await;
}

#[tokio::test]
async fn a_refusal_at_the_far_end_names_its_policy_at_both_and_a_later_one_resets_what_is_live() {
    let world = World::new();
    let (one, web, two, _cart) = two_nodes(&world, "127.77.11.1", "127.77.11.2").await;
    let (listener, address) = app("127.77.11.2").await;
    let mut live = one.calls(&web, address).await;
    let (mut server, _) = accept(&listener).await;
    live.write_all(b"x").await.expect("write");
    server.read_exact(&mut [0]).await.expect("read");
    world.change(|mesh| mesh.apply_policy(policy("no-web", Action::Deny, "sa-web")));
    is_reset(&mut live).await;
    let far = two.line().await;
    assert_eq!((far.reason, far.policy.as_deref()), (Some(Reason::PolicyChanged), Some("shop/no-web")));
    assert_eq!(one.line().await.reason, Some(Reason::Reset));
    let mut refused = one.calls(&web, address).await;
    is_reset(&mut refused).await;
    for node in [&one, &two] {
        let line = node.line().await;
        assert_eq!((line.reason, line.policy.as_deref()), (Some(Reason::PolicyDenied), Some("shop/no-web")));
    }
    nobody_came(&listener);
}

#[tokio::test]
async fn a_tunnel_to_one_address_of_a_pod_leads_to_no_other_of_its_addresses() {
    let world = World::new();
    let (one, web, two, cart) = two_nodes(&world, "127.77.23.1", "127.77.23.2").await;
    let mut facts = super::pods::testing::facts("shop", "cart", "127.77.23.2");
    facts.addresses.push("127.77.23.3".parse().expect("address"));
    assert!(two.here.proxy.pods.update(cart.slot(), &facts));
    let (listener, other) = app("127.77.23.3").await;
    let credentials = one.here.dialer.certificates.get(web.identity(), WAIT).await.expect("certificate");
    let to: SocketAddr = "127.77.23.2:15008".parse().expect("address");
    let key = super::tunnel::TunnelKey {
        slot: web.slot(),
        source: web.identity().clone(),
        destination: to,
        accepted: vec![cart.identity().clone()],
    };
    let request = super::tunnel::ConnectRequest {
        authority: other,
        traceparent: super::connection::ConnectionId::random().traceparent(),
        forwarded_for: "127.77.23.1:4000".parse().expect("address"),
        service_host: None,
        baggage: String::new(),
    };
    let dial = async move {
        let failed = |error: io::Error| super::tunnel::DialError::new(Reason::ConnectFailed, error.to_string());
        TcpStream::connect(to).await.map_err(failed)
    };
    let refused =
        tokio::time::timeout(Duration::from_secs(2), one.here.dialer.pool.open(key, request, credentials, dial));
    let refused = refused.await.expect("at once").expect_err("refused");
    assert!(matches!(refused, super::tunnel::OpenError::Refused { status: 400, .. }), "{refused}");
    assert_eq!(refused.reason(), Reason::WrongDestination);
    nobody_came(&listener);
}

#[tokio::test]
async fn a_pod_that_the_far_end_does_not_know_yet_refuses_with_policy_unknown() {
    let world = World::new();
    let (one, web, two, _cart) = two_nodes(&world, "127.77.12.1", "127.77.12.2").await;
    // The far node has a pod at this address whose record the mesh does not have: an earlier one of the same name.
    world.change(|mesh| {
        let earlier = Workload { pod_uid: None, ..workload("cart", "node-2", "127.77.12.2") };
        let uid = earlier.uid.clone();
        mesh.remove_workload(&uid);
        mesh.apply_workload(Workload { pod_uid: mesh_model::PodUid::parse("uid-of-the-earlier").ok(), ..earlier });
    });
    let (listener, address) = app("127.77.12.2").await;
    let mut client = one.calls(&web, address).await;
    is_reset(&mut client).await;
    assert_eq!(one.line().await.reason, Some(Reason::PolicyUnknown));
    assert_eq!(two.line().await.reason, Some(Reason::PolicyUnknown));
    nobody_came(&listener);
}

#[tokio::test]
async fn a_pod_selected_by_a_network_policy_is_reached_through_its_tunnel_port_on_the_same_node_too() {
    let world = World::new();
    let (node, web, cart) = same_node(&world, "127.77.13.1", "127.77.13.2");
    node.accepts_tunnels(&cart).await;
    let selected = Workload { network_policy: NetworkPolicy::Selected, ..workload("cart", "node-1", "127.77.13.2") };
    world.change(|mesh| mesh.apply_workload(selected));
    let (listener, address) = app("127.77.13.2").await;
    let mut client = node.calls(&web, address).await;
    let (mut server, seen) = accept(&listener).await;
    assert_eq!(seen, client.local_addr().expect("address"));
    converse(&mut client, &mut server).await;
    for _ in 0..2 {
        assert_eq!(node.line().await.route, "tunnel");
    }
}

#[tokio::test]
async fn a_pod_that_goes_away_ends_its_connections() {
    let world = World::new();
    let (node, web, cart) = same_node(&world, "127.77.14.1", "127.77.14.2");
    let (listener, address) = app("127.77.14.2").await;
    let mut client = node.calls(&web, address).await;
    let (_server, _) = accept(&listener).await;
    eventually(|| (cart.live().len() == 1).then_some(())).await;
    cart.live().cut_all(Reason::Draining);
    is_reset(&mut client).await;
    assert_eq!(node.line().await.reason, Some(Reason::Draining));
    tokio::time::timeout(WAIT, cart.live().emptied()).await.expect("emptied");
}

#[tokio::test]
async fn a_pod_that_goes_away_while_it_is_being_connected_to_ends_that_too() {
    let world = World::new();
    let (node, web, cart) = same_node(&world, "127.77.21.1", "127.77.21.2");
    // Nobody accepts and the queue is full: a connect waits.
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    socket.bind("127.77.21.2:0".parse().expect("address")).expect("bind");
    let listener = socket.listen(1).expect("listen");
    let address = listener.local_addr().expect("address");
    let (mut queue, patience) = (Vec::new(), Duration::from_millis(100));
    while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(address)).await {
        queue.push(stream.expect("connect"));
    }
    let mut client = node.calls(&web, address).await;
    eventually(|| (cart.live().len() == 1).then_some(())).await;
    cart.live().cut_all(Reason::Draining);
    is_reset(&mut client).await;
    assert_eq!(node.line().await.reason, Some(Reason::Draining));
}

/// What a connection costs while it only moves bytes. The set-up is boxed and gone by then.
#[tokio::test]
async fn the_futures_of_a_connection_stay_small() {
    let world = World::new();
    let (node, web, cart) = same_node(&world, "127.77.15.1", "127.77.15.2");
    let (_listener, address) = app("127.77.15.2").await;
    let to = Some(mesh_model::OrigDst::new(address));
    let accepted = |pod: &Arc<Pod>, port| {
        let stream = std::net::TcpStream::connect(address).expect("connect");
        stream.set_nonblocking(true).expect("non-blocking");
        let stream = TcpStream::from_std(stream);
        let place = super::accept::Place::of(
            node.here.proxy.budget.clone().try_acquire_owned().expect("room"),
            pod.room().expect("room"),
        );
        super::accept::Accepted::of(stream.expect("register"), pod, port, to, place)
    };
    let outbound = super::outbound::serve(accepted(&web, super::accept::Port::Outbound), node.here.clone());
    let inbound = super::inbound::serve(accepted(&cart, super::accept::Port::Inbound), node.here.clone());
    let sizes = (size_of_val(&outbound), size_of_val(&inbound));
    assert!(sizes.0 <= 1024 && sizes.1 <= 1024, "{sizes:?}");
}

#[tokio::test]
async fn a_pod_that_gets_another_mark_has_no_socket_of_the_one_before_in_stock() {
    use mesh_api::link::worker::{Family, Purpose};
    let world = World::new();
    let node = world.node("node-1");
    let pod = node.pod(1, "web", "127.77.24.1");
    let proxy = &node.here.proxy;
    let stock = || (proxy.sinks.metrics.plain.mint_stock.get() > 0).then_some(());
    for _ in 0..10 {
        proxy.mint.take(pod.slot(), Family::V4, Purpose::TowardsApp).await.expect("socket");
    }
    eventually(stock).await;
    let mut facts = super::pods::testing::facts("shop", "web", "127.77.24.1");
    facts.addresses.push("127.77.24.2".parse().expect("address"));
    assert!(super::control::update(proxy, pod.slot(), &facts));
    assert!(stock().is_some(), "nothing that sockets carry has changed");
    facts.mark += 1;
    assert!(super::control::update(proxy, pod.slot(), &facts));
    assert!(stock().is_none());
    assert!(!super::control::update(proxy, 2, &facts));
}

//! When a tunnel is made, shared, let go of and given up.

use super::*;

#[tokio::test]
async fn the_death_of_the_peer_wakes_every_connection_and_the_next_gets_a_new_tunnel() {
    let authority = Authority::create().expect("authority");
    let first = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let client = Client::new(credentials(&authority, "client"));
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = client.open(first.addr, "server").await.expect("opened");
        ping(&mut stream).await;
        streams.push(stream);
    }
    let addr = first.addr;
    drop(first);
    for stream in &mut streams {
        let error = timeout(WAIT, stream.read_u8()).await.expect("woken").expect_err("broken");
        assert_eq!(reason_of(&error), Some(Reason::TunnelClosed), "{error}");
        let error = stream.write_all(b"x").await.expect_err("broken");
        assert_eq!(reason_of(&error), Some(Reason::TunnelClosed), "{error}");
    }
    eventually("tunnel removed", || client.pool.state().is_empty()).await;
    let _second = server(&addr.to_string(), credentials(&authority, "server"), With(echo)).await;
    ping(&mut client.open(addr, "server").await.expect("opened")).await;
    assert_eq!(client.pool.handshakes(), 2);
}

#[tokio::test]
async fn after_a_goaway_open_connections_live_on_and_new_ones_take_a_new_tunnel() {
    let authority = Authority::create().expect("authority");
    let mut first = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let client = Client::new(credentials(&authority, "client"));
    let mut old = client.open(first.addr, "server").await.expect("opened");
    ping(&mut old).await;
    let trigger = first.drain.take().expect("not asked yet");
    trigger.ask();
    ping(&mut old).await;
    eventually("goaway arrived", || client.pool.turn_is_new(&client.key(first.addr, "server"))).await;
    // Who goes away says so to each new tunnel as well; a successor at the same address does not.
    let second = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let (to, successor) = (first.addr, second.addr);
    let new = client.pool.open(client.key(to, "server"), request(to), client.credentials.clone(), dial(successor));
    let mut new = new.await.expect("a new connection opens while the old tunnel goes away");
    ping(&mut new).await;
    assert_eq!(client.pool.handshakes(), 2);
    ping(&mut old).await;
    drop(old);
    eventually("the old tunnel ended in order with its last connection", || {
        let ended = first.ended.lock().expect("test");
        ended.len() == 1 && ended[0].as_ref().is_ok_and(|served| served.broke.is_none() && served.requests == 1)
    })
    .await;
    ping(&mut new).await;
    assert!(second.ended.lock().expect("test").is_empty());
}

/// Each end looks at the other's certificate: one of them runs out.
async fn a_certificate_runs_out(which: &str) {
    let authority = Authority::create().expect("authority");
    let of = |name: &str| {
        let validity = if name == which { Duration::from_secs(3) } else { Duration::from_secs(3600) };
        credentials_for(&authority, name, validity)
    };
    let server = server("127.0.0.1:0", of("server"), With(echo)).await;
    let mut client = Client::new(of("client"));
    let mut old = client.open(server.addr, "server").await.expect("opened");
    ping(&mut old).await;
    assert!(!client.pool.turn_is_new(&client.key(server.addr, "server")), "it is valid yet");
    eventually("the tunnel takes no new connection", || client.pool.turn_is_new(&client.key(server.addr, "server")))
        .await;
    // What is open lives on.
    ping(&mut old).await;
    // With the expired certificate no new tunnel is made, with a renewed one it is.
    let error = client.open(server.addr, "server").await.expect_err("expired");
    assert_eq!(error.reason(), Reason::CertificateExpired, "{error}");
    if which == "client" {
        client.credentials = credentials(&authority, "client");
        ping(&mut client.open(server.addr, "server").await.expect("opened")).await;
        drop(old);
        eventually("the tunnel ended in order with its last connection", || {
            let ended = server.ended.lock().expect("test");
            ended
                .iter()
                .any(|result| result.as_ref().is_ok_and(|served| served.broke.is_none() && served.requests == 1))
        })
        .await;
    }
}

#[tokio::test]
async fn a_tunnel_takes_no_new_connection_when_the_clients_certificate_has_run_out() {
    timeout(WAIT, a_certificate_runs_out("client")).await.expect("in time");
}

#[tokio::test]
async fn a_tunnel_takes_no_new_connection_when_the_servers_certificate_has_run_out() {
    timeout(WAIT, a_certificate_runs_out("server")).await.expect("in time");
}

#[tokio::test]
async fn a_slot_or_a_peer_that_is_gone_takes_its_tunnels_along() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let client = Client::new(credentials(&authority, "client"));
    for end in [(|pool: &Pool, _| pool.drop_slot(1)) as fn(&Pool, std::net::IpAddr), |pool, ip| pool.drop_peer(ip)] {
        let mut stream = client.open(server.addr, "server").await.expect("opened");
        ping(&mut stream).await;
        client.pool.drop_slot(2);
        ping(&mut stream).await;
        end(&client.pool, server.addr.ip());
        let error = timeout(WAIT, stream.read_u8()).await.expect("woken").expect_err("cut");
        assert_eq!(reason_of(&error), Some(Reason::TunnelClosed));
        assert!(client.pool.state().is_empty());
    }
}

#[tokio::test]
async fn when_the_maker_of_a_tunnel_goes_away_one_who_waits_takes_over() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let client = Client::new(credentials(&authority, "client"));
    let (key, to) = (client.key(server.addr, "server"), server.addr);
    let stuck = client.pool.open(key.clone(), request(to), client.credentials.clone(), std::future::pending());
    {
        let mut stuck = pin!(stuck);
        assert!(futures_util::poll!(stuck.as_mut()).is_pending());
        let mut waiting = pin!(client.open(to, "server"));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending(), "it waits for the first");
    }
    // Both gone; and with only the maker gone the other one dials.
    let mut stuck = Box::pin(client.pool.open(key, request(to), client.credentials.clone(), std::future::pending()));
    assert!(futures_util::poll!(stuck.as_mut()).is_pending());
    let mut waiting = pin!(client.open(to, "server"));
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    drop(stuck);
    ping(&mut timeout(WAIT, waiting).await.expect("in time").expect("opened")).await;
}

#[tokio::test]
async fn a_failed_dial_is_the_answer_for_all_who_waited_for_it() {
    let authority = Authority::create().expect("authority");
    let client = Client::new(credentials(&authority, "client"));
    let to = "127.0.0.1:9".parse().expect("address");
    let go = Notify::new();
    let dials = AtomicUsize::new(0);
    let open = || {
        client.pool.open(client.key(to, "server"), request(to), client.credentials.clone(), async {
            dials.fetch_add(1, Ordering::Relaxed);
            go.notified().await;
            Err(DialError::new(Reason::NoSocket, "no socket in pod test/a"))
        })
    };
    let all = futures_util::future::join_all((0..30).map(|_| open()));
    let (results, ()) = tokio::join!(all, async { go.notify_one() });
    assert_eq!(dials.load(Ordering::Relaxed), 1);
    for result in results {
        assert_eq!(result.expect_err("failed").reason(), Reason::NoSocket);
    }
}

#[tokio::test]
async fn a_tunnel_in_the_making_for_a_pod_that_left_is_not_kept() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let client = Client::new(credentials(&authority, "client"));
    let to = server.addr;
    let pool = client.pool.clone();
    let opening = client.pool.open(client.key(to, "server"), request(to), client.credentials.clone(), async move {
        pool.drop_slot(1);
        dial(to).await
    });
    assert_eq!(opening.await.expect_err("gone").reason(), Reason::TunnelClosed);
    assert!(client.pool.state().is_empty());
}

/// The client's end over a duplex whose far end is served until `freeze`, then only held.
#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_ping_is_dead_after_thirty_seconds() {
    let authority = Authority::create().expect("authority");
    let (near, far) = tokio::io::duplex(1 << 20);
    let (_trigger, watch) = drain::pair();
    let peer = "198.18.1.2:4000".parse().expect("address");
    let served = credentials(&authority, "server");
    let mut serving = Box::pin(serve_io(far, peer, &served, Arc::new(With(echo)), watch));
    let mine = credentials(&authority, "client");
    let accepted = [identity("server")];
    let to = "198.18.1.3:15008".parse().expect("address");
    let (tunnel, driver) = tokio::select! {
        made = client::establish(near, to, &accepted, &mine) => made.expect("tunnel"),
        _ = &mut serving => panic!("the server ended"),
    };
    let driver = tokio::spawn(driver);
    let (open, wanted) = (tunnel.reserve().expect("room"), request(to));
    let mut stream = tokio::select! {
        stream = tunnel.connect(&wanted, open, WAIT) => stream.expect("stream"),
        _ = &mut serving => panic!("the server ended"),
    };
    // From here on nobody polls the server: it is frozen, its end of the pipe stays open.
    let before = tokio::time::Instant::now();
    let error = stream.read_u8().await.expect_err("dead");
    assert_eq!(reason_of(&error), Some(Reason::TunnelClosed));
    let took = before.elapsed();
    assert!(took >= PING_TIMEOUT && took <= PING_INTERVAL + PING_TIMEOUT + Duration::from_secs(1), "{took:?}");
    driver.await.expect("driver ended");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_speaks_is_cut_off_after_the_handshake_deadline() {
    let authority = Authority::create().expect("authority");
    let (_near, far) = tokio::io::duplex(1 << 10);
    let (_trigger, watch) = drain::pair();
    let served = credentials(&authority, "server");
    let peer = "198.18.1.2:4000".parse().expect("address");
    let error = serve_io(far, peer, &served, Arc::new(With(echo)), watch).await.expect_err("cut off");
    assert_eq!(error.reason(), Reason::HandshakeTimeout);
}

#[tokio::test]
async fn an_idle_tunnel_is_let_go_after_five_minutes_and_not_while_a_stream_is_open() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let client = Client::new(credentials(&authority, "client"));
    let mut stream = client.open(server.addr, "server").await.expect("opened");
    ping(&mut stream).await;
    tokio::time::pause();
    tokio::time::sleep(IDLE_RELEASE * 2).await;
    assert_eq!(client.pool.state().len(), 1, "in use");
    drop(stream);
    tokio::time::sleep(IDLE_RELEASE - Duration::from_secs(60)).await;
    assert_eq!(client.pool.state().len(), 1, "idle, not long enough");
    tokio::time::sleep(Duration::from_secs(60) + 2 * IDLE_CHECK).await;
    assert!(client.pool.state().is_empty());
    tokio::time::resume();
    eventually("the server saw an orderly end", || {
        server
            .ended
            .lock()
            .expect("test")
            .iter()
            .any(|result| result.as_ref().is_ok_and(|served| served.broke.is_none()))
    })
    .await;
    assert!(client.group.is_empty());
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are looked at")]
fn futures_of_one_connection_stay_small() {
    let authority = Authority::create().expect("authority");
    let client = Client::new(credentials(&authority, "client"));
    let to = "127.0.0.1:9".parse().expect("address");
    let open = client.pool.open(client.key(to, "server"), request(to), client.credentials.clone(), dial(to));
    let (_trigger, watch) = drain::pair();
    let (near, _far) = tokio::io::duplex(1);
    let served = credentials(&authority, "server");
    let serve = serve_io(near, to, &served, Arc::new(With(echo)), watch);
    let sizes = [
        ("open", std::mem::size_of_val(&open), 2048),
        // Once per tunnel, not per stream: h2 and TLS state lie in it.
        ("serve", std::mem::size_of_val(&serve), 8192),
        ("stream", std::mem::size_of::<Stream>(), 256),
        ("open error", std::mem::size_of::<OpenError>(), 128),
    ];
    for (what, size, most) in sizes {
        println!("{what}: {size} bytes");
        assert!(size <= most, "{what}: {size} bytes");
    }
}

//! Promises of the tunnel, over loopback with real TLS.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use mesh_daemon::drain;
use mesh_model::Reason;
use mesh_model::policy::PolicyKey;
use mesh_tls::authority::Authority;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::server::{Incoming, serve_io};
use super::settings::*;
use super::stream::{Stream, reason_of};
use super::testing::*;
use super::{OpenError, client};

const TEN_MB: usize = 10 << 20;

/// Pseudo-random bytes (xorshift), so that a mixed-up order shows.
fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    stream.read_to_end(&mut out).await?;
    Ok(out)
}

async fn echo(request: Incoming) {
    let Ok(stream) = request.accept(None) else { return };
    let (mut read, mut write) = tokio::io::split(stream);
    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
        let _ = write.shutdown().await;
    }
}

/// One byte there and back.
async fn ping(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    timeout(WAIT, async {
        stream.write_all(b"x").await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), b'x');
    })
    .await
    .expect("echo in time");
}

async fn ten_megabytes(listen: &str) {
    let authority = Authority::create().expect("authority");
    let server = server(
        listen,
        credentials(&authority, "server"),
        With(|request: Incoming| async move {
            let Ok(mut stream) = request.accept(Some("k8s.namespace.name=far")) else { return };
            // Half-close: everything is read to the end before the first byte goes back.
            assert_eq!(read_all(&mut stream).await.expect("read"), payload(1, TEN_MB));
            stream.write_all(&payload(2, TEN_MB)).await.expect("write");
            stream.shutdown().await.expect("shutdown");
        }),
    )
    .await;
    let client = Client::new(credentials(&authority, "client"));
    let mut stream = client.open(server.addr, "server").await.expect("opened");
    stream.write_all(&payload(1, TEN_MB)).await.expect("write");
    stream.shutdown().await.expect("shutdown");
    assert_eq!(read_all(&mut stream).await.expect("read"), payload(2, TEN_MB));
}

#[tokio::test]
async fn ten_megabytes_each_way_with_half_close_arrive_unchanged() {
    timeout(WAIT, ten_megabytes("127.0.0.1:0")).await.expect("in time");
    timeout(WAIT, ten_megabytes("[::1]:0")).await.expect("in time");
}

#[tokio::test]
async fn both_directions_move_at_the_same_time() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let client = Client::new(credentials(&authority, "client"));
    let stream = client.open(server.addr, "server").await.expect("opened");
    let (mut read, mut write) = tokio::io::split(stream);
    let sent = payload(3, TEN_MB);
    let send = async {
        write.write_all(&sent).await.expect("write");
        write.shutdown().await.expect("shutdown");
    };
    let ((), got) = timeout(WAIT, async { tokio::join!(send, read_all(&mut read)) }).await.expect("in time");
    assert_eq!(got.expect("read"), sent);
}

#[tokio::test]
async fn three_hundred_connections_at_once_share_three_tunnels() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let client = Client::new(credentials(&authority, "client"));
    let opened = futures_util::future::join_all((0..300).map(|_| client.open(server.addr, "server"))).await;
    let mut streams: Vec<Stream> = opened.into_iter().map(|stream| stream.expect("opened")).collect();
    assert_eq!(client.pool.handshakes(), 3);
    assert_eq!(client.pool.state().iter().map(|tunnel| tunnel.streams).collect::<Vec<_>>(), [100, 100, 100]);
    for stream in &mut streams {
        ping(stream).await;
    }
    // Places are given back, and used before another tunnel is made.
    drop(streams);
    eventually("places given back", || client.pool.state().iter().all(|tunnel| tunnel.streams == 0)).await;
    client.open(server.addr, "server").await.expect("opened");
    assert_eq!(client.pool.handshakes(), 3);
}

#[tokio::test]
async fn the_reason_and_the_policy_of_a_refusal_reach_the_client() {
    let authority = Authority::create().expect("authority");
    let reasons = Arc::new(AtomicUsize::new(0));
    let next = reasons.clone();
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(move |request: Incoming| {
            let reason = Reason::ALL[next.fetch_add(1, Ordering::Relaxed)];
            async move {
                assert_eq!(request.peer_identity, identity("client"));
                assert_eq!(
                    request.forwarded.as_deref(),
                    Some("for=\"198.18.1.2:4000\";host=cart.test.svc.cluster.local")
                );
                assert!(request.traceparent.is_some());
                request.refuse(reason, Some(&PolicyKey { namespace: "test".into(), name: "deny".into() }));
            }
        }),
    )
    .await;
    let client = Client::new(credentials(&authority, "client"));
    for reason in Reason::ALL {
        let error = client.open(server.addr, "server").await.expect_err("refused");
        assert_eq!((error.reason(), error.policy().as_deref()), (*reason, Some("test/deny")), "{error}");
    }
    assert_eq!(client.pool.handshakes(), 1, "a refusal does not cost the tunnel");
}

#[tokio::test]
async fn a_request_dropped_without_an_answer_is_refused_as_internal() {
    let authority = Authority::create().expect("authority");
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(|request: Incoming| async move { drop(request) }),
    )
    .await;
    let client = Client::new(credentials(&authority, "client"));
    assert_eq!(client.open(server.addr, "server").await.expect_err("refused").reason(), Reason::Internal);
}

/// A plain h2 client in TLS, for what our own client never sends.
async fn raw(server: &Server, authority: &Authority) -> h2::client::SendRequest<Bytes> {
    let config = credentials(authority, "client").client(&[identity("server")]);
    let tcp = dial(server.addr).await.expect("connect");
    let name = rustls::pki_types::ServerName::IpAddress(server.addr.ip().into());
    let tls = TlsConnector::from(config).connect(name, tcp).await.expect("TLS");
    let (send, connection) = h2::client::handshake(tls).await.expect("HTTP/2");
    server.group.spawn("raw", async move { drop(connection.await) });
    send
}

#[tokio::test]
async fn anything_but_a_connect_to_an_address_is_answered_with_400() {
    let authority = Authority::create().expect("authority");
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(|request: Incoming| async move {
            match request.authority.clone() {
                Ok(_) => request.refuse(Reason::Internal, None),
                Err(_) => request.refuse(Reason::BadRequest, None),
            }
        }),
    )
    .await;
    let send = raw(&server, &authority).await;
    for (method, uri, want) in [
        (Method::GET, "http://127.0.0.1:80/", 400),
        (Method::POST, "http://127.0.0.1:80/x", 400),
        (Method::CONNECT, "cart.test:80", 400),
        (Method::CONNECT, "127.0.0.1", 400),
        (Method::CONNECT, "127.0.0.1:80", 503),
    ] {
        let request = Request::builder().method(method.clone()).uri(uri).body(()).expect("request");
        let (answer, _body) = send.clone().ready().await.expect("ready").send_request(request, true).expect("sent");
        let answer = timeout(WAIT, answer).await.expect("in time").expect("answer");
        assert_eq!(answer.status(), StatusCode::from_u16(want).expect("status"), "{method} {uri}");
        let reason = answer.headers()["culvert-reason"].to_str().expect("text");
        assert_eq!(reason, if want == 400 { "BadRequest" } else { "Internal" }, "{method} {uri}");
    }
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused_by_the_client() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let client = Client::new(credentials(&authority, "client"));
    let error = client.open(server.addr, "somebody").await.expect_err("refused");
    assert_eq!(error.reason(), Reason::PeerUntrusted, "{error}");
    assert!(client.pool.state().is_empty());
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused_by_the_server_and_told_why() {
    let (authority, other) = (Authority::create().expect("authority"), Authority::create().expect("authority"));
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    // Its own certificate is of another authority, but it trusts the server's, so that the refusal is the server's.
    let (key, csr) = mesh_tls::csr(&identity("client")).expect("request");
    let now = std::time::SystemTime::now();
    let chain = other.sign(&csr, &identity("client"), Duration::from_secs(60), now).expect("signed");
    let roots = format!("{}{}", authority.root_pem(), other.root_pem());
    let cert = mesh_tls::WorkloadCert::assemble(key, vec![chain[0].clone(), roots], &identity("client")).expect("cert");
    let client = Client::new(Arc::new(crate::worker::certs::Credentials::new(cert, &domains())));
    let error = client.open(server.addr, "server").await.expect_err("refused");
    assert_eq!(error.reason(), Reason::PeerUntrusted, "{error}");
    eventually("the server noted it", || !server.ended.lock().expect("test").is_empty()).await;
    let noted = server.ended.lock().expect("test")[0].clone().expect_err("no connection");
    assert_eq!(noted.reason(), Reason::PeerUntrusted, "{noted}");
}

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
async fn readers_that_stand_still_do_not_hold_up_others_on_the_same_tunnel() {
    let authority = Authority::create().expect("authority");
    let flood = AtomicUsize::new(0);
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(move |request: Incoming| {
            let floods = flood.fetch_add(1, Ordering::Relaxed) < 20;
            async move {
                if !floods {
                    return echo(request).await;
                }
                let Ok(mut stream) = request.accept(None) else { return };
                let block = vec![7; 64 << 10];
                while stream.write_all(&block).await.is_ok() {}
            }
        }),
    )
    .await;
    let client = Client::new(credentials(&authority, "client"));
    let mut still = Vec::new();
    for _ in 0..20 {
        let mut stream = client.open(server.addr, "server").await.expect("opened");
        timeout(WAIT, stream.read_u8()).await.expect("in time").expect("it flows");
        still.push(stream);
    }
    // Twenty full stream windows are more than the connection's window at the start.
    let mut other = client.open(server.addr, "server").await.expect("opened");
    for _ in 0..100 {
        ping(&mut other).await;
    }
    // Each has been sent what its window allows and no more, and still moves when it is read.
    let mut buffer = vec![0; 1 << 20];
    for stream in &mut still {
        timeout(WAIT, stream.read_exact(&mut buffer)).await.expect("in time").expect("still flows");
    }
    ping(&mut other).await;
    assert_eq!(client.pool.handshakes(), 1);
}

#[tokio::test]
async fn a_reset_is_a_reset_at_the_other_end_and_never_an_end_of_file() {
    let authority = Authority::create().expect("authority");
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(|request: Incoming| async move {
            let Ok(mut stream) = request.accept(None) else { return };
            match stream.read_u8().await {
                Ok(b'r') => stream.reset(),
                Ok(b'd') => drop(stream),
                // NO_ERROR after the end is an ordinary end.
                Ok(_) => {
                    let _ = stream.write_all(b"bye").await;
                    let _ = stream.shutdown().await;
                }
                Err(_) => {}
            }
        }),
    )
    .await;
    let client = Client::new(credentials(&authority, "client"));
    for order in [b"r", b"d"] {
        let mut stream = client.open(server.addr, "server").await.expect("opened");
        stream.write_all(order).await.expect("write");
        let error = timeout(WAIT, stream.read_u8()).await.expect("in time").expect_err("reset");
        assert_eq!((error.kind(), reason_of(&error)), (std::io::ErrorKind::ConnectionReset, Some(Reason::Reset)));
    }
    let mut stream = client.open(server.addr, "server").await.expect("opened");
    stream.write_all(b"e").await.expect("write");
    assert_eq!(read_all(&mut stream).await.expect("a clean end"), b"bye");
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
    // The listener still accepts; a connection after the drain was asked for ends after its first streams.
    eventually("goaway arrived", || client.pool.turn_is_new(&client.key(first.addr, "server"))).await;
    let mut new = client.open(first.addr, "server").await;
    if let Ok(new) = &mut new {
        ping(new).await;
    }
    assert!(client.pool.handshakes() >= 2);
    ping(&mut old).await;
    drop((old, new));
    eventually("both connections ended in order", || {
        let ended = first.ended.lock().expect("test");
        ended.len() >= 2 && ended.iter().all(|result| result.as_ref().is_ok_and(|served| served.broke.is_none()))
    })
    .await;
}

#[tokio::test]
async fn a_slot_or_a_peer_that_is_gone_takes_its_tunnels_along() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let client = Client::new(credentials(&authority, "client"));
    for end in [(|pool: &super::Pool, _| pool.drop_slot(1)) as fn(&super::Pool, std::net::IpAddr), |pool, ip| {
        pool.drop_peer(ip)
    }] {
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
            Err(super::DialError::new(Reason::NoSocket, "no socket in pod test/a"))
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

#[tokio::test]
async fn a_peer_that_takes_requests_back_for_ever_is_cut_off() {
    let authority = Authority::create().expect("authority");
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(|mut request: Incoming| async move {
            request.cancelled().await;
            assert!(request.accept(None).is_err());
        }),
    )
    .await;
    let send = raw(&server, &authority).await;
    let flood = timeout(WAIT, async {
        for count in 0..100_000 {
            let request = Request::builder().method(Method::CONNECT).uri("127.0.0.1:80").body(()).expect("request");
            let Ok(mut ready) = send.clone().ready().await else { return count };
            let Ok((answer, body)) = ready.send_request(request, false) else { return count };
            // Let it be accepted, so that h2's own guard for requests that were not is not what ends it.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            drop((answer, body));
        }
        100_000
    })
    .await
    .expect("in time");
    assert!(flood < 5_000, "{flood} requests were taken back before the connection ended");
}

#[tokio::test]
async fn streams_beyond_what_was_advertised_wait_and_none_is_lost() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let send = raw(&server, &authority).await;
    let mut first = Vec::new();
    for _ in 0..STREAMS_ADVERTISED {
        let request = Request::builder().method(Method::CONNECT).uri("127.0.0.1:80").body(()).expect("request");
        let (answer, body) = send.clone().ready().await.expect("ready").send_request(request, false).expect("sent");
        first.push((timeout(WAIT, answer).await.expect("in time").expect("answer"), body));
    }
    assert_eq!(send.current_max_send_streams(), STREAMS_ADVERTISED as usize);
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
        stream = tunnel.connect(&wanted, open) => stream.expect("stream"),
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

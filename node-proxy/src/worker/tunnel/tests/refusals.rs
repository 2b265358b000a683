//! Who and what is refused, by which reason, and what a peer may not do.

use super::*;

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

/// Echoes what is asked of port 7; anything else waits until it is taken back.
async fn echo_or_wait(mut request: Incoming) {
    if request.authority.as_ref().is_ok_and(|to| to.port() == 7) {
        return echo(request).await;
    }
    request.cancelled().await;
    assert!(request.accept(None).is_err());
}

type Asked = (h2::client::ResponseFuture, h2::SendStream<Bytes>);

/// A request for this port, if the tunnel takes any.
async fn ask(send: &h2::client::SendRequest<Bytes>, port: u16) -> Result<Asked, h2::Error> {
    let to = format!("127.0.0.1:{port}");
    let request = Request::builder().method(Method::CONNECT).uri(to).body(()).expect("request");
    send.clone().ready().await?.send_request(request, false)
}

/// A stream whose far end echoes.
struct Echoing(h2::SendStream<Bytes>, h2::RecvStream);

impl Echoing {
    async fn open(send: &h2::client::SendRequest<Bytes>) -> Self {
        let (answer, body) = ask(send, 7).await.expect("sent");
        let answer = timeout(WAIT, answer).await.expect("in time").expect("answer");
        Self(body, answer.into_body())
    }

    async fn lives(&mut self) {
        self.0.send_data(Bytes::from_static(b"x"), false).expect("write");
        let heard = timeout(WAIT, self.1.data()).await.expect("in time").expect("no end").expect("read");
        assert_eq!(&heard[..], b"x");
        self.1.flow_control().release_capacity(heard.len()).expect("room");
    }
}

/// Takes requests back as soon as they were looked at; how many until the tunnel takes no more.
async fn flood(send: &h2::client::SendRequest<Bytes>, most: usize) -> usize {
    let flooding = async {
        for count in 0..most {
            let Ok(asked) = ask(send, 80).await else { return count };
            // Let it be accepted, so that h2's own guard for requests that were not is not what ends it.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            drop(asked);
        }
        most
    };
    timeout(WAIT, flooding).await.expect("in time")
}

#[tokio::test]
async fn a_peer_that_takes_requests_back_for_ever_is_asked_to_leave_and_what_it_has_open_lives_on() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo_or_wait)).await;
    let send = raw(&server, &authority).await;
    let mut held = Echoing::open(&send).await;
    let taken_back = flood(&send, 100_000).await;
    assert!(taken_back > RAPID_RESETS, "{taken_back} requests were taken back before the peer was asked to leave");
    assert!(taken_back < 5_000, "{taken_back} requests were taken back before the peer was asked to leave");
    held.lives().await;
    assert!(ask(&send, 7).await.is_err(), "the tunnel takes new requests");
    assert!(server.ended.lock().expect("test").is_empty());
    drop((held, send));
    eventually("the tunnel ended in order with its last connection", || {
        let ended = server.ended.lock().expect("test");
        ended.len() == 1 && ended[0].as_ref().is_ok_and(|served| served.broke.is_none())
    })
    .await;
}

#[tokio::test]
async fn requests_that_are_taken_back_after_a_while_are_no_flood() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo_or_wait)).await;
    let send = raw(&server, &authority).await;
    let mut held = Echoing::open(&send).await;
    // More in all than may be taken back at once.
    for _ in 0..RAPID_RESETS / 100 + 2 {
        let mut asked = Vec::new();
        for _ in 0..100 {
            asked.push(ask(&send, 80).await.expect("the tunnel takes new requests"));
        }
        // Nothing is waited for: their callers are patient for so long.
        tokio::time::sleep(RAPID * 3).await;
        drop(asked);
        held.lives().await;
    }
    Echoing::open(&send).await.lives().await;
    held.lives().await;
}

#[tokio::test]
async fn callers_who_hang_up_in_one_moment_take_no_other_connection_of_the_tunnel_along() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo_or_wait)).await;
    let send = raw(&server, &authority).await;
    let mut held = Echoing::open(&send).await;
    let mut asked = Vec::new();
    for _ in 0..100 {
        asked.push(ask(&send, 80).await.expect("the tunnel takes new requests"));
    }
    // Nothing has been sent yet: requests and their ends arrive in one piece.
    drop(asked);
    held.lives().await;
    Echoing::open(&send).await.lives().await;
}

#[tokio::test]
async fn streams_beyond_what_was_advertised_wait_and_none_is_lost() {
    let authority = Authority::create().expect("authority");
    let server = server("127.0.0.1:0", credentials(&authority, "server"), With(echo)).await;
    let send = raw(&server, &authority).await;
    let mut first = Vec::new();
    for _ in 0..STREAMS_ADVERTISED {
        first.push(Echoing::open(&send).await);
    }
    assert_eq!(send.current_max_send_streams(), STREAMS_ADVERTISED as usize);
    let mut beyond = Vec::new();
    for _ in 0..50 {
        beyond.push(ask(&send, 7).await.expect("it waits"));
    }
    for stream in &mut first {
        stream.lives().await;
    }
    for (answer, _) in &mut beyond {
        assert!(futures_util::poll!(answer).is_pending(), "more than what was advertised");
    }
    first.truncate(first.len() - 50);
    for (answer, body) in beyond {
        let answer = timeout(WAIT, answer).await.expect("in time").expect("answer");
        Echoing(body, answer.into_body()).lives().await;
    }
    for stream in &mut first {
        stream.lives().await;
    }
}

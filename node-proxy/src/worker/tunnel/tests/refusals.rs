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

//! What goes through a tunnel arrives: whole, in order, both ways at once, ends and resets told apart.

use super::*;

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
async fn a_reset_before_the_end_is_no_end_of_data_whatever_its_code() {
    let authority = Authority::create().expect("authority");
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(|request: Incoming| async move {
            let Ok(mut stream) = request.accept(None) else { return };
            let Ok(code) = stream.read_u8().await else { return };
            let _ = stream.write_all(b"par").await;
            std::future::poll_fn(|cx| stream.poll_sent(cx)).await;
            stream.reset_with(u32::from(code).into());
        }),
    )
    .await;
    let client = Client::new(credentials(&authority, "client"));
    // RFC 9113, 7: NO_ERROR (0) to HTTP_1_1_REQUIRED (13).
    for code in 0..=13 {
        let mut stream = client.open(server.addr, "server").await.expect("opened");
        stream.write_all(&[code]).await.expect("write");
        let mut read = Vec::new();
        let end = timeout(WAIT, stream.read_to_end(&mut read)).await.expect("in time");
        let end = end.expect_err("half an answer is not a whole one");
        assert_eq!((read.as_slice(), reason_of(&end)), (b"par".as_slice(), Some(Reason::Reset)), "code {code}");
    }
}

#[tokio::test]
async fn a_request_to_stop_sending_behind_a_whole_answer_takes_nothing_of_the_answer_away() {
    let authority = Authority::create().expect("authority");
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(|request: Incoming| async move {
            let Ok(mut stream) = request.accept(None) else { return };
            let _ = stream.read_u8().await;
            let _ = stream.write_all(&payload(5, 100_000)).await;
            let _ = stream.shutdown().await;
            std::future::poll_fn(|cx| stream.poll_sent(cx)).await;
            stream.reset_with(h2::Reason::NO_ERROR);
        }),
    )
    .await;
    let client = Client::new(credentials(&authority, "client"));
    let mut stream = client.open(server.addr, "server").await.expect("opened");
    stream.write_all(b"x").await.expect("write");
    let refused = timeout(WAIT, async {
        loop {
            if let Err(error) = stream.write_all(&[1; 1 << 10]).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(refused.await.expect("in time").kind(), super::super::WANTS_NO_MORE);
    assert_eq!(read_all(&mut stream).await.expect("a whole answer"), payload(5, 100_000));
}

#[tokio::test]
async fn what_was_written_before_a_reset_arrives_a_thousand_times_of_a_thousand() {
    let authority = Authority::create().expect("authority");
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(|request: Incoming| async move {
            let Ok(mut stream) = request.accept(None) else { return };
            let Ok(kib) = stream.read_u8().await else { return };
            let _ = stream.write_all(&payload(7, usize::from(kib) << 10)).await;
            std::future::poll_fn(|cx| stream.poll_sent(cx)).await;
            stream.reset();
        }),
    )
    .await;
    let client = Client::new(credentials(&authority, "client"));
    for round in 0..1000 {
        let kib = [1, 16, 64, 200][round % 4];
        let mut stream = client.open(server.addr, "server").await.expect("opened");
        stream.write_all(&[kib]).await.expect("write");
        let mut got = Vec::new();
        let end = timeout(WAIT, stream.read_to_end(&mut got)).await.expect("in time");
        assert_eq!(reason_of(&end.expect_err("a reset")), Some(Reason::Reset));
        assert!(got == payload(7, usize::from(kib) << 10), "round {round}: {} bytes of {kib} KiB", got.len());
    }
    assert_eq!(client.pool.handshakes(), 1);
}

#[tokio::test]
async fn a_reset_is_heard_by_an_end_that_does_not_read() {
    let authority = Authority::create().expect("authority");
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(|request: Incoming| async move {
            let Ok(mut stream) = request.accept(None) else { return };
            let _ = stream.write_all(b"never read").await;
            std::future::poll_fn(|cx| stream.poll_sent(cx)).await;
            stream.reset();
        }),
    )
    .await;
    let client = Client::new(credentials(&authority, "client"));
    let mut stream = client.open(server.addr, "server").await.expect("opened");
    let broken = timeout(WAIT, std::future::poll_fn(|cx| stream.poll_broken(cx))).await.expect("in time");
    assert_eq!(reason_of(&broken), Some(Reason::Reset));
    // What came before it is still there.
    let mut read = Vec::new();
    assert!(stream.read_to_end(&mut read).await.is_err());
    assert_eq!(read, b"never read");
}

#[tokio::test]
async fn uploads_that_are_refused_by_the_thousand_do_not_cost_the_tunnel() {
    let authority = Authority::create().expect("authority");
    let server = server(
        "127.0.0.1:0",
        credentials(&authority, "server"),
        With(|request: Incoming| async move {
            let Ok(mut stream) = request.accept(None) else { return };
            let _ = stream.read_u8().await;
            stream.reset();
        }),
    )
    .await;
    let client = Client::new(credentials(&authority, "client"));
    let mut other = client.open(server.addr, "server").await.expect("opened");
    let upload = [7; 1 << 10];
    for round in 0..3000 {
        let mut stream =
            client.open(server.addr, "server").await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        // It goes on sending until it hears.
        let heard = async {
            while stream.write_all(&upload).await.is_ok() {
                tokio::task::yield_now().await
            }
        };
        timeout(WAIT, heard).await.expect("in time");
    }
    assert_eq!(client.pool.handshakes(), 1);
    // A connection that has nothing to do with them lives on until its own end.
    other.write_all(b"x").await.expect("write");
    assert_eq!(reason_of(&other.read_u8().await.expect_err("reset")), Some(Reason::Reset));
}

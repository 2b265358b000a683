//! The copy loop over real loopback sockets.

use std::sync::Arc;

use mesh_model::ClientAddr;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest, duplex as pipe};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::worker::connection::{ConnectionId, Direction};
use crate::worker::end::TunnelStream;

async fn pair() -> (TcpStream, TcpStream) {
    pair_at("127.0.0.1:0").await
}

async fn pair_at(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
    (far.expect("connect"), near.expect("accept").0)
}

fn connection() -> Arc<Connection> {
    let client = ClientAddr::new(([127, 0, 0, 1], 1).into());
    Arc::new(Connection::new(ConnectionId::random(), Direction::Outbound, client, None))
}

struct Proxied {
    client: TcpStream,
    server: TcpStream,
    connection: Arc<Connection>,
    copying: JoinHandle<Ended>,
}

async fn proxied() -> Proxied {
    let ((client, near), (server, far)) = (pair().await, pair().await);
    let connection = connection();
    let of_task = connection.clone();
    let copying = tokio::spawn(async move { duplex(Connected::of(End::tcp(near), End::tcp(far)), &of_task).await });
    Proxied { client, server, connection, copying }
}

/// Bytes that are not the same at any two block boundaries.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

async fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    stream.read_to_end(&mut out).await.map(|_| out)
}

#[tokio::test]
async fn ten_megabytes_each_way_with_half_close_arrive_whole() {
    const SIZE: usize = 10 * 1024 * 1024;
    let Proxied { mut client, mut server, connection, copying } = proxied().await;
    let (up, down) = (pattern(SIZE, 1), pattern(SIZE, 2));
    let (sent_up, sent_down) = (up.clone(), down.clone());
    let client = tokio::spawn(async move {
        let (mut read, mut write) = client.split();
        let mut got = Vec::new();
        let (wrote, read) = tokio::join!(
            async {
                write.write_all(&sent_up).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut got)
        );
        wrote.and(read).map(|_| got)
    });
    // The server answers only once it has seen the client's end: half-close must be passed on, not both ways closed.
    let got_up = read_all(&mut server).await.expect("read");
    assert!(got_up == up, "what the server got differs");
    server.write_all(&sent_down).await.expect("write");
    server.shutdown().await.expect("shutdown");
    let got_down = client.await.expect("client").expect("client's bytes");
    assert!(got_down == down, "what the client got differs");
    assert!(matches!(copying.await.expect("copy"), Ended::Done));
    assert_eq!(connection.bytes(), (SIZE as u64, SIZE as u64));
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let Proxied { mut client, mut server, .. } = proxied().await;
    server.write_all(b"220 ready\r\n").await.expect("write");
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).await.expect("greeting");
    assert_eq!(&greeting, b"220 ready\r\n");
}

#[tokio::test]
async fn what_is_behind_an_urgent_byte_is_passed_on_though_nothing_comes_after_it() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        for from_server in [false, true] {
            let ((client, near), (server, far)) = (pair_at(address).await, pair_at(address).await);
            // As on listeners and on sockets that connect.
            for end in [&near, &far] {
                mesh_net::socket_options::urgent_inline(end).expect("in its place");
            }
            let (mut from, mut to) = if from_server { (server, client) } else { (client, server) };
            let reads = if from_server { &far } else { &near };
            // A new stream is taken to be readable until it was tried.
            assert_eq!(reads.try_read(&mut [0]).expect_err("nothing yet").kind(), io::ErrorKind::WouldBlock);
            from.write_all(b"ab").await.expect("write");
            socket2::SockRef::from(&from).send_out_of_band(b"X").expect("urgent");
            from.write_all(b"cd").await.expect("write");
            // All that epoll will ever tell of it is told.
            reads.readable().await.expect("bytes");
            let connection = connection();
            let copying = tokio::spawn(async move {
                duplex(Connected::of(End::tcp(near), End::tcp(far)), &connection).await;
            });
            let mut seen = [0; 5];
            let read = tokio::time::timeout(Duration::from_secs(1), to.read_exact(&mut seen)).await;
            assert!(read.is_ok_and(|read| read.is_ok()), "{address}, from the server: {from_server}: {seen:?}");
            assert_eq!(&seen, b"abXcd");
            copying.abort();
        }
    }
}

#[tokio::test]
async fn a_reset_by_either_end_is_a_reset_at_the_other() {
    for server_resets in [true, false] {
        let Proxied { client, server, copying, .. } = proxied().await;
        let (resetting, mut seeing) = if server_resets { (server, client) } else { (client, server) };
        mesh_net::socket::reset_on_close(&resetting).expect("linger");
        drop(resetting);
        let seen = read_all(&mut seeing).await.expect_err("a reset, not an end of data");
        assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(copying.await.expect("copy").reason(), Some(Reason::Reset));
    }
}

/// How an application ends its connection so that its kernel sends RST behind what was written.
#[derive(Clone, Copy, Debug)]
enum Ends {
    /// By SO_LINGER 0.
    Linger,
    /// By closing while bytes are unread: 413, 401, a database's last error.
    Unread,
}

async fn ends(ends: Ends, stream: TcpStream) {
    match ends {
        Ends::Linger => mesh_net::socket::reset_on_close(&stream).expect("linger"),
        Ends::Unread => drop(stream.peek(&mut [0]).await.expect("something unread")),
    }
}

#[tokio::test]
async fn what_was_sent_before_a_reset_is_still_delivered_and_then_the_reset() {
    for how in [Ends::Linger, Ends::Unread] {
        for (size, from_server) in
            [(1 << 10, true), (16 << 10, true), (64 << 10, true), (1 << 10, false), (64 << 10, false)]
        {
            for round in 0..50 {
                let Proxied { client, server, copying, .. } = proxied().await;
                let (mut from, mut to) = if from_server { (server, client) } else { (client, server) };
                to.write_all(b"never read").await.expect("write");
                let sent = pattern(size, round);
                from.write_all(&sent).await.expect("write");
                // Nobody has read a byte of it when the reset comes.
                ends(how, from).await;
                let mut heard = Vec::new();
                let end = to.read_to_end(&mut heard).await.expect_err("a reset, not an end of data");
                assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
                assert!(heard == sent, "{how:?}, {size} bytes, from the server: {from_server}: {} heard", heard.len());
                assert_eq!(copying.await.expect("copy").reason(), Some(Reason::Reset));
            }
        }
    }
}

/// Sends until nothing more is taken.
async fn fill(stream: &mut TcpStream) -> usize {
    let (block, mut taken) = ([7; 64 << 10], 0);
    let room = Duration::from_millis(200);
    while let Ok(written) = tokio::time::timeout(room, stream.write(&block)).await {
        taken += written.expect("write");
    }
    taken
}

async fn hears_of_it(stream: &TcpStream) {
    let heard = tokio::time::timeout(Duration::from_secs(1), stream.ready(Interest::ERROR)).await;
    assert!(
        heard.is_ok_and(|ready| ready.is_ok_and(|ready| ready.is_error())),
        "the kernel says nothing within a second"
    );
}

#[tokio::test]
async fn a_reset_behind_a_full_pipe_is_heard_within_a_second() {
    for server_resets in [false, true] {
        let Proxied { client, server, copying, .. } = proxied().await;
        let (mut resets, hears) = if server_resets { (server, client) } else { (client, server) };
        assert!(fill(&mut resets).await > 64 << 10);
        mesh_net::socket::reset_on_close(&resets).expect("linger");
        drop(resets);
        hears_of_it(&hears).await;
        assert_eq!(copying.await.expect("copy").reason(), Some(Reason::Reset));
    }
}

#[tokio::test]
async fn a_reset_after_a_half_close_is_heard_though_nobody_reads_that_end_any_more() {
    for server_resets in [false, true] {
        let Proxied { client, server, copying, .. } = proxied().await;
        let (mut resets, mut hears) = if server_resets { (server, client) } else { (client, server) };
        resets.shutdown().await.expect("shutdown");
        assert_eq!(hears.read(&mut [0]).await.expect("an end of data"), 0);
        mesh_net::socket::reset_on_close(&resets).expect("linger");
        drop(resets);
        hears_of_it(&hears).await;
        assert_eq!(copying.await.expect("copy").reason(), Some(Reason::Reset));
    }
}

#[tokio::test]
async fn a_connection_whose_task_is_dropped_is_a_reset_at_both_ends_and_no_end_of_data() {
    let Proxied { mut client, mut server, copying, .. } = proxied().await;
    client.write_all(b"x").await.expect("write");
    server.read_exact(&mut [0]).await.expect("read");
    copying.abort();
    for end in [&mut client, &mut server] {
        assert_eq!(read_all(end).await.expect_err("reset").kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_peer_that_the_kernel_gave_up_is_lost_and_not_idle() {
    // ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, ECONNRESET.
    for (errno, reason) in
        [(110, Reason::PeerLost), (113, Reason::PeerLost), (101, Reason::PeerLost), (104, Reason::Reset)]
    {
        let ended = Ended::Reset(Side::Destination, io::Error::from_raw_os_error(errno));
        assert_eq!(ended.reason(), Some(reason), "errno {errno}");
    }
    assert_eq!(Ended::Idle.reason(), Some(Reason::IdleTimeout));
}

#[tokio::test]
async fn a_cut_resets_both_ends() {
    let Proxied { mut client, mut server, connection, copying } = proxied().await;
    client.write_all(b"x").await.expect("write");
    let mut byte = [0];
    server.read_exact(&mut byte).await.expect("read");
    connection.cut(CutCause { reason: Reason::PolicyChanged, policy: None });
    for end in [&mut client, &mut server] {
        assert_eq!(read_all(end).await.expect_err("reset").kind(), io::ErrorKind::ConnectionReset);
    }
    assert_eq!(copying.await.expect("copy").reason(), Some(Reason::PolicyChanged));
}

/// An end in memory, for tests with a paused clock.
struct Memory(tokio::io::DuplexStream);

impl AsyncRead for Memory {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Memory {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl TunnelStream for Memory {
    fn reset(self: Box<Self>) {}
    fn poll_broken(&mut self, _: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }
    fn poll_sent(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_connection_ends_when_nothing_moves_and_not_before() {
    let ((mut client, near), (mut server, far)) = (pipe(64), pipe(64));
    let connection = connection();
    let of_task = connection.clone();
    let started = Instant::now();
    let copying = tokio::spawn(async move {
        let ends = (End::Tunnel(Box::new(Memory(near))), End::Tunnel(Box::new(Memory(far))));
        Duplex::new(ends.0, ends.1, &of_task, Duration::from_secs(100)).await
    });
    client.shutdown().await.expect("shutdown");
    // The server still speaks: each byte renews the time.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(90)).await;
        server.write_all(b"x").await.expect("write");
    }
    assert!(matches!(copying.await.expect("copy"), Ended::Idle));
    assert!(started.elapsed() >= Duration::from_secs(450 + 100));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_open_both_ways_may_be_idle_for_ever() {
    let ((_client, near), (_server, far)) = (pipe(64), pipe(64));
    let connection = connection();
    let ends = (End::Tunnel(Box::new(Memory(near))), End::Tunnel(Box::new(Memory(far))));
    let copying = Duplex::new(ends.0, ends.1, &connection, Duration::from_secs(100));
    let day = Duration::from_secs(24 * 3600);
    assert!(tokio::time::timeout(day, copying).await.is_err());
}

/// What an idle connection costs in user space beside its task header: measured, and held here (a proxy that let this grow
/// once needed 660 MB for 10,000 connections).
#[test]
fn the_loop_stays_small() {
    assert!(size_of::<Duplex<'_>>() <= 256, "{}", size_of::<Duplex<'_>>());
}

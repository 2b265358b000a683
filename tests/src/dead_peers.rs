//! A peer that vanishes without a word is given up when the mesh's setting says, whether something was under way or not; one that is
//! there and does not read is not.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Config, MeshConfig};
use rustix::event::PollFlags;

use crate::support::{self, family, figure};
use crate::talk::field;
use crate::ways::{Way, Ways, accept, wait};

/// Reads go on without a peer, writes wait for nobody.
const PORT: u16 = 9811;
/// Its packets are never dropped.
const SLOW: u16 = 9813;
/// 5 s, then three probes 3 s apart; a second for the machine.
const TOLD: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(40);

/// Says something every second, if it is not idle, until it learns that its peer is gone; after which time from `since`.
fn learns(mut stream: TcpStream, idle: bool, since: Instant) -> Result<(Duration, ErrorKind)> {
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut said = Instant::now();
    while since.elapsed() < PATIENCE {
        if !idle && said.elapsed() > Duration::from_secs(1) {
            said = Instant::now();
            if let Err(error) = stream.write_all(b"x") {
                return Ok((since.elapsed(), error.kind()));
            }
        }
        match stream.read(&mut [0; 16]) {
            Ok(0) => return Ok((since.elapsed(), ErrorKind::UnexpectedEof)),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Ok((since.elapsed(), error.kind())),
        }
    }
    anyhow::bail!("nothing learnt in {PATIENCE:?}")
}

/// (what, the end that is left, whether it is idle, the end that will vanish)
type Pair = (String, TcpStream, bool, TcpStream);

fn pairs(way: &Way, left: impl Fn(TcpStream, TcpStream) -> (TcpStream, TcpStream)) -> Result<Vec<Pair>> {
    let listener = way.listen(PORT)?;
    let mut pairs = Vec::new();
    for ip in way.server.ips() {
        for idle in [true, false] {
            let mut client = way.connect(ip, PORT)?;
            let mut server = accept(&listener)?;
            client.write_all(b"x")?;
            server.read_exact(&mut [0])?;
            let (stays, goes) = left(client, server);
            let what = format!("{}, {}, {}", way.name, family(ip), if idle { "idle" } else { "speaking" });
            pairs.push((what, stays, idle, goes));
        }
    }
    Ok(pairs)
}

#[test]
fn a_dead_peer_is_told_within_fifteen_seconds_and_one_that_does_not_read_is_left_alone() -> Result<()> {
    let settings = ["--keepalive-idle-seconds", "5", "--keepalive-interval-seconds", "3", "--keepalive-count", "3"];
    let mesh = MeshConfig { worker_args: settings.map(str::to_owned).to_vec(), ..MeshConfig::default() };
    let ways = Ways::open(support::lab(Config::default().name("dead-peers").mesh(mesh))?)?;
    let (out, inward) = (ways.out(), ways.inward());
    let mut all = pairs(&out, |client, server| (client, server))?;
    all.extend(pairs(&inward, |client, server| (server, client))?);
    let unread: Vec<(IpAddr, TcpStream, TcpStream)> = full(&out)?;

    // The far machines are gone: nothing reaches them any more, and nothing that they would say leaves.
    Way::drop_at(&out.server, &format!("tcp dport {PORT}"))?;
    Way::drop_at(&inward.client, &format!("tcp sport {PORT}"))?;
    let since = Instant::now();
    let learning: Vec<_> = all
        .into_iter()
        .map(|(what, stays, idle, goes)| (what, goes, std::thread::spawn(move || learns(stays, idle, since))))
        .collect();
    for (what, _goes, learning) in learning {
        let (took, how) = learning.join().ok().context("a thread")?.with_context(|| what.clone())?;
        figure(&format!("dead_peer_{}", what.replace([',', ' '], "_")), format!("{:.1}", took.as_secs_f64()), "s", "");
        ensure!(took <= TOLD && how == ErrorKind::ConnectionReset, "{what}: {how:?} after {took:?}");
    }
    // The one that does not read has stood still for longer than any deadline above, and everything arrives.
    let (_, client, _) = unread.first().context("a connection")?;
    let left = (TOLD + Duration::from_secs(3)).saturating_sub(since.elapsed());
    ensure!(!wait(client, PollFlags::RDHUP, left)?, "given up though its peer is there");
    for (ip, mut client, mut server) in unread {
        server.set_read_timeout(Some(Duration::from_secs(5)))?;
        let (mut seen, mut buffer) = (0_u64, vec![0; 1 << 16]);
        client.set_nonblocking(false)?;
        client.shutdown(std::net::Shutdown::Write)?;
        loop {
            match server.read(&mut buffer).with_context(|| format!("a slow reader over {}", family(ip)))? {
                0 => break,
                bytes => seen += bytes as u64,
            }
        }
        ensure!(seen > 1 << 18, "{seen} bytes over {}", family(ip));
        ensure!(client.write(b"x").is_err(), "shut down");
    }
    for node in [1, 2] {
        let lost = |line: &serde_json::Value| field(line, "reason") == "PeerLost";
        let count = ways.lab.mesh().access_log(node).iter().filter(|line| lost(line)).count();
        ensure!(count == 4, "node {node}: {count} lines say PeerLost");
    }
    ways.lab.down()
}

/// Connections whose server does not read, full.
fn full(way: &Way) -> Result<Vec<(IpAddr, TcpStream, TcpStream)>> {
    let listener = way.listen(SLOW)?;
    let mut all = Vec::new();
    for ip in way.server.ips() {
        let mut client = way.connect(ip, SLOW)?;
        let server = accept(&listener)?;
        client.set_nonblocking(true)?;
        let (block, started) = (vec![7; 1 << 16], Instant::now());
        // Full means that for half a second nothing was taken.
        let mut moved = started;
        while moved.elapsed() < Duration::from_millis(500) {
            match client.write(&block) {
                Ok(0) => {}
                Ok(1..) => moved = Instant::now(),
                Err(error) => ensure!(error.kind() == ErrorKind::WouldBlock, "{error}"),
            }
        }
        all.push((ip, client, server));
    }
    Ok(all)
}

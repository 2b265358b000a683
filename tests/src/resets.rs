//! A reset is passed on as it is without a mesh: behind the bytes that were sent before it, and at once though nobody reads.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::PollFlags;

use crate::support::{CHANGE, family, figure, mesh};
use crate::talk;
use crate::ways::{Way, Ways, accept, reset, wait};

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum How {
    /// The server answers and closes with the request unread.
    Unread,
    /// The server answers and resets.
    Linger,
    /// The server reads a little of a large upload, answers and closes: HTTP 413.
    Early,
    /// The client sends and resets.
    Up,
}

impl How {
    /// Those of which every byte of this size arrives without a mesh. A larger answer to an upload that is still coming is cut short by
    /// the server's own kernel: 57 of 60 of 64 KiB.
    fn sure(size: usize) -> impl Iterator<Item = How> {
        let small = (size <= 1 << 10).then_some(How::Early);
        [How::Unread, How::Linger, How::Up].into_iter().chain(small)
    }
}

const PORT: u16 = 9401;

/// One connection; how many bytes of `size` arrived.
fn one(way: &Way, ip: IpAddr, listener: &TcpListener, how: How, size: usize) -> Result<usize> {
    let (mut client, block) = (way.connect(ip, PORT)?, vec![7; size]);
    if let How::Up = how {
        client.write_all(&block)?;
        sent(&client)?;
        reset(client)?;
        return Ok(count(&mut accept(listener)?));
    }
    let asking = std::thread::spawn(move || {
        let request = vec![1; if let How::Early = how { 300_000 } else { 200 }];
        // An upload that is refused may fail.
        let _ = client.write_all(&request);
        count(&mut client)
    });
    let mut server = accept(listener)?;
    match how {
        How::Unread => drop(server.peek(&mut [0])?),
        How::Linger => server.read_exact(&mut [0; 200])?,
        How::Early => server.read_exact(&mut [0; 100])?,
        How::Up => {}
    }
    server.write_all(&block)?;
    sent(&server)?;
    match how {
        How::Linger => reset(server)?,
        _ => drop(server),
    }
    asking.join().ok().context("the client")
}

/// Waits until all is on its way: what is not, the sender's own kernel drops at a reset, with or without a mesh. What does not fit into
/// the first window (RFC 6928) may be late: without this, 57 of 60 of 16 KiB arrived between plain pods on a loaded machine.
fn sent(stream: &TcpStream) -> Result<()> {
    let mut broke = Ok(());
    lab::wait::until_true("all to be sent", talk::PATIENCE, || {
        let unsent = mesh_net::socket_options::unsent(stream);
        let done = !unsent.as_ref().is_ok_and(|unsent| *unsent);
        broke = unsent.map(drop);
        done
    })?;
    Ok(broke?)
}

/// Reads to whatever end there is.
fn count(stream: &mut TcpStream) -> usize {
    let (mut read, mut buffer) = (0, vec![0; 1 << 16]);
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        read += bytes;
    }
    read
}

fn all_arrive(way: &Way, size: usize, rounds: usize) -> Result<()> {
    let listener = way.listen(PORT)?;
    for how in How::sure(size) {
        let (mut whole, started) = (0, Instant::now());
        let ips = way.server.ips();
        for round in 0..rounds {
            let ip = ips[round % ips.len()];
            let arrived = one(way, ip, &listener, how, size)
                .with_context(|| format!("{}, {}, {how:?}, round {round}", way.name, family(ip)))?;
            whole += usize::from(arrived == size);
        }
        let name = format!("last_{}_KiB_{how:?}_{}", size >> 10, way.name.replace(' ', "_"));
        let each = started.elapsed().as_secs_f64() * 1e3 / rounds as f64;
        figure(&name, format!("{whole}/{rounds}"), "", &format!("IPv4 and IPv6 in turn, {each:.1} ms each"));
        ensure!(whole == rounds, "{}, {how:?}, {size} bytes: {whole} of {rounds} arrived whole", way.name);
    }
    Ok(())
}

#[test]
fn the_last_bytes_before_a_reset_arrive_a_thousand_times_of_a_thousand_through_a_tunnel() -> Result<()> {
    let ways = Ways::open(mesh("resets")?)?;
    for size in [1 << 10, 16 << 10, 64 << 10] {
        all_arrive(&ways.tunnel(), size, 1000)?;
    }
    ways.lab.down()
}

#[test]
fn the_last_bytes_before_a_reset_arrive_over_every_other_way() -> Result<()> {
    let ways = Ways::open(mesh("resets-ways")?)?;
    for way in ways.all().iter().filter(|way| way.name != "tunnel") {
        for size in [1 << 10, 16 << 10, 64 << 10] {
            all_arrive(way, size, 60)?;
        }
    }
    ways.lab.down()
}

/// The client sends until nothing more is taken, and resets. How long until the server's kernel says so.
fn heard(way: &Way, ip: IpAddr, listener: &TcpListener) -> Result<Duration> {
    let mut client = way.connect(ip, PORT)?;
    let server = accept(listener)?;
    client.set_write_timeout(Some(Duration::from_millis(500)))?;
    let block = vec![7; 1 << 16];
    let full = loop {
        if let Err(error) = client.write(&block) {
            break error;
        }
    };
    ensure!(matches!(full.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{full}");
    let started = Instant::now();
    reset(client)?;
    // POLLERR and POLLHUP are always told.
    ensure!(wait(&server, PollFlags::empty(), CHANGE)?, "{}, {}: not heard at all", way.name, family(ip));
    Ok(started.elapsed())
}

#[test]
fn a_callers_reset_behind_a_full_pipe_is_heard_within_a_second_over_every_way() -> Result<()> {
    let ways = Ways::open(mesh("dead-caller")?)?;
    for way in ways.all() {
        let listener = way.listen(PORT)?;
        for ip in way.server.ips() {
            let took = heard(&way, ip, &listener)?;
            let name = format!("reset_heard_{}_{}", way.name.replace(' ', "_"), family(ip));
            figure(&name, format!("{:.0}", took.as_secs_f64() * 1e3), "ms", "behind a full pipe");
            ensure!(took < Duration::from_secs(1), "{}, {}: heard after {took:?}", way.name, family(ip));
        }
    }
    ways.lab.down()
}

#[test]
fn a_caller_that_resets_or_closes_while_it_is_being_connected_gives_its_place_back_at_once() -> Result<()> {
    const CALLERS: usize = 50;
    let ways = Ways::open(mesh("hang-up")?)?;
    let open = || -> Result<usize> {
        let list = ways.lab.mesh().admin(1, &["connections"])?;
        Ok(list.as_array().context("a list of connections")?.len())
    };
    // Behind a tunnel, outside of the mesh, and behind a node that is dead.
    let dead = 15008;
    let cases =
        [(ways.tunnel(), PORT, "application"), (ways.out(), PORT, "outside"), (ways.tunnel(), dead, "tunnel port")];
    for (way, port, what) in cases {
        Way::drop_at(&way.server, &format!("tcp dport {port}"))?;
        for (ip, resets) in way.server.ips().into_iter().flat_map(|ip| [(ip, true), (ip, false)]) {
            let mut callers = Vec::new();
            for _ in 0..CALLERS {
                let mut caller = way.connect(ip, PORT)?;
                caller.write_all(b"0123456789")?;
                callers.push(caller);
            }
            lab::wait::until_true("the connections to be in the making", CHANGE, || {
                open().is_ok_and(|n| n >= CALLERS)
            })?;
            match resets {
                true => callers.into_iter().try_for_each(reset)?,
                false => drop(callers),
            }
            let started = Instant::now();
            lab::wait::until_true("their places to be free", CHANGE, || open().is_ok_and(|n| n == 0))?;
            let took = started.elapsed();
            let how = if resets { "reset" } else { "close" };
            let name = format!("hang_up_by_{how}_frees_{}_{}", what.replace(' ', "_"), family(ip));
            figure(&name, format!("{:.0}", took.as_secs_f64() * 1e3), "ms", "50 callers with bytes unread");
            ensure!(took < Duration::from_secs(2), "{what}, {}, {how}: {took:?}", family(ip));
        }
    }
    ways.lab.down()
}

#[test]
fn an_urgent_byte_is_not_lost_over_any_way() -> Result<()> {
    use rustix::net::{SendFlags, send};
    let ways = Ways::open(mesh("urgent")?)?;
    for way in ways.all().iter().filter(|way| way.name != "no mesh") {
        let listener = way.listen(PORT)?;
        for ip in way.server.ips() {
            let mut client = way.connect(ip, PORT)?;
            let mut server = accept(&listener)?;
            client.write_all(b"ab")?;
            send(&client, b"X", SendFlags::OOB)?;
            client.write_all(b"cd")?;
            drop(client);
            let mut seen = String::new();
            server.read_to_string(&mut seen)?;
            ensure!(seen == "abXcd", "{}, {}: {seen:?}", way.name, family(ip));
        }
    }
    ways.lab.down()
}

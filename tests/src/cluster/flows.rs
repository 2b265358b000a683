//! Connections that are in use all the time while something changes around them: a download, a websocket, a psql session. Each is one
//! connection from its beginning to its end, and checks every byte.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cluster::Cluster;
use cluster::demo;
use lab::wait;

use crate::shop::{CHANGE, Member, PATIENCE};
use crate::traffic::lasts;

/// Between two messages, or two blocks of a download (3 MB/s).
const PACE: Duration = Duration::from_millis(20);
const BLOCK: usize = 64 << 10;
/// The opening handshake of RFC 6455, section 1.3, with its own sample nonce and the answer to that.
const HELLO: &str = "GET /chat HTTP/1.1\r\nHost: shop\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const WELCOME: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// What both sides of a flow know of it.
#[derive(Default)]
struct State {
    /// Set when it is to end.
    over: AtomicBool,
    /// Counts up with every block or answer that has arrived and is right.
    moved: AtomicU64,
}

impl State {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn moves(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection in use.
pub(crate) struct Flow {
    name: String,
    state: Arc<State>,
    sides: Vec<JoinHandle<Result<()>>>,
}

impl Flow {
    fn new(name: String) -> Flow {
        Flow { name, state: Arc::default(), sides: Vec::new() }
    }

    fn side(mut self, work: impl FnOnce(&State) -> Result<()> + Send + 'static) -> Flow {
        let state = self.state.clone();
        self.sides.push(std::thread::spawn(move || work(&state)));
        self
    }

    /// Waits until it has moved on twice from now: the second cannot have been on its way.
    pub(crate) fn goes_on(&self) -> Result<()> {
        let before = self.state.moved.load(Ordering::Relaxed);
        let moved = || self.state.moved.load(Ordering::Relaxed) >= before + 2;
        wait::until_true("it to go on", CHANGE, || moved() || self.sides.iter().any(JoinHandle::is_finished))
            .with_context(|| self.name.clone())?;
        ensure!(moved(), "{} broke; its ends say why when it is ended", self.name);
        Ok(())
    }

    /// Ends it from its own side; what went wrong on either, if anything did.
    pub(crate) fn ends(self) -> Result<()> {
        self.state.over.store(true, Ordering::Relaxed);
        for side in self.sides {
            side.join().expect("what fails is returned").with_context(|| self.name.clone())?;
        }
        Ok(())
    }
}

/// Where one connection is awaited in a pod.
fn listen(to: &Member, ip: IpAddr) -> Result<(TcpListener, SocketAddr)> {
    let listener = to.listen()?;
    let port = listener.local_addr()?.port();
    Ok((listener, SocketAddr::new(ip, port)))
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads up to the empty line that ends a head.
fn head(mut stream: &TcpStream) -> Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 4096, "the head is too long");
        stream.read_exact(&mut byte).context("a head")?;
        head.extend(byte);
    }
    Ok(String::from_utf8(head)?)
}

/// The byte at a position of the file that is downloaded.
fn pattern(at: u64) -> u8 {
    // No block is like the one before it.
    (at % 251) as u8
}

/// A file that is downloaded for as long as the flow lives.
pub(crate) fn download(from: &Member, to: &Member, ip: IpAddr) -> Result<Flow> {
    let (listener, at) = listen(to, ip)?;
    let sent = Arc::new(AtomicU64::new(0));
    let total = sent.clone();
    let flow = Flow::new(format!("download {} from {at}", from.name)).side(move |state| {
        let mut stream = accept(&listener)?;
        ensure!(head(&stream)?.starts_with("GET /file "), "not the request that was made");
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
        let mut position = 0;
        while !state.is_over() {
            let block: Vec<u8> = (position..position + BLOCK as u64).map(pattern).collect();
            stream.write_all(&block).context("send a block")?;
            position += BLOCK as u64;
            sent.store(position, Ordering::Relaxed);
            lasts(PACE);
        }
        stream.shutdown(Shutdown::Write)?;
        // The other side ends its half when it has everything.
        ensure!(stream.read(&mut [0])? == 0, "more than a request came");
        Ok(())
    });
    let mut stream = from.connect(at)??;
    stream.write_all(b"GET /file HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    Ok(flow.side(move |state| {
        ensure!(head(&stream)?.starts_with("HTTP/1.1 200 "), "not an answer");
        let (mut buffer, mut position) = (vec![0; BLOCK], 0);
        loop {
            let n = stream.read(&mut buffer).with_context(|| format!("read on after {position} bytes"))?;
            if n == 0 {
                break;
            }
            let right = buffer[..n].iter().zip(position..).all(|(byte, at)| *byte == pattern(at));
            ensure!(right, "another byte than was sent, after {position}");
            position += n as u64;
            state.moves();
        }
        let total = total.load(Ordering::Relaxed);
        ensure!(state.is_over() && position == total, "it ended after {position} bytes of {total}");
        Ok(stream.shutdown(Shutdown::Write)?)
    }))
}

/// A websocket (RFC 6455) on which short messages are sent and answered.
pub(crate) fn websocket(from: &Member, to: &Member, ip: IpAddr) -> Result<Flow> {
    let (listener, at) = listen(to, ip)?;
    let flow = Flow::new(format!("websocket of {} to {at}", from.name)).side(move |_| {
        let mut stream = accept(&listener)?;
        ensure!(head(&stream)? == HELLO, "not the request that was made");
        stream.write_all(WELCOME.as_bytes())?;
        while let Some(text) = frame(&mut stream)? {
            // FIN and text; what a server sends is not masked (section 5.1).
            stream.write_all(&[&[0x81, text.len() as u8], text.as_bytes()].concat())?;
        }
        Ok(())
    });
    let mut stream = from.connect(at)??;
    stream.write_all(HELLO.as_bytes())?;
    ensure!(head(&stream)? == WELCOME, "not a websocket");
    Ok(flow.side(move |state| {
        for n in 0.. {
            if state.is_over() {
                break;
            }
            let text = format!("message {n}");
            let mask = [0x11, 0x22, 0x33, n as u8];
            let masked = text.bytes().zip(mask.into_iter().cycle()).map(|(byte, key)| byte ^ key);
            let payload: Vec<u8> = mask.into_iter().chain(masked).collect();
            stream.write_all(&[&[0x81, 0x80 | text.len() as u8], &payload[..]].concat()).context("send")?;
            ensure!(frame(&mut stream)?.as_ref() == Some(&text), "another answer");
            state.moves();
            lasts(PACE);
        }
        Ok(stream.shutdown(Shutdown::Write)?)
    }))
}

/// The text of the next frame; none when the peer has ended.
fn frame(stream: &mut TcpStream) -> Result<Option<String>> {
    let mut start = [0; 2];
    if stream.read(&mut start[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut start[1..])?;
    ensure!(start[0] == 0x81, "not one frame of text: {start:?}");
    let (masked, length) = (start[1] & 0x80 != 0, usize::from(start[1] & 0x7f));
    ensure!(length < 126, "longer than what is sent here");
    let mut mask = [0; 4];
    if masked {
        stream.read_exact(&mut mask)?;
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text)?;
    let text = text.iter().zip(mask.into_iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    Ok(Some(String::from_utf8(text)?))
}

/// A session of `psql` in the demo's pod `cart`, which is asked again and again and always answered by the same server process.
pub(crate) fn psql(cluster: &Cluster, to: IpAddr) -> Result<Flow> {
    let mut command = cluster.command(&cluster.parts().kubectl);
    command.args(["exec", "-i", "-n", demo::NAMESPACE, "cart", "--"]);
    command.args(["psql", "-U", "shop", "-Atq", "-h", &to.to_string(), "postgres"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = cluster.lab().fabric().in_netns(|| command.spawn().context("start kubectl"))?;
    let (mut input, output) = (child.stdin.take().context("a pipe")?, child.stdout.take().context("a pipe")?);
    let (told, lines) = mpsc::sync_channel(16);
    let reader = move |_: &State| {
        BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| told.send(line)).ok();
        Ok(())
    };
    let flow = Flow::new(format!("psql to {to}")).side(reader).side(move |state| {
        let mut ask = || -> Result<String> {
            writeln!(input, "select pg_backend_pid();").context("psql has ended")?;
            lines.recv_timeout(CHANGE).context("no answer")
        };
        let first = ask()?;
        while !state.is_over() {
            let now = ask()?;
            if now != first {
                // psql connects anew by itself when it has lost the server.
                bail!("answered by process {now}, which was {first}");
            }
            state.moves();
            lasts(PACE);
        }
        drop(input);
        ensure!(child.wait()?.success(), "psql ended badly");
        Ok(())
    });
    Ok(flow)
}

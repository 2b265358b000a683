//! `culvert-lab app`: servers of several kinds in one process, each dual-stack on a port of its own.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::LocalSet;

use super::stats::Counter;
use super::{block_on, bulk, unmapped};

/// Backlog: larger than any burst of the tests, so that it is never the app that refuses.
const BACKLOG: i32 = 4096;

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sends back what comes; ends its half when the peer has ended its own.
    Echo,
    /// Speaks first: `hello from NAME`, then echoes.
    Greet,
    /// Checksummed bulk both ways, see [`bulk`].
    Bulk,
    /// `PEER LOCAL\n` and the end.
    Whoami,
    /// Takes everything, says nothing, ends its half when the peer has.
    Hold,
    /// Takes everything to its end, then tells how many bytes came.
    Sink,
    /// Resets every connection once it is accepted.
    Reset,
    /// HTTP/1.1, one answer per request, keep-alive.
    Http,
    /// Echo over UDP.
    UdpEcho,
}

/// A server: `kind:port`.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    kind: Kind,
    port: u16,
}

impl FromStr for Server {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Server> {
        let (kind, port) = text.split_once(':').context("a server is written KIND:PORT")?;
        let kind = match kind {
            "echo" => Kind::Echo,
            "greet" => Kind::Greet,
            "bulk" => Kind::Bulk,
            "whoami" => Kind::Whoami,
            "hold" => Kind::Hold,
            "sink" => Kind::Sink,
            "reset" => Kind::Reset,
            "http" => Kind::Http,
            "udp-echo" => Kind::UdpEcho,
            other => bail!("no server of kind {other}: echo, greet, bulk, whoami, hold, sink, reset, http, udp-echo"),
        };
        Ok(Server { kind, port: port.parse().with_context(|| format!("port of {text}"))? })
    }
}

struct App {
    name: String,
    counter: Counter,
}

/// Runs the servers until the process is ended. Says `ready` when every port listens.
pub fn run(name: &str, stats: Option<PathBuf>, servers: &[Server]) -> Result<()> {
    let ports: Vec<u16> = servers.iter().filter(|s| s.kind != Kind::UdpEcho).map(|s| s.port).collect();
    let app = Rc::new(App { name: name.to_owned(), counter: Counter::open(stats.as_deref(), &ports)? });
    let servers = servers.to_vec();
    block_on(async {
        let local = LocalSet::new();
        for Server { kind, port } in servers {
            if kind == Kind::UdpEcho {
                local.spawn_local(udp_echo(UdpSocket::from_std(bind(port, Type::DGRAM)?.into())?));
            } else {
                let listener = TcpListener::from_std(bind(port, Type::STREAM)?.into())?;
                local.spawn_local(accept(app.clone(), kind, port, listener));
            }
        }
        say_ready()?;
        local.await; // its tasks end with the process
        Ok(())
    })
}

pub(crate) fn say_ready() -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout();
    writeln!(out, "{}", crate::init::READY)?;
    Ok(out.flush()?)
}

fn bind(port: u16, kind: Type) -> Result<Socket> {
    let socket =
        Socket::new(Domain::IPV6, kind, Some(if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP }))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket
        .bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())
        .with_context(|| format!("bind port {port}"))?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

async fn accept(app: Rc<App>, kind: Kind, port: u16, listener: TcpListener) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        app.counter.add(port, 1, 0);
        let app = app.clone();
        tokio::task::spawn_local(async move {
            // How a connection ends is the client's business to report.
            let _ = serve(&app, kind, port, stream, unmapped(peer)).await;
        });
    }
}

async fn serve(app: &App, kind: Kind, port: u16, mut stream: TcpStream, peer: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    match kind {
        Kind::Echo => echo(app, port, stream).await,
        Kind::Greet => {
            stream.write_all(format!("hello from {}\n", app.name).as_bytes()).await?;
            echo(app, port, stream).await
        }
        Kind::Bulk => bulk::serve(stream, |bytes| app.counter.add(port, 0, bytes)).await,
        Kind::Whoami => {
            let local = unmapped(stream.local_addr()?);
            stream.write_all(format!("{peer} {local}\n").as_bytes()).await?;
            stream.shutdown().await?;
            drain(app, port, &mut stream).await.map(drop)
        }
        Kind::Hold => drain(app, port, &mut stream).await.map(drop),
        Kind::Sink => {
            let bytes = drain(app, port, &mut stream).await?;
            stream.write_all(format!("{bytes}\n").as_bytes()).await?;
            Ok(stream.shutdown().await?)
        }
        Kind::Reset => {
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
            Ok(())
        }
        Kind::Http => http(app, port, stream, peer).await,
        Kind::UdpEcho => Ok(()),
    }
}

async fn echo(app: &App, port: u16, mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(stream.shutdown().await?);
        }
        app.counter.add(port, 0, n as u64);
        stream.write_all(&buffer[..n]).await?;
    }
}

async fn drain(app: &App, port: u16, stream: &mut TcpStream) -> Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(total);
        }
        total += n as u64;
        app.counter.add(port, 0, n as u64);
    }
}

/// Enough HTTP/1.1 for curl and a browser: reads a head, answers, keeps the connection.
async fn http(app: &App, port: u16, mut stream: TcpStream, peer: SocketAddr) -> Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(stream.shutdown().await?);
        }
        app.counter.add(port, 0, n as u64);
        head.extend_from_slice(&buffer[..n]);
        anyhow::ensure!(head.len() < 64 << 10, "the head is too long");
        while let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
            let body = format!("hello from {}\nyou are {peer}\nyou said {}\n", app.name, String::from_utf8_lossy(line));
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            head.drain(..end + 4);
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}

async fn udp_echo(socket: UdpSocket) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..n], peer).await;
        }
    }
}

//! The load: plain sockets in pods, each of which counts its own bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::PodHandle;

use crate::support::CHANGE;
use crate::talk;

/// Bytes of one exchange: nothing, less than a buffer, its very size and its neighbours, more than the sockets on the way hold.
pub(crate) const SIZES: [usize; 9] = [0, 1, 5, 1_000, 8_191, 8_192, 8_193, 100_000, 3_000_000];
/// Bytes of [`talk::say`], each way.
pub(crate) const SAID: u64 = 5;

/// What one client counted.
pub(crate) struct Moved {
    /// Bytes written.
    pub(crate) up: u64,
    /// Bytes read.
    pub(crate) down: u64,
}

/// Sends so many bytes to an echo server and takes all that comes back, both ends to their end.
pub(crate) fn exchange(from: &PodHandle, to: SocketAddr, size: usize) -> Result<Moved> {
    let stream = talk::connect(from, to)??;
    let sent = vec![b'x'; size];
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (&stream).write_all(&sent)?;
            stream.shutdown(Shutdown::Write)
        });
        let mut back = Vec::with_capacity(size);
        (&stream).read_to_end(&mut back).with_context(|| format!("{size} bytes to {to} and back"))?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        ensure!(back == sent, "of {size} bytes to {to} came back {}", back.len());
        Ok(Moved { up: sent.len() as u64, down: back.len() as u64 })
    })
}

/// A connection to each address, used once ([`SAID`]).
pub(crate) fn open(from: &PodHandle, to: Vec<SocketAddr>) -> Result<Vec<TcpStream>> {
    let streams: Vec<TcpStream> = to.into_iter().map(|to| Ok(talk::connect(from, to)??)).collect::<Result<_>>()?;
    streams.iter().try_for_each(talk::say)?;
    Ok(streams)
}

/// Waits until somebody else has ended it; not a byte more may come.
pub(crate) fn cut(mut stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(CHANGE))?;
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("not cut: {other:?}"),
    }
}

/// Ends it by a reset.
pub(crate) fn abort(stream: TcpStream) -> Result<()> {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(())
}

/// Something that is not TLS, to a port that speaks it, until the peer has enough.
pub(crate) fn garbage(from: &PodHandle, to: SocketAddr) -> Result<()> {
    let mut stream = talk::connect(from, to)??;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: culvert\r\n\r\n")?;
    ended(stream, to)
}

/// Nothing at all, until the peer has waited enough.
pub(crate) fn silent(from: &PodHandle, to: SocketAddr, patience: Duration) -> Result<()> {
    let stream = talk::connect(from, to)??;
    stream.set_read_timeout(Some(patience))?;
    ended(stream, to)
}

fn ended(mut stream: TcpStream, to: SocketAddr) -> Result<()> {
    match stream.read_to_end(&mut Vec::new()) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => {
            Err(error).with_context(|| format!("waiting for {to}"))
        }
        _ => Ok(()),
    }
}

/// TLS as it should be, but for the certificate that a client of the mesh must show.
pub(crate) fn without_certificate(from: &PodHandle, to: SocketAddr) -> Result<()> {
    let url = format!("https://{to}/");
    let output = from.exec(&["curl", "--silent", "--insecure", "--http2", "--max-time", "5", &url])?;
    ensure!(!output.exit.success(), "{to} answered to a client without a certificate: {}", output.stdout);
    Ok(())
}

//! The server of a server pod: echo, sink and source on three ports, one thread, epoll.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::bulk::CHUNK;
use super::poll::{Poll, Ready};
use super::{raise_descriptors, say};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Echo,
    Sink,
    Source,
}

/// The kinds in the order of the ports.
const KINDS: [Kind; 3] = [Kind::Echo, Kind::Sink, Kind::Source];

struct Connection {
    kind: Kind,
    stream: TcpStream,
    /// Sink: bytes taken.
    taken: u64,
    /// Echo: what did not fit into the socket yet.
    unsent: Vec<u8>,
    watched: Ready,
}

struct Server {
    poll: Poll,
    listeners: Vec<TcpListener>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

/// Serves until it is killed.
pub fn serve(ports: &[u16]) -> Result<()> {
    raise_descriptors()?;
    let poll = Poll::new()?;
    let listeners: Vec<TcpListener> = ports.iter().map(|port| listen(*port)).collect::<Result<_>>()?;
    for (number, listener) in listeners.iter().enumerate() {
        poll.add(listener, number as u64, Ready::IN)?;
    }
    let (connections, free) = (Vec::new(), Vec::new());
    let mut server = Server { poll, listeners, connections, free, buffer: vec![0x55; CHUNK] };
    say("listening")?;
    let mut events = Vec::new();
    loop {
        server.poll.wait(None, &mut events)?;
        for (number, ready) in &events {
            match usize::try_from(*number)?.checked_sub(server.listeners.len()) {
                None => server.accept(*number as usize)?,
                Some(number) => server.serve(number, *ready),
            }
        }
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let make = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        socket.listen(i32::from(u16::MAX))?; // the kernel cuts it down to somaxconn
        Ok(socket.into())
    };
    make().with_context(|| format!("listen on {port}"))
}

impl Server {
    fn accept(&mut self, listener: usize) -> Result<()> {
        loop {
            let stream = match self.listeners[listener].accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The peer went before it was accepted.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept"),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let number = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.poll.add(&stream, (number + self.listeners.len()) as u64, Ready::IN)?;
            let (kind, unsent) = (KINDS[listener], Vec::new());
            self.connections[number] = Some(Connection { kind, stream, taken: 0, unsent, watched: Ready::IN });
        }
    }

    fn serve(&mut self, number: usize, ready: Ready) {
        let Some(connection) = &mut self.connections[number] else { return };
        let goes_on = connection.serve(&mut self.buffer, ready).and_then(|wanted| {
            if let Some(wanted) = wanted
                && wanted != connection.watched
            {
                self.poll.change(&connection.stream, (number + self.listeners.len()) as u64, wanted)?;
                connection.watched = wanted;
            }
            Ok(wanted.is_some())
        });
        // A peer that resets is no event: the client's own report says what failed.
        if !goes_on.unwrap_or(false) {
            self.connections[number] = None;
            self.free.push(number);
        }
    }
}

impl Connection {
    /// Does what can be done without waiting; what to wait for next, or `None` at the end.
    fn serve(&mut self, buffer: &mut [u8], ready: Ready) -> Result<Option<Ready>> {
        match self.kind {
            Kind::Echo => self.echo(buffer),
            Kind::Sink => self.sink(buffer),
            Kind::Source => self.source(buffer, ready),
        }
    }

    fn echo(&mut self, buffer: &mut [u8]) -> Result<Option<Ready>> {
        if !self.unsent.is_empty() {
            let Some(sent) = unless_full(self.stream.write(&self.unsent))? else { return Ok(Some(Ready::OUT)) };
            self.unsent.drain(..sent);
            return Ok(Some(if self.unsent.is_empty() { Ready::IN } else { Ready::OUT }));
        }
        let Some(got) = unless_full(self.stream.read(buffer))? else { return Ok(Some(Ready::IN)) };
        if got == 0 {
            return Ok(None);
        }
        let sent = unless_full(self.stream.write(&buffer[..got]))?.unwrap_or(0);
        self.unsent.extend_from_slice(&buffer[sent..got]);
        Ok(Some(if sent == got { Ready::IN } else { Ready::OUT }))
    }

    fn sink(&mut self, buffer: &mut [u8]) -> Result<Option<Ready>> {
        let Some(got) = unless_full(self.stream.read(buffer))? else { return Ok(Some(Ready::IN)) };
        if got == 0 {
            self.stream.write_all(&self.taken.to_be_bytes())?; // eight bytes fit into an unused buffer
            return Ok(None);
        }
        self.taken += got as u64;
        Ok(Some(Ready::IN))
    }

    /// Silent until asked, then without end.
    fn source(&mut self, buffer: &mut [u8], ready: Ready) -> Result<Option<Ready>> {
        if self.taken == 0 {
            let Some(got) = unless_full(self.stream.read(&mut [0]))? else { return Ok(Some(Ready::IN)) };
            self.taken = got as u64;
            return Ok((got > 0).then_some(Ready::OUT));
        }
        if ready.intersects(Ready::ERR | Ready::HUP) {
            return Ok(None);
        }
        unless_full(self.stream.write(buffer))?;
        Ok(Some(Ready::OUT))
    }
}

fn unless_full(result: std::io::Result<usize>) -> std::io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connected pair: the client's end, and the server's as a connection of this kind.
    fn pair(kind: Kind) -> (TcpStream, Connection) {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
        let (stream, _) = listener.accept().expect("one is there");
        stream.set_nodelay(true).expect("tcp");
        (client, Connection { kind, stream, taken: 0, unsent: Vec::new(), watched: Ready::IN })
    }

    #[test]
    fn an_echo_gives_back_what_it_gets_and_a_sink_counts_it() {
        let mut buffer = vec![0; CHUNK];
        let (mut client, mut echo) = pair(Kind::Echo);
        client.write_all(b"abc").expect("loopback");
        assert_eq!(echo.serve(&mut buffer, Ready::IN).expect("open"), Some(Ready::IN));
        let mut back = [0; 3];
        client.read_exact(&mut back).expect("an echo");
        assert_eq!(&back, b"abc");

        let (mut client, mut sink) = pair(Kind::Sink);
        client.write_all(&[1; 1000]).expect("loopback");
        client.shutdown(std::net::Shutdown::Write).expect("open");
        while sink.serve(&mut buffer, Ready::IN).expect("open").is_some() {}
        let mut count = [0; 8];
        client.read_exact(&mut count).expect("a count");
        assert_eq!(u64::from_be_bytes(count), 1000);
    }

    #[test]
    fn a_source_is_silent_until_asked() {
        let mut buffer = vec![7; CHUNK];
        let (mut client, mut source) = pair(Kind::Source);
        source.stream.set_nonblocking(true).expect("tcp");
        assert_eq!(source.serve(&mut buffer, Ready::IN).expect("open"), Some(Ready::IN));
        client.write_all(&[1]).expect("loopback");
        client.set_read_timeout(Some(super::super::SILENCE)).expect("tcp");
        while source.serve(&mut buffer, Ready::IN).expect("open") != Some(Ready::OUT) {}
        source.serve(&mut buffer, Ready::OUT).expect("open");
        let mut got = [0; 100];
        client.read_exact(&mut got).expect("bytes");
        assert_eq!(got, [7; 100]);
    }
}

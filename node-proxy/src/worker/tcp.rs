//! A TCP socket as an end of a connection.
//!
//! Reads and writes as tokio's own stream does (one system call each, which also says whether there is more), but shared, so that a
//! reset is heard while nobody reads: tokio keeps "readable" set as long as bytes are unread, so only the error itself tells. That a
//! read was short does not say that there is no more: the kernel stops before an urgent byte. So it is asked ([`Behind`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use mesh_net::socket_options::{self, Behind, Keepalive};
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::silence::Silence;

/// Whether what was written to an end has been delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// All of it.
    Yes,
    /// Not yet; the task is woken when it is.
    Waking,
    /// Not yet, and nobody says when: look again shortly.
    LookAgain,
}

type Broken = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module.
pub struct Tcp {
    stream: Arc<TcpStream>,
    /// Waits for the socket's error; made when nobody reads the socket for the first time, since most connections never come there.
    broken: Option<Broken>,
    /// Of a peer that may vanish without a word. One of this node cannot: its kernel is this one.
    silence: Option<Box<Silence>>,
}

impl Tcp {
    /// Of a connected socket.
    pub fn new(stream: TcpStream) -> Self {
        // Without it each read would be followed by one that finds nothing: slower, not wrong.
        if let Err(error) = socket_options::count_unread(&stream) {
            tracing::debug!(%error, "the kernel does not count unread bytes");
        }
        Self { stream: Arc::new(stream), broken: None, silence: None }
    }

    /// Of one whose peer may vanish without a word: it is given up when it has owed an acknowledgement for as long as keepalive waits.
    pub fn far(stream: TcpStream, keepalive: Keepalive) -> Self {
        Self { silence: Some(Box::new(Silence::new(keepalive))), ..Self::new(stream) }
    }

    /// Closes it so that the peer sees RST. What the kernel has not sent yet is lost.
    pub fn reset(self) {
        if let Err(error) = mesh_net::socket::reset_on_close(&self.stream) {
            // Only fails when the socket is gone already, and then there is nobody to tell.
            tracing::debug!(%error, "reset on close");
        }
    }

    /// Reads into the free room of `buffer`; 0 is the end of data.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let read = self.once(Interest::READABLE, || {
                let (bytes, behind) = socket_options::receive(&self.stream, buffer)?;
                Ok((bytes, bytes > 0 && behind == Behind::Nothing))
            });
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    /// Writes some of it.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let written = self.once(Interest::WRITABLE, || {
                let written = rustix::net::send(&self.stream, bytes, SendFlags::NOSIGNAL)?;
                // Less than was asked for: the socket's buffer is full.
                Ok((written, 0 < written && written < bytes.len()))
            });
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    if let Some(silence) = &mut self.silence {
                        silence.wrote(cx);
                    }
                    return Poll::Ready(done);
                }
            }
        }
    }

    /// One system call, which also says whether the socket is not ready for another: then readiness is cleared without a second call that
    /// would only say so. Epoll tells of what comes after.
    fn once(&self, interest: Interest, call: impl FnOnce() -> io::Result<(usize, bool)>) -> io::Result<usize> {
        let mut last = None;
        let done = self.stream.try_io(interest, || {
            let (bytes, is_last) = call()?;
            if is_last {
                last = Some(bytes);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(bytes)
        });
        last.map_or(done, Ok)
    }

    /// Passes on the end of data.
    pub fn shutdown(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write)?;
        // The end is owed an acknowledgement like a byte.
        if let Some(silence) = &mut self.silence {
            silence.wrote(cx);
        }
        Ok(())
    }

    /// Ready when the peer has reset the connection or the kernel has given it up. What it sent before can still be read.
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let broken = self.broken.get_or_insert_with(|| {
            let stream = self.stream.clone();
            Box::pin(async move { drop(stream.ready(Interest::ERROR).await) })
        });
        ready!(broken.as_mut().poll(cx));
        self.broken = None;
        // Taken already by a write: then it was that.
        let error = self.stream.take_error().ok().flatten();
        Poll::Ready(error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
    }

    /// Ready when the peer has owed an acknowledgement for too long.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match &mut self.silence {
            Some(silence) => silence.poll(cx, &self.stream),
            None => Poll::Pending,
        }
    }

    /// Whether nothing more should be read for it, since it is silent.
    pub fn holds_back(&self) -> bool {
        self.silence.as_ref().is_some_and(|silence| silence.holds_back())
    }

    /// Whether the peer's kernel has all that was written. No event says when it has.
    pub fn delivered(&self) -> Delivered {
        match socket_options::unacknowledged(&self.stream) {
            Ok(true) => Delivered::LookAgain,
            // An error: there is no connection any more.
            Ok(false) | Err(_) => Delivered::Yes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_end_of_data_that_is_owed_an_acknowledgement_is_looked_after_like_a_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let connecting = TcpStream::connect(listener.local_addr().expect("address"));
        let (near, far) = tokio::join!(connecting, listener.accept());
        let _far = far.expect("accept");
        let keepalive = Keepalive { idle: Duration::from_secs(5), interval: Duration::from_secs(3), count: 3 };
        let mut tcp = Tcp::far(near.expect("connect"), keepalive);
        let looks = |tcp: &Tcp| tcp.silence.as_ref().is_some_and(|silence| silence.looks());
        assert!(!looks(&tcp));
        std::future::poll_fn(|cx| Poll::Ready(tcp.shutdown(cx))).await.expect("shutdown");
        assert!(looks(&tcp));
    }
}

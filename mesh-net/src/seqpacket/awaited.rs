//! The same for tokio. Every call is cancel-safe: a packet is taken or sent whole in one system call, and
//! nothing is awaited after it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::blocking::{Conn, Credentials, Listener, Packet};

/// A listening socket; its file goes away with it.
#[derive(Debug)]
pub struct AsyncListener(AsyncFd<Listener>);

impl AsyncListener {
    /// As [`Listener::bind`].
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        Self::new(Listener::bind(path, mode)?)
    }

    /// Takes over a blocking listener. Must be called within a runtime.
    pub fn new(listener: Listener) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        // SAFETY: the listener owns its descriptor, answers with the same one for life and closes it only when dropped, which
        // `AsyncFd` does after deregistering.
        Ok(Self(unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }?))
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<AsyncConn> {
        let fd = self
            .0
            .async_io(Interest::READABLE, |listener| {
                Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
            })
            .await?;
        AsyncConn::new(Conn::from_fd(fd))
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.0.get_ref().path()
    }

    /// As [`Listener::is_in_place`].
    pub fn is_in_place(&self) -> bool {
        self.0.get_ref().is_in_place()
    }
}

/// A connected socket.
#[derive(Debug)]
pub struct AsyncConn(AsyncFd<Conn>);

impl AsyncConn {
    /// Connects to the listener at `path`; a full backlog is `WouldBlock` at once, to be tried again later.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::connect(&fd, &rustix::net::SocketAddrUnix::new(path)?)?;
        Self::new(Conn::from_fd(fd))
    }

    /// Takes over a blocking connection. Must be called within a runtime.
    pub fn new(conn: Conn) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&conn, true)?;
        // SAFETY: as for the listener: one descriptor, owned for life by the value that `AsyncFd` takes.
        Ok(Self(unsafe { AsyncFd::register(conn) }?))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<Credentials> {
        self.0.get_ref().peer()
    }

    /// Sends one message whole, when there is room for it.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, |conn| conn.send_with(bytes, fds, SendFlags::DONTWAIT)).await
    }

    /// Takes the next message; `None` when the other end has closed.
    pub async fn recv(&self) -> io::Result<Option<Packet>> {
        self.0.async_io(Interest::READABLE, |conn| conn.recv_with(RecvFlags::DONTWAIT)).await
    }
}

impl AsFd for AsyncConn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_and_descriptors_cross_between_async_and_blocking_ends() {
        let dir = tempfile::tempdir().expect("dir");
        let listener = AsyncListener::bind(&dir.path().join("s"), 0o600).expect("bind");
        let near = AsyncConn::connect(listener.path()).expect("connect");
        let far = listener.accept().await.expect("accept");
        let null = std::fs::File::open("/dev/null").expect("null");
        near.send(b"hello", &[null.as_fd(), null.as_fd()]).await.expect("send");
        let packet = far.recv().await.expect("recv").expect("open");
        assert_eq!((packet.bytes.as_slice(), packet.fds.len()), (b"hello".as_slice(), 2));
        drop(near);
        assert!(far.recv().await.expect("end").is_none());
    }

    #[tokio::test]
    async fn a_sender_waits_for_room_and_loses_nothing() {
        let (a, b) = Conn::pair().expect("pair");
        let (a, b) = (AsyncConn::new(a).expect("async"), AsyncConn::new(b).expect("async"));
        let send = async {
            for n in 0..500_u32 {
                a.send(&[n.to_le_bytes().as_slice(), &[0; 4000]].concat(), &[]).await.expect("send");
            }
        };
        let recv = async {
            for n in 0..500_u32 {
                let packet = b.recv().await.expect("recv").expect("open");
                assert_eq!(packet.bytes[..4], n.to_le_bytes());
            }
        };
        tokio::join!(send, recv);
    }
}

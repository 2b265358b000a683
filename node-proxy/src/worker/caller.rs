//! The caller's end of a connection whose destination is being reached.
//!
//! A caller that goes away meanwhile gives its place back at once. A reset is a going away. One that has ended its own direction (FIN)
//! may have sent its request and wait for the answer: whether it has closed its socket is asked of its kernel, where that can be done
//! ([`super::orphans`]).
//! However the set-up ends without a destination, the caller sees a reset, never an end of data.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_model::Reason;
use mesh_net::socket_options::Keepalive;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::end::End;
use super::record::Refusal;

/// How long a set-up may take until its caller is looked at, and again.
const LOOK: Duration = Duration::from_millis(250);
/// What a caller sent before it went is still taken to a destination that is reached within this time. Without a mesh the destination's
/// kernel would have had it by then, though not the application for certain: one that closes with bytes unread, or resets, may take away what
/// was not delivered. But a caller that sends a line and closes (syslog, a metric) relies on it to arrive. Half a second is a guess.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// See the module. Dropped, it is reset.
#[derive(Debug)]
pub struct Caller(Option<TcpStream>);

impl Caller {
    /// Of an accepted socket.
    pub fn new(stream: TcpStream) -> Self {
        Self(Some(stream))
    }

    /// The connection's end, once its destination is reached.
    pub fn into_end(mut self) -> Option<End> {
        self.0.take().map(End::tcp)
    }

    /// The same for one that may be on another machine.
    pub fn into_far_end(mut self, keepalive: Keepalive) -> Option<End> {
        self.0.take().map(|stream| End::far(stream, keepalive))
    }

    /// The socket itself, for a protocol of our own.
    pub fn into_stream(mut self) -> Option<TcpStream> {
        self.0.take()
    }

    /// Sets up a connection for as long as the caller is there. Dropping the set-up half-way closes what it had opened. `has_closed` says
    /// of one that has ended its direction whether it has closed its socket, by our end's address and its own.
    pub async fn while_there<T, A: Future<Output = bool>>(
        &self,
        set_up: impl Future<Output = Result<T, Refusal>>,
        has_closed: impl Fn(SocketAddr, SocketAddr) -> A,
    ) -> Result<T, Refusal> {
        let Some(stream) = &self.0 else { return set_up.await };
        let mut set_up = std::pin::pin!(set_up);
        // No branch loses anything: the set-up goes on below, the others keep nothing.
        let cause = tokio::select! {
            biased;
            done = &mut set_up => return done,
            _ = stream.ready(Interest::ERROR) => "the caller reset the connection while it was being set up",
            () = closed(stream, has_closed) => "the caller closed the connection while it was being set up",
        };
        let unread = rustix::io::ioctl_fionread(stream).unwrap_or(0);
        if unread > 0
            && let Ok(done) = tokio::time::timeout(LAST_BYTES, set_up).await
        {
            return done;
        }
        Err(Refusal::of(Reason::Reset, cause))
    }
}

/// Ready when the caller has closed its socket.
async fn closed<A: Future<Output = bool>>(stream: &TcpStream, has_closed: impl Fn(SocketAddr, SocketAddr) -> A) {
    loop {
        tokio::time::sleep(LOOK).await;
        if has_ended(stream)
            && let (Ok(near), Ok(far)) = (stream.local_addr(), stream.peer_addr())
            && has_closed(near, far).await
        {
            return;
        }
    }
}

/// Whether the peer has ended its direction, with or without unread bytes before that.
fn has_ended(stream: &TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let mut asked = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut asked, Some(&now)).is_ok() && asked[0].revents().contains(PollFlags::RDHUP)
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            super::end::reset(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_net::diag::Diag;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn caller() -> (TcpStream, Caller) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
        (far.expect("connect"), Caller::new(near.expect("accept").0))
    }

    /// What a pod's kernel says, of this test's own namespace.
    fn kernel(near: SocketAddr, far: SocketAddr) -> std::future::Ready<bool> {
        std::future::ready(Diag::open().expect("sock_diag").is_orphan(far, near).expect("asked"))
    }

    async fn never() -> Result<(), Refusal> {
        std::future::pending().await
    }

    fn reset(stream: TcpStream) {
        mesh_net::socket::reset_on_close(&stream).expect("linger");
    }

    #[tokio::test]
    async fn a_caller_that_resets_ends_the_set_up_at_once() {
        for sends in [false, true] {
            let (mut far, near) = caller().await;
            if sends {
                far.write_all(b"request").await.expect("write");
            }
            reset(far);
            let ended = tokio::time::timeout(
                Duration::from_secs(1),
                near.while_there(never(), |_, _| std::future::ready(false)),
            )
            .await;
            assert_eq!(ended.expect("within a second").map_err(|refusal| refusal.reason), Err(Reason::Reset));
        }
    }

    #[tokio::test]
    async fn what_a_caller_sent_before_it_reset_is_still_set_up_for() {
        let (mut far, near) = caller().await;
        far.write_all(b"last words").await.expect("write");
        reset(far);
        near.0.as_ref().expect("there").ready(Interest::ERROR).await.expect("reset");
        let reached = async {
            tokio::time::sleep(LAST_BYTES / 10).await;
            Ok(())
        };
        assert_eq!(near.while_there(reached, |_, _| std::future::ready(false)).await, Ok(()));
    }

    #[tokio::test]
    async fn a_caller_that_is_dropped_sees_a_reset() {
        use tokio::io::AsyncReadExt as _;
        let (mut far, near) = caller().await;
        drop(near);
        assert_eq!(far.read(&mut [0]).await.expect_err("no end").kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_caller_that_only_half_closes_waits_for_its_answer() {
        let (mut far, near) = caller().await;
        far.write_all(b"request").await.expect("write");
        far.shutdown().await.expect("shutdown");
        let waited = tokio::time::timeout(Duration::from_millis(700), near.while_there(never(), kernel)).await;
        assert!(waited.is_err(), "given up: {waited:?}");
    }

    #[tokio::test]
    async fn a_caller_that_closes_its_socket_ends_the_set_up_within_a_second() {
        for sends in [false, true] {
            let (mut far, near) = caller().await;
            if sends {
                far.write_all(b"request").await.expect("write");
            }
            drop(far);
            let ended = tokio::time::timeout(Duration::from_secs(1), near.while_there(never(), kernel)).await;
            assert_eq!(ended.expect("within a second").map_err(|refusal| refusal.reason), Err(Reason::Reset));
        }
    }
}

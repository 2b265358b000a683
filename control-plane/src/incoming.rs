//! Accepts connections and does their TLS, bounded in number and time, and hands those that are through to the gRPC server.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use mesh_daemon::{drain, tasks};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::metrics::Metrics;
use crate::metrics::labels::Handshake;

/// Handshakes at a time: two per core are busy, the others wait for their peers. A stampede of nodes waits in the backlog.
const HANDSHAKES: usize = 64;
/// A handshake is two round trips.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that is through its handshake.
pub struct Secured {
    stream: TlsStream<TcpStream>,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
}

/// What rustls is configured with now: the certificate is renewed while we run.
pub type Config = watch::Receiver<Arc<tokio_rustls::rustls::ServerConfig>>;

/// Accepts until the drain is asked for.
pub fn accept(
    listener: TcpListener,
    config: Config,
    metrics: Metrics,
    tasks: &tasks::Group,
    drain: drain::Watch,
) -> impl Stream<Item = io::Result<Secured>> + Send + 'static {
    // A handshake holds its permit until its connection is taken over, so this never fills.
    let (done, secured) = mpsc::channel(HANDSHAKES);
    let handle = tasks.handle();
    tasks.spawn("accept", async move {
        let permits = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            // Permit first, then accept: what cannot be served yet stays in the backlog.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                biased;
                () = drain.asked() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    // Out of descriptors, mostly: they come back with time, not with haste.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let acceptor = TlsAcceptor::from(config.borrow().clone());
            let (done, metrics) = (done.clone(), metrics.clone());
            handle.spawn("handshake", async move {
                let _permit = permit;
                match tokio::time::timeout(PATIENCE, handshake(acceptor, stream)).await {
                    Ok(Ok(secured)) => {
                        metrics.handshake(Handshake::Done);
                        let _ = done.send(Ok(secured)).await;
                    }
                    Ok(Err(error)) => {
                        metrics.handshake(Handshake::Failed);
                        tracing::debug!(%peer, %error, "handshake");
                    }
                    Err(_) => {
                        metrics.handshake(Handshake::TimedOut);
                        tracing::debug!(%peer, "handshake took too long");
                    }
                }
            });
        }
    });
    futures_util::stream::unfold(secured, |mut secured| async { secured.recv().await.map(|one| (one, secured)) })
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<Secured> {
    stream.set_nodelay(true)?;
    let (peer, local) = (stream.peer_addr().ok(), stream.local_addr().ok());
    Ok(Secured { stream: acceptor.accept(stream).await?, peer, local })
}

impl Connected for Secured {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.local, remote_addr: self.peer }
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! A peer with a certificate of the mesh that is not ours: it asks and answers what our own proxies never would.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use h2::{client, server};
use http::{Method, Request, Response, StatusCode};
use lab::{Lab, PodHandle};
use mesh_model::{Identity, TrustDomain, TrustDomains};
use mesh_tls::WorkloadCert;
use mesh_tls::authority::Authority;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::CHANGE;

/// Until when a certificate of the peer's is good.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Age {
    Good,
    /// Since an hour.
    Expired,
}

/// Its identity, proven by the mesh's own authority, whose key lies in the lab.
pub(crate) struct OddPeer {
    cert: WorkloadCert,
    domains: TrustDomains,
}

impl OddPeer {
    pub(crate) fn new(lab: &Lab, namespace: &str, account: &str, age: Age) -> Result<OddPeer> {
        let own = TrustDomain::parse("cluster.local")?;
        let identity = Identity::new(own.clone(), namespace, account)?;
        let authority = Authority::load(&lab.dir().path().join("control-plane"))?;
        let (key, csr) = mesh_tls::csr(&identity)?;
        let (minute, now) = (Duration::from_secs(60), SystemTime::now());
        let from = if matches!(age, Age::Good) { now } else { now - 61 * minute };
        let chain = authority.sign(&csr, &identity, minute, from)?;
        Ok(OddPeer {
            cert: WorkloadCert::assemble(key, chain, &identity)?,
            domains: TrustDomains::new(own, Vec::new()),
        })
    }

    /// Sends one request to a proxy that has the identity of this account. The status of the answer; an error if there is none.
    pub(crate) fn ask(
        &self,
        from: &PodHandle,
        (to, account): (SocketAddr, &str),
        method: Method,
        uri: &str,
    ) -> Result<StatusCode> {
        let stream = from.in_netns(|| Ok(TcpStream::connect_timeout(&to, CHANGE)?))?;
        stream.set_nonblocking(true)?;
        let accepted = [Identity::new(self.domains.own().clone(), "shop", account)?];
        let config = mesh_tls::client_config(&self.cert, &self.domains, &accepted);
        let request = Request::builder().method(method).uri(uri).body(())?;
        runtime()?.block_on(async {
            let asked = async {
                let stream = tokio::net::TcpStream::from_std(stream)?;
                let tls = TlsConnector::from(config).connect(to.ip().into(), stream).await.context("TLS")?;
                let (send, connection) = client::handshake(tls).await.context("HTTP/2")?;
                let asking = async {
                    let (answer, _) = send.ready().await?.send_request(request, true)?;
                    Ok(answer.await?.status())
                };
                // With the answer every handle is gone, so the connection ends as a peer's should: with a GOAWAY.
                let (status, ()) = tokio::try_join!(asking, connection)?;
                anyhow::Ok(status)
            };
            timeout(CHANGE, asked).await.with_context(|| format!("{to} does not answer"))?
        })
    }

    /// Listens in a pod, takes a tunnel from each of so many peers and refuses the first request of each with 503 and no reason.
    /// Returns once it listens; the thread ends with the last of them.
    pub(crate) fn refuses(
        &self,
        at: &PodHandle,
        port: u16,
        tunnels: usize,
    ) -> Result<std::thread::JoinHandle<Result<()>>> {
        let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
        let listener = at.in_netns(|| TcpListener::bind(any).with_context(|| format!("listen at {any}")))?;
        listener.set_nonblocking(true)?;
        let acceptor = TlsAcceptor::from(mesh_tls::server_config(&self.cert, &self.domains));
        Ok(std::thread::spawn(move || {
            runtime()?.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                for _ in 0..tunnels {
                    let (stream, _) = timeout(CHANGE, listener.accept()).await.context("nobody came")??;
                    timeout(CHANGE, refuse_one(&acceptor, stream)).await.context("a tunnel that does not end")??;
                }
                Ok(())
            })
        }))
    }
}

async fn refuse_one(acceptor: &TlsAcceptor, stream: tokio::net::TcpStream) -> Result<()> {
    let mut connection = server::handshake(acceptor.accept(stream).await?).await?;
    let (request, mut respond) = connection.accept().await.context("no request")??;
    ensure!(request.method() == Method::CONNECT, "{request:?}");
    respond.send_response(Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(())?, true)?;
    drop((request, respond));
    connection.graceful_shutdown();
    // To its end, however the other side ends it.
    while let Some(Ok(_)) = connection.accept().await {}
    Ok(())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

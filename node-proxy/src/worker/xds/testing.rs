//! A control plane that does what the test says: delta ADS by script, certificates by a real authority, both over real TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use mesh_api::xds::IMPERSONATED_IDENTITY;
use mesh_api::xds::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use mesh_api::xds::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_api::xds::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use mesh_api::xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_daemon::tasks;
use mesh_model::Identity;
use mesh_tls::authority::Authority;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use super::ControlPlane;

pub(crate) const WAIT: Duration = Duration::from_secs(20);
pub(crate) const TOKEN: &str = "token-of-node-1";

/// One stream of one client, seen from the control plane.
pub(crate) struct Session {
    pub(crate) requests: tonic::Streaming<DeltaDiscoveryRequest>,
    pub(crate) answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    pub(crate) token: String,
    pub(crate) cluster: String,
}

impl Session {
    pub(crate) async fn request(&mut self) -> DeltaDiscoveryRequest {
        let next = tokio::time::timeout(WAIT, self.requests.message()).await.expect("in time");
        next.expect("the stream is whole").expect("the client is there")
    }

    pub(crate) async fn answer(&self, answer: DeltaDiscoveryResponse) {
        self.answers.send(Ok(answer)).await.expect("the client is there");
    }
}

struct Ads(mpsc::Sender<Session>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send + 'static>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<tonic::Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let header = |name: &str| {
            request.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (token, cluster) = (header("authorization"), header("clusterid"));
        let (answers, queue) = mpsc::channel(16);
        let session = Session { requests: request.into_inner(), answers, token, cluster };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        let queue = futures_util::stream::unfold(queue, |mut queue| async { Some((queue.recv().await?, queue)) });
        Ok(Response::new(Box::pin(queue)))
    }
}

/// Signs whatever it is asked for; notes who asked with which token.
#[derive(Clone)]
pub(crate) struct Ca {
    pub(crate) authority: Arc<Authority>,
    pub(crate) asked: Arc<Mutex<Vec<(String, String)>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let token = token.to_owned();
        let message = request.into_inner();
        let fields = message.metadata.unwrap_or_default().fields;
        let wanted = match fields.get(IMPERSONATED_IDENTITY).and_then(|value| value.kind.clone()) {
            Some(prost_types::value::Kind::StringValue(text)) => text,
            _ => return Err(Status::unauthenticated("no identity is asked for")),
        };
        self.asked.lock().expect("test").push((wanted.clone(), token));
        let identity = Identity::parse(&wanted).map_err(|error| Status::unauthenticated(error.to_string()))?;
        let validity = Duration::from_secs(message.validity_duration as u64);
        let cert_chain = self
            .authority
            .sign(&message.csr, &identity, validity, SystemTime::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// The control plane of one test.
pub(crate) struct Fake {
    pub(crate) addr: SocketAddr,
    pub(crate) sessions: mpsc::Receiver<Session>,
    group: tasks::Group,
}

impl Fake {
    pub(crate) async fn new(authority: &Authority, listen: &str) -> Self {
        let (sender, sessions) = mpsc::channel(4);
        let group = tasks::Group::new("fake-ads");
        let (addr, incoming) = listener(authority, listen).await;
        let server = tonic::transport::Server::builder()
            .serve_with_incoming(AggregatedDiscoveryServiceServer::new(Ads(sender)), incoming);
        group.spawn("ads", async move { drop(server.await) });
        Self { addr, sessions, group }
    }

    pub(crate) async fn session(&mut self) -> Session {
        tokio::time::timeout(WAIT, self.sessions.recv()).await.expect("in time").expect("a client")
    }

    /// Ends the process, as it were: its connections break, its address is free.
    pub(crate) async fn kill(self) {
        drop(self.sessions);
        self.group.finish(Duration::ZERO).await;
    }
}

/// A certificate service; it lives as long as the group.
pub(crate) async fn ca(authority: &Arc<Authority>, group: &tasks::Group) -> (SocketAddr, Ca) {
    let ca = Ca { authority: authority.clone(), asked: Arc::default() };
    let (addr, incoming) = listener(authority, "127.0.0.1:0").await;
    let server = tonic::transport::Server::builder()
        .serve_with_incoming(IstioCertificateServiceServer::new(ca.clone()), incoming);
    group.spawn("ca", async move { drop(server.await) });
    (addr, ca)
}

/// How a client reaches it, with the files that it needs in `dir`.
pub(crate) fn reach(authority: &Authority, addr: SocketAddr, dir: &Path) -> ControlPlane {
    std::fs::write(dir.join("root-cert.pem"), authority.root_pem()).expect("write");
    std::fs::write(dir.join("token"), format!("{TOKEN}\n")).expect("write");
    let (root, token) = (dir.join("root-cert.pem"), dir.join("token"));
    ControlPlane::new(&format!("https://{addr}"), root, Some("control-plane.test"), token, "Kubernetes").expect("valid")
}

async fn listener(
    authority: &Authority,
    listen: &str,
) -> (SocketAddr, impl Stream<Item = std::io::Result<Secured>> + use<>) {
    let cert = authority.server_cert(&["control-plane.test".to_owned()]).expect("certificate");
    let acceptor = TlsAcceptor::from(mesh_tls::endpoint_server_config(&cert).expect("configuration"));
    let listener = TcpListener::bind(listen).await.expect("bind");
    let addr = listener.local_addr().expect("address");
    let incoming = futures_util::stream::unfold((listener, acceptor), |(listener, acceptor)| async {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { return None };
            if let Ok(tls) = acceptor.accept(tcp).await {
                return Some((Ok(Secured(tls)), (listener, acceptor)));
            }
        }
    });
    (addr, incoming)
}

/// A connection that is through its handshake.
pub(crate) struct Secured(TlsStream<TcpStream>);

impl Connected for Secured {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

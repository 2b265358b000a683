//! A small mesh in one process, for the tests: an authority, credentials, a server whose handler is a closure.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use mesh_daemon::{drain, tasks};
use mesh_model::{Identity, TrustDomain, TrustDomains};
use mesh_tls::WorkloadCert;
use mesh_tls::authority::Authority;
use tokio::net::{TcpListener, TcpStream};

use super::server::{Handler, Incoming, ServeError, Served, serve};
use super::stream::Stream;
use super::{ConnectRequest, DialError, OpenError, Pool, TunnelKey};
use crate::worker::args::CONNECT_TIMEOUT;
use crate::worker::certs::Credentials;
use crate::worker::metrics::Metrics;

pub(crate) const WAIT: Duration = Duration::from_secs(20);

pub(crate) fn domains() -> TrustDomains {
    TrustDomains::new(TrustDomain::parse("cluster.local").expect("valid"), Vec::new())
}

pub(crate) fn identity(name: &str) -> Identity {
    Identity::parse(&format!("spiffe://cluster.local/ns/test/sa/{name}")).expect("valid")
}

pub(crate) fn credentials(authority: &Authority, name: &str) -> Arc<Credentials> {
    credentials_for(authority, name, Duration::from_secs(3600))
}

/// With a certificate that runs out after this time.
pub(crate) fn credentials_for(authority: &Authority, name: &str, validity: Duration) -> Arc<Credentials> {
    let identity = identity(name);
    let (key, csr) = mesh_tls::csr(&identity).expect("request");
    let chain = authority.sign(&csr, &identity, validity, SystemTime::now()).expect("signed");
    let cert = WorkloadCert::assemble(key, chain, &identity).expect("certificate");
    Arc::new(Credentials::new(cert, &domains()))
}

/// A handler made of a closure.
pub(crate) struct With<F>(pub(crate) F);

impl<F, T> Handler for With<F>
where
    F: Fn(Incoming) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    fn connect(&self, request: Incoming) -> BoxFuture<'static, ()> {
        Box::pin(self.0(request))
    }
}

/// A listener that serves every connection until its group is dropped.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) drain: Option<drain::Trigger>,
    pub(crate) ended: Arc<Mutex<Vec<Result<Served, ServeError>>>>,
    pub(crate) group: tasks::Group,
}

pub(crate) async fn server(listen: &str, credentials: Arc<Credentials>, handler: impl Handler) -> Server {
    let listener = TcpListener::bind(listen).await.expect("bind");
    let addr = listener.local_addr().expect("address");
    let (trigger, watch) = drain::pair();
    let group = tasks::Group::new("test-server");
    let (handle, ended) = (group.handle(), Arc::new(Mutex::new(Vec::new())));
    let (handler, results): (Arc<dyn Handler>, _) = (Arc::new(handler), ended.clone());
    group.spawn("accept", async move {
        while let Ok((tcp, peer)) = listener.accept().await {
            let served = serve(tcp, peer, credentials.clone(), handler.clone(), watch.clone());
            let results = results.clone();
            handle.spawn("serve", async move {
                let result = served.await;
                results.lock().expect("test").push(result);
            });
        }
    });
    Server { addr, drain: Some(trigger), ended, group }
}

/// A client pod.
pub(crate) struct Client {
    pub(crate) pool: Pool,
    pub(crate) group: tasks::Group,
    pub(crate) credentials: Arc<Credentials>,
}

impl Client {
    pub(crate) fn new(credentials: Arc<Credentials>) -> Self {
        let group = tasks::Group::new("test-client");
        Self { pool: Pool::new(group.handle(), Arc::new(Metrics::for_test()), CONNECT_TIMEOUT), group, credentials }
    }

    pub(crate) fn key(&self, to: SocketAddr, accepted: &str) -> TunnelKey {
        TunnelKey {
            slot: 1,
            source: self.credentials.identity.clone(),
            destination: to,
            accepted: vec![identity(accepted)],
        }
    }

    pub(crate) async fn open(&self, to: SocketAddr, accepted: &str) -> Result<Stream, OpenError> {
        self.pool.open(self.key(to, accepted), request(to), self.credentials.clone(), dial(to)).await
    }
}

pub(crate) async fn dial(to: SocketAddr) -> Result<TcpStream, DialError> {
    TcpStream::connect(to)
        .await
        .map_err(|error| DialError::new(mesh_model::Reason::ConnectFailed, format!("connect {to}: {error}")))
}

pub(crate) fn request(to: SocketAddr) -> ConnectRequest {
    ConnectRequest {
        authority: SocketAddr::new(to.ip(), 80),
        traceparent: "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00".into(),
        forwarded_for: "198.18.1.2:4000".parse().expect("address"),
        service_host: Some("cart.test.svc.cluster.local".into()),
        baggage: "k8s.namespace.name=test".into(),
    }
}

/// Waits for a fact.
pub(crate) async fn eventually(what: &str, fact: impl Fn() -> bool) {
    let until = tokio::time::timeout(WAIT, async {
        while !fact() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(until.await.is_ok(), "{what}");
}

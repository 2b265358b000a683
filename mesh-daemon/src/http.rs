//! The metrics and readiness endpoint: `GET /metrics` (Prometheus text format 0.0.4) and `GET /healthz/ready` (200, or 503 with the
//! names of what is missing). Nothing else: admin is only on a unix socket.
//!
//! Any pod may reach it, so all it takes is bounded: connections, scrapes in memory, request headers, the answer's size, and time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::drain;
use crate::process;
use crate::ready::Readiness;
use crate::tasks::Group;

/// Connections served at once; a scraper and a kubelet need two, the rest is for people.
const CONNECTIONS: usize = 32;
/// Scrapes made or sent at once; each holds its whole text until it is sent. More wait, and are closed when [`PATIENCE`] ends.
const SCRAPES: usize = 4;
/// Largest answer: a node of 250 pods has some megabytes. Beyond it an error is better than a node's memory.
const LARGEST: usize = 64 * 1024 * 1024;
/// Request line and headers of a scraper are under 1 KiB; hyper's least is 8 KiB.
const HEAD: usize = 16 * 1024;
/// A connection that has not finished a request in this time is closed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A hook that refreshes gauges just before they are read.
pub type Refresh = Arc<dyn Fn() + Send + Sync>;

/// What is served.
#[derive(Clone, Default)]
pub struct Routes {
    metrics: Option<Registry>,
    refresh: Option<Refresh>,
    ready: Option<Readiness>,
}

impl Routes {
    /// Nothing yet: every path is 404.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves the registry under `/metrics`, with the standard metrics of a process added to it ([`process::register`]).
    pub fn metrics(mut self, registry: Registry) -> Self {
        if let Err(error) = process::register(&registry) {
            tracing::error!(%error, "metrics of the process itself cannot be offered");
        }
        self.metrics = Some(registry);
        self
    }

    /// Runs before each scrape: merges per-thread counters, reads what is costly to keep.
    pub fn refresh(mut self, refresh: Refresh) -> Self {
        self.refresh = Some(refresh);
        self
    }

    /// Serves readiness under `/healthz/ready`.
    pub fn ready(mut self, readiness: Readiness) -> Self {
        self.ready = Some(readiness);
        self
    }

    /// HEAD is answered as GET is; hyper leaves its body out (RFC 9110, 9.3.2).
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let body: fn(&Self) -> Response<Full<Bytes>> = match path {
            "/metrics" if self.metrics.is_some() => Self::scrape,
            "/healthz/ready" | "/healthz" => Self::readiness,
            _ => return text(StatusCode::NOT_FOUND, "paths: /metrics /healthz/ready\n".to_owned()),
        };
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        body(self)
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        match self.ready.as_ref().map(Readiness::missing) {
            Some(missing) if !missing.is_empty() => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: waiting for {}\n", missing.join(", ")))
            }
            _ => text(StatusCode::OK, "ready\n".to_owned()),
        }
    }

    fn scrape(&self) -> Response<Full<Bytes>> {
        if let Some(refresh) = &self.refresh {
            refresh();
        }
        let gathered = self.metrics.as_ref().map(Registry::gather).unwrap_or_default();
        let mut body = Vec::new();
        match TextEncoder::new().encode(&gathered, &mut body) {
            Ok(()) if body.len() > LARGEST => {
                tracing::error!(bytes = body.len(), "metrics are larger than what is ever sent");
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics are larger than {LARGEST} bytes\n"))
            }
            Ok(()) => {
                let mut response = Response::new(Full::from(body));
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be encoded: {error}\n")),
        }
    }
}

/// Serves until the drain is asked for. Connections beyond the limit wait in the listen backlog.
pub async fn serve(listener: TcpListener, routes: Routes, stop: drain::Watch) {
    let routes = Arc::new(routes);
    let (permits, scrapes) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(SCRAPES)));
    let connections = Group::new("http");
    loop {
        // Permit first, then accept. Both branches may be dropped half-way: accept is cancel-safe.
        let Ok(permit) = permits.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            biased;
            () = stop.asked() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (routes, scrapes) = (routes.clone(), scrapes.clone());
                connections.spawn("connection", async move {
                    let _permit = permit;
                    let _ = tokio::time::timeout(PATIENCE, one(stream, routes, scrapes)).await;
                });
            }
            Err(error) => {
                // EMFILE and friends: give the process time to free descriptors instead of spinning.
                tracing::warn!(%error, "accept on the metrics endpoint");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.finish(Duration::from_secs(1)).await;
}

async fn one(stream: TcpStream, routes: Arc<Routes>, scrapes: Arc<Semaphore>) {
    // Held until the answer is sent: a connection serves one request.
    let held: Arc<Mutex<Option<OwnedSemaphorePermit>>> = Arc::default();
    let slot = held.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (routes, scrapes, slot) = (routes.clone(), scrapes.clone(), slot.clone());
        async move {
            if request.uri().path() == "/metrics" {
                *slot.lock().await = scrapes.acquire_owned().await.ok();
            }
            Ok::<_, Infallible>(routes.answer(request.method(), request.uri().path()))
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection to the metrics endpoint");
    }
    drop(held);
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_missing() {
        let readiness = Readiness::new();
        let routes = Routes::new().ready(readiness.clone());
        let latch = readiness.latch("configuration");
        assert_eq!(routes.answer(&Method::GET, "/healthz/ready").status(), StatusCode::SERVICE_UNAVAILABLE);
        latch.release();
        assert_eq!(routes.answer(&Method::GET, "/healthz/ready").status(), StatusCode::OK);
    }

    #[test]
    fn only_get_and_head_on_known_paths() {
        let routes = Routes::new().metrics(Registry::new());
        let scraped = routes.answer(&Method::GET, "/metrics");
        assert_eq!(scraped.status(), StatusCode::OK);
        assert_eq!(scraped.headers()[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
        assert_eq!(routes.answer(&Method::HEAD, "/metrics").status(), StatusCode::OK);
        let refused = routes.answer(&Method::POST, "/metrics");
        assert_eq!(
            (refused.status(), &refused.headers()[ALLOW]),
            (StatusCode::METHOD_NOT_ALLOWED, &"GET, HEAD".parse().expect("a value"))
        );
        for method in [Method::GET, Method::HEAD, Method::POST] {
            assert_eq!(routes.answer(&method, "/debug").status(), StatusCode::NOT_FOUND);
        }
        assert_eq!(Routes::new().answer(&Method::GET, "/metrics").status(), StatusCode::NOT_FOUND);
    }

    async fn ask(to: std::net::SocketAddr, bytes: &[u8]) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = TcpStream::connect(to).await.expect("connect");
        // A server that has seen enough closes while we still write.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("an end");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn head_has_the_length_and_no_body_and_a_head_without_end_is_cut_off() {
        let listener = TcpListener::bind("[::1]:0").await.expect("bind");
        let to = listener.local_addr().expect("address");
        let (trigger, stop) = drain::pair();
        let server = tokio::spawn(serve(listener, Routes::new().metrics(Registry::new()), stop));
        let full = ask(to, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(full.contains("culvert_build_info{version="), "{full}");
        let head = ask(to, b"HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: "), "{head}");
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        let endless = [b"GET /metrics HTTP/1.1\r\nx: ".as_slice(), &vec![b'a'; 4 * HEAD]].concat();
        let refused = ask(to, &endless).await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 431"), "{refused}");
        trigger.ask();
        server.await.expect("server ends");
    }

    #[tokio::test]
    async fn scrapers_that_do_not_read_keep_no_more_than_the_bound_in_memory_and_readiness_is_still_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let to = listener.local_addr().expect("address");
        let (trigger, stop) = drain::pair();
        let made = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let registry = Registry::new();
        // More than socket buffers take (tcp_rmem and tcp_wmem: 6 and 4 MiB at most by default).
        let big =
            prometheus::IntGaugeVec::new(prometheus::Opts::new("big", "b".repeat(24 << 20)), &["x"]).expect("a name");
        big.with_label_values(&["x"]).set(1);
        registry.register(Box::new(big)).expect("once");
        let counted = made.clone();
        let refresh: Refresh = Arc::new(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let routes = Routes::new().metrics(registry).refresh(refresh);
        let server = tokio::spawn(serve(listener, routes, stop));
        let mut stuck = Vec::new();
        for _ in 0..3 * SCRAPES {
            use tokio::io::AsyncWriteExt as _;
            let mut stream = TcpStream::connect(to).await.expect("connect");
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("ask");
            stuck.push(stream);
        }
        // Each of these comes after all of the above have been taken up.
        for _ in 0..3 {
            let ready = ask(to, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        }
        assert_eq!(made.load(std::sync::atomic::Ordering::Relaxed), SCRAPES);
        drop(stuck);
        trigger.ask();
        server.await.expect("server ends");
    }
}

//! The metrics and readiness endpoint: `GET /metrics` (Prometheus text format 0.0.4) and `GET /healthz/ready` (200, or 503 with the
//! names of what is missing). Nothing else: admin is only on a unix socket.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::drain;
use crate::ready::Readiness;
use crate::tasks::Group;

/// Connections served at once; a scraper and a kubelet need two, the rest is for people.
const CONNECTIONS: usize = 32;
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

    /// Serves the registry under `/metrics`.
    pub fn metrics(mut self, registry: Registry) -> Self {
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

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        match (method, path) {
            (&Method::GET, "/metrics") => match &self.metrics {
                Some(registry) => self.scrape(registry),
                None => text(StatusCode::NOT_FOUND, "no metrics here\n".to_owned()),
            },
            (&Method::GET, "/healthz/ready" | "/healthz") => match &self.ready {
                None => text(StatusCode::OK, "ready\n".to_owned()),
                Some(readiness) => match readiness.missing() {
                    missing if missing.is_empty() => text(StatusCode::OK, "ready\n".to_owned()),
                    missing => text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        format!("not ready: waiting for {}\n", missing.join(", ")),
                    ),
                },
            },
            (&Method::GET, _) => text(StatusCode::NOT_FOUND, "paths: /metrics /healthz/ready\n".to_owned()),
            _ => text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        }
    }

    fn scrape(&self, registry: &Registry) -> Response<Full<Bytes>> {
        if let Some(refresh) = &self.refresh {
            refresh();
        }
        let encoder = TextEncoder::new();
        let mut body = Vec::new();
        match encoder.encode(&registry.gather(), &mut body) {
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
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
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
                let routes = routes.clone();
                connections.spawn("connection", async move {
                    let _permit = permit;
                    let _ = tokio::time::timeout(PATIENCE, one(stream, routes)).await;
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

async fn one(stream: TcpStream, routes: Arc<Routes>) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let response = routes.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection to the metrics endpoint");
    }
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
    fn only_get_on_known_paths() {
        let routes = Routes::new().metrics(Registry::new());
        assert_eq!(routes.answer(&Method::GET, "/metrics").status(), StatusCode::OK);
        assert_eq!(routes.answer(&Method::POST, "/metrics").status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(routes.answer(&Method::GET, "/debug").status(), StatusCode::NOT_FOUND);
    }
}

//! The two gRPC services behind one port, told apart by the path. (tonic's own router would bring a web framework along.)

use std::convert::Infallible;
use std::task::{Context, Poll};

use mesh_api::xds::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use mesh_api::xds::discovery::aggregated_discovery_service_server as discovery;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

use crate::ads::Ads;
use crate::ca::Ca;

/// Configuration and certificates.
#[derive(Clone)]
pub struct Services {
    /// Delta ADS.
    pub ads: Ads,
    /// The certificate service.
    pub ca: IstioCertificateServiceServer<Ca>,
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    // Both are always ready: neither has a queue in front of it.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // gRPC over HTTP/2: the path is "/" service "/" method.
        match request.uri().path().split('/').nth(1) {
            Some(discovery::SERVICE_NAME) => {
                let ads = self.ads.clone();
                Box::pin(async { Ok(ads.call(request).await) })
            }
            Some(IstioCertificateServiceServer::<Ca>::NAME) => self.ca.call(request),
            _ => Box::pin(async { Ok(Status::unimplemented("no such service").into_http()) }),
        }
    }
}

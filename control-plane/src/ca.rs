//! The certificate service: signs for a node's proxy, in the name of pods that are bound to that node and of no others.
//!
//! Outside, every refusal of the caller looks the same (`Unauthenticated`); what it was is in the log and, as a cause, counted.
//! Requests are bounded per node, so that one node cannot keep the others from their certificates.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use mesh_api::xds::IMPERSONATED_IDENTITY;
use mesh_api::xds::ca::istio_certificate_service_server::IstioCertificateService;
use mesh_api::xds::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_model::{BadIdentity, Identity, TrustDomain};
use mesh_tls::authority::{Authority, AuthorityError};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::metrics::Metrics;
use crate::metrics::labels::Cause;
use crate::snapshot::Snapshot;
use crate::tokens::{Stranger, Tokens};

/// All pods of a full node at once (110 by default, 250 at most in practice), twice over.
const BURST: f64 = 500.0;
/// Afterwards: a node asks about once a pod and 12 hours. Guessed, with room for pods that come and go.
const PER_SECOND: f64 = 50.0;

/// The service.
pub struct Ca {
    /// Signs.
    pub authority: Arc<Authority>,
    /// Who may ask.
    pub tokens: Tokens,
    /// Which pods are where.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// In which identities are issued.
    pub trust_domain: TrustDomain,
    /// No certificate lives longer.
    pub longest: Duration,
    /// Counts.
    pub metrics: Metrics,
    /// Per node.
    pub budgets: Budgets,
}

/// Why a certificate is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Stranger(#[from] Stranger),
    #[error("the node asks too often")]
    TooOften,
    #[error("the manifests have not been read yet")]
    NotReady,
    #[error("no identity is asked for (metadata {IMPERSONATED_IDENTITY})")]
    NoIdentity,
    #[error(transparent)]
    BadIdentity(#[from] BadIdentity),
    #[error("{0} is of a trust domain that is not issued here")]
    TrustDomain(Identity),
    #[error("no mesh pod with the identity {0} is bound to the node")]
    NotOnNode(Identity),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Refused {
    fn cause(&self) -> Cause {
        match self {
            Self::Stranger(stranger) => stranger.cause(),
            Self::TooOften => Cause::TooOften,
            Self::NotReady => Cause::NotReady,
            Self::NoIdentity => Cause::NoIdentity,
            Self::BadIdentity(_) => Cause::BadIdentity,
            Self::TrustDomain(_) => Cause::TrustDomain,
            Self::NotOnNode(_) => Cause::NotOnNode,
            Self::Authority(AuthorityError::Request(_)) => Cause::BadRequest,
            Self::Authority(AuthorityError::RootExpired) => Cause::RootExpired,
            Self::Authority(_) => Cause::Signing,
        }
    }

    /// What the caller is told. Whoever is not entitled learns nothing, not even whether the identity exists.
    fn status(&self) -> Status {
        match self {
            Self::Stranger(stranger) => stranger.status(),
            Self::TooOften => Status::resource_exhausted("too many certificate requests from this node"),
            Self::NotReady => Status::unavailable("not ready"),
            Self::Authority(AuthorityError::Request(what)) => {
                Status::invalid_argument(format!("certificate signing request {what}"))
            }
            Self::Authority(_) => Status::internal("signing failed"),
            _ => Status::unauthenticated("not authorized"),
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.remote_addr();
        let caller = match self.tokens.shown(request.metadata()) {
            Ok(token) => self.tokens.authenticate(token).await,
            Err(stranger) => Err(stranger),
        };
        let node = caller.as_ref().map(|caller| caller.node.clone()).unwrap_or_default();
        let timer = self.metrics.sign_seconds.start_timer();
        let signed = caller.map_err(Refused::from).and_then(|_| self.sign(&node, request.get_ref()));
        timer.observe_duration();
        match signed {
            Ok((identity, cert_chain)) => {
                self.metrics.issued.inc();
                tracing::info!(node, %identity, "certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(refused) => {
                self.metrics.refused(refused.cause());
                let reason = refused.cause().reason();
                tracing::warn!(node, ?peer, %reason, cause = %refused, "certificate refused");
                Err(refused.status())
            }
        }
    }
}

impl Ca {
    fn sign(&self, node: &str, request: &IstioCertificateRequest) -> Result<(Identity, Vec<String>), Refused> {
        let IstioCertificateRequest { csr, validity_duration, metadata } = request;
        if !self.budgets.take(node) {
            return Err(Refused::TooOften);
        }
        let snapshot = self.snapshots.borrow().clone();
        if snapshot.generation == 0 {
            return Err(Refused::NotReady);
        }
        let asked = metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED_IDENTITY));
        let Some(prost_types::value::Kind::StringValue(uri)) = asked.and_then(|value| value.kind.as_ref()) else {
            return Err(Refused::NoIdentity);
        };
        let identity = Identity::parse(uri)?;
        if *identity.trust_domain() != self.trust_domain {
            return Err(Refused::TrustDomain(identity));
        }
        if !snapshot.may_have(node, &identity, Timestamp::now()) {
            return Err(Refused::NotOnNode(identity));
        }
        // Nothing or nonsense asked for: the longest.
        let validity = match u64::try_from(*validity_duration) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds).min(self.longest),
            _ => self.longest,
        };
        let chain = self.authority.sign(csr, &identity, validity, SystemTime::now())?;
        Ok((identity, chain))
    }
}

/// How many requests each node has left. Nodes are those with a token, so the map is bounded by the token file; a node that has
/// been quiet long enough to be full again is forgotten.
#[derive(Debug, Default)]
pub struct Budgets(Mutex<HashMap<String, (f64, Instant)>>);

impl Budgets {
    fn take(&self, node: &str) -> bool {
        let now = Instant::now();
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() > 1024 {
            nodes.retain(|_, (left, since)| *left + now.duration_since(*since).as_secs_f64() * PER_SECOND < BURST);
        }
        let (left, since) = nodes.entry(node.to_owned()).or_insert((BURST, now));
        *left = (*left + now.duration_since(*since).as_secs_f64() * PER_SECOND).min(BURST);
        *since = now;
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_node_asking_without_end_is_slowed_and_the_others_are_not() {
        let budgets = Budgets::default();
        let granted = (0..10_000).filter(|_| budgets.take("greedy")).count();
        assert_eq!(granted as f64, BURST);
        assert!(budgets.take("modest"));
        tokio::time::advance(Duration::from_secs(2)).await;
        let granted = (0..10_000).filter(|_| budgets.take("greedy")).count();
        assert_eq!(granted as f64, 2.0 * PER_SECOND);
    }
}

//! One attempt at a certificate: a new key, a request, the answer checked. And the signer behind the control plane's gRPC.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mesh_api::xds::IMPERSONATED_IDENTITY;
use mesh_api::xds::ca::IstioCertificateRequest;
use mesh_api::xds::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_model::Identity;
use mesh_tls::WorkloadCert;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::worker::xds::{ControlPlane, status_text};

/// Time for one attempt.
pub(super) const ATTEMPT_DEADLINE: Duration = Duration::from_secs(10);

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The token cannot be read or sent.
    #[error(transparent)]
    Token(#[from] crate::worker::xds::TokenError),
    /// The control plane answered with an error, or not at all.
    #[error("certificate service: {0}")]
    Refused(String),
    /// No answer within the deadline of an attempt.
    #[error("certificate service: no answer within {} s", ATTEMPT_DEADLINE.as_secs())]
    Silent,
    /// The request could not be made.
    #[error(transparent)]
    Request(#[from] mesh_tls::TlsError),
    /// The answer is not the certificate that was asked for.
    #[error("answer of the certificate service: {0}")]
    Answer(#[from] mesh_tls::CertError),
}

/// Signs requests.
pub trait Signer: Send + Sync + 'static {
    /// The chain for this request, leaf first, roots last.
    fn sign(
        &self,
        identity: &Identity,
        csr_pem: String,
        validity: Duration,
    ) -> BoxFuture<'static, Result<Vec<String>, SignError>>;
}

/// A fresh key and a certificate for it.
pub(super) async fn attempt(
    signer: &dyn Signer,
    identity: &Identity,
    validity: Duration,
) -> Result<WorkloadCert, SignError> {
    let (key, csr_pem) = mesh_tls::csr(identity)?;
    let chain = timeout(ATTEMPT_DEADLINE, signer.sign(identity, csr_pem, validity)).await;
    let chain = chain.map_err(|_| SignError::Silent)??;
    Ok(WorkloadCert::assemble(key, chain, identity)?)
}

/// `istio.v1.auth.IstioCertificateService` of the control plane.
pub(super) struct ControlPlaneSigner {
    control_plane: ControlPlane,
    /// The connection in use; given up after a request that failed or was not answered.
    client: Arc<Mutex<Option<Client>>>,
}

type Client = IstioCertificateServiceClient<Channel>;

impl ControlPlaneSigner {
    pub(super) fn new(control_plane: ControlPlane) -> Self {
        Self { control_plane, client: Arc::default() }
    }
}

impl Signer for ControlPlaneSigner {
    fn sign(
        &self,
        identity: &Identity,
        csr_pem: String,
        validity: Duration,
    ) -> BoxFuture<'static, Result<Vec<String>, SignError>> {
        let metadata = prost_types::Struct {
            fields: [(
                IMPERSONATED_IDENTITY.to_owned(),
                prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(identity.to_string())) },
            )]
            .into(),
        };
        let validity_duration = i64::try_from(validity.as_secs()).unwrap_or(i64::MAX);
        let mut request =
            tonic::Request::new(IstioCertificateRequest { csr: csr_pem, validity_duration, metadata: Some(metadata) });
        let authorized = self.control_plane.authorize(request.metadata_mut());
        let mut client = lock(&self.client)
            .get_or_insert_with(|| IstioCertificateServiceClient::new(self.control_plane.channel()))
            .clone();
        let doubtful = Doubtful { client: self.client.clone(), answered: false };
        Box::pin(async move {
            let mut doubtful = doubtful;
            authorized?;
            let answer =
                client.create_certificate(request).await.map_err(|status| SignError::Refused(status_text(&status)))?;
            doubtful.answered = true;
            Ok(answer.into_inner().cert_chain)
        })
    }
}

/// Gives the connection up unless the request was answered; also when the attempt ran into its deadline and was dropped.
struct Doubtful {
    client: Arc<Mutex<Option<Client>>>,
    answered: bool,
}

impl Drop for Doubtful {
    fn drop(&mut self) {
        if !self.answered {
            lock(&self.client).take();
        }
    }
}

fn lock(client: &Mutex<Option<Client>>) -> MutexGuard<'_, Option<Client>> {
    client.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The certificate service: who gets what.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use mesh_api::xds::IMPERSONATED_IDENTITY;
use mesh_api::xds::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_api::xds::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_model::Identity;
use mesh_tls::WorkloadCert;
use prost_types::value::Kind;
use tonic::{Code, Status};

use super::{Lab, eventually, pod, with_token};
use crate::metrics::labels::Cause;

pub(super) async fn ask(
    lab: &Lab,
    token: Option<&str>,
    csr: &str,
    identity: Option<&str>,
) -> Result<IstioCertificateResponse, Status> {
    let fields = identity.map(|identity| {
        let value = prost_types::Value { kind: Some(Kind::StringValue(identity.to_owned())) };
        BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)])
    });
    let request = IstioCertificateRequest {
        csr: csr.to_owned(),
        validity_duration: 3600,
        metadata: fields.map(|fields| prost_types::Struct { fields }),
    };
    let mut client = IstioCertificateServiceClient::new(lab.channel().await);
    client.create_certificate(with_token(request, token)).await.map(tonic::Response::into_inner)
}

/// cart on node-1, web on node-2, and a pod of account plain on node-1 that is not in the mesh.
async fn lab() -> Lab {
    let plain =
        pod("plain", "node-1", "plain", "x: z").replace("culvert.io/mesh: enabled", "culvert.io/mesh: disabled");
    let manifests =
        [pod("cart", "node-1", "cart", "app: cart"), pod("web", "node-2", "web", "app: web"), plain].concat();
    let lab = Lab::start(&[("all.yaml", &manifests)]).await;
    let readiness = lab.running.readiness.clone();
    eventually("ready", || readiness.is_ready()).await;
    lab
}

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[tokio::test]
async fn a_node_gets_a_certificate_for_its_own_pod() {
    let lab = lab().await;
    let identity = Identity::parse(CART).expect("an identity");
    let (key, csr) = mesh_tls::csr(&identity).expect("a request");
    let answer = ask(&lab, Some("token-1"), &csr, Some(CART)).await.expect("a certificate");
    assert_eq!(answer.cert_chain.len(), 2, "the leaf, then the roots");
    let cert = WorkloadCert::assemble(key, answer.cert_chain, &identity).expect("usable");
    let life = cert.not_after().duration_since(SystemTime::now()).expect("valid");
    assert!(life > Duration::from_secs(3500) && life <= Duration::from_secs(3600), "as asked: {life:?}");
    assert_eq!(lab.running.metrics.issued.get(), 1);
    lab.running.stop().await;
}

#[tokio::test]
async fn every_other_wish_is_refused_alike_outside_and_told_apart_inside() {
    let lab = lab().await;
    let csr = |uri: &str| mesh_tls::csr(&Identity::parse(uri).expect("an identity")).expect("a request").1;
    let unknown = "spiffe://cluster.local/ns/shop/sa/nobody";
    let plain = "spiffe://cluster.local/ns/shop/sa/plain";
    let foreign = "spiffe://other.local/ns/shop/sa/cart";
    let table: &[(&str, Option<&str>, Option<&str>, Cause)] = &[
        ("no token", None, Some(CART), Cause::NoToken),
        ("wrong token", Some("token-3"), Some(CART), Cause::UnknownToken),
        ("no identity: a node has none of its own", Some("token-1"), None, Cause::NoIdentity),
        ("not an identity", Some("token-1"), Some("cart"), Cause::BadIdentity),
        ("a pod of another node", Some("token-1"), Some(WEB), Cause::NotOnNode),
        ("our pod, by the other node", Some("token-2"), Some(CART), Cause::NotOnNode),
        ("nobody's", Some("token-1"), Some(unknown), Cause::NotOnNode),
        ("a pod outside the mesh", Some("token-1"), Some(plain), Cause::NotOnNode),
        ("another trust domain", Some("token-1"), Some(foreign), Cause::TrustDomain),
    ];
    for (what, token, identity, cause) in table {
        let count = lab.running.metrics.refusals(*cause);
        let before = count.get();
        // The request's own names count for nothing.
        let refused = ask(&lab, *token, &csr(CART), *identity).await.expect_err(what);
        assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "not authorized"), "{what}");
        assert_eq!(count.get(), before + 1, "{what}");
    }
    assert_eq!(lab.running.metrics.issued.get(), 0);
    let broken = ask(&lab, Some("token-1"), "junk", Some(CART)).await.expect_err("junk");
    assert_eq!(broken.code(), Code::InvalidArgument);
    let all = lab.told("certificates_refused_total", "");
    assert_eq!((all, lab.running.metrics.refusals(Cause::BadRequest).get()), (table.len() as f64 + 1.0, 1));
    assert_eq!(lab.told("sign_seconds_count", ""), all);
    lab.running.stop().await;
}

#[tokio::test]
async fn what_the_request_names_counts_for_nothing() {
    let lab = lab().await;
    let cart = Identity::parse(CART).expect("an identity");
    let (key, csr) = mesh_tls::csr(&Identity::parse(WEB).expect("an identity")).expect("a request");
    let answer = ask(&lab, Some("token-1"), &csr, Some(CART)).await.expect("a certificate");
    let cert = WorkloadCert::assemble(key, answer.cert_chain, &cart).expect("of cart, not of web");
    assert_eq!(cert.identity(), &cart);
    lab.running.stop().await;
}

#[tokio::test]
async fn a_pod_that_is_gone_or_moved_takes_its_identity_along() {
    let lab = lab().await;
    let (_, csr) = mesh_tls::csr(&Identity::parse(CART).expect("an identity")).expect("a request");
    ask(&lab, Some("token-1"), &csr, Some(CART)).await.expect("its own");
    lab.place("all.yaml", &pod("cart", "node-2", "cart", "app: cart"));
    eventually("the change is compiled", || lab.running.metrics.generation() == 2).await;
    ask(&lab, Some("token-1"), &csr, Some(CART)).await.expect_err("moved");
    ask(&lab, Some("token-2"), &csr, Some(CART)).await.expect("moved here");
    lab.running.stop().await;
}

/// A worker that starts on a full node asks for all its pods at once.
#[tokio::test]
async fn a_full_nodes_certificates_are_signed_at_once() {
    let pods: String = (0..200).map(|n| pod(&format!("p{n}"), "node-1", &format!("a{n}"), "x: z")).collect();
    let lab = Lab::start(&[("pods.yaml", &pods)]).await;
    let readiness = lab.running.readiness.clone();
    eventually("ready", || readiness.is_ready()).await;
    let client = IstioCertificateServiceClient::new(lab.channel().await);
    let requests: Vec<_> = (0..200)
        .map(|n| {
            let uri = format!("spiffe://cluster.local/ns/shop/sa/a{n}");
            let (_, csr) = mesh_tls::csr(&Identity::parse(&uri).expect("an identity")).expect("a request");
            let value = prost_types::Value { kind: Some(Kind::StringValue(uri)) };
            let fields = BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]);
            IstioCertificateRequest { csr, validity_duration: 0, metadata: Some(prost_types::Struct { fields }) }
        })
        .collect();
    let started = std::time::Instant::now();
    let asked = requests.into_iter().map(|request| {
        let mut client = client.clone();
        async move { client.create_certificate(with_token(request, Some("token-1"))).await }
    });
    for answer in futures_util::future::join_all(asked).await {
        answer.expect("a certificate");
    }
    eprintln!("200 certificates over one connection: {:?}", started.elapsed());
    lab.running.stop().await;
}

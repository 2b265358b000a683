//! Who asks the control plane for a certificate with a token that is not that of the pod's node's proxy gets none, and each of them is
//! in the control plane's audit log. The tokens are the real API server's.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use cluster::mesh::NAMESPACE;
use cluster::{APPS, Cluster};
use lab::wait;
use mesh_api::xds::IMPERSONATED_IDENTITY;
use mesh_api::xds::ca::IstioCertificateRequest;
use mesh_api::xds::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_model::Identity;
use mesh_tls::WorkloadCert;
use prost_types::value::Kind;
use tonic::{Code, Request, Status};

use crate::control_plane::{self, AUDIENCE, proxy};
use crate::shop::{CHANGE, captured, meshed, start};
use crate::support::PODS;

/// For all of a request.
const PATIENCE: Duration = Duration::from_secs(20);
/// Somebody who asks.
struct Caller<'a> {
    cluster: &'a Cluster,
    root: String,
}

impl Caller<'_> {
    /// Asks for a certificate in the name of an identity; a good answer is one that its key can use.
    fn ask(&self, token: Option<&str>, identity: &str) -> Result<Result<WorkloadCert, Status>> {
        let identity = Identity::parse(identity)?;
        let (key, csr) = mesh_tls::csr(&identity)?;
        let value = prost_types::Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let fields = BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]);
        let metadata = Some(prost_types::Struct { fields });
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 3600, metadata });
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        }
        request.metadata_mut().insert("clusterid", "Kubernetes".parse()?);
        // On this thread alone, which is in that network.
        let answer = self.cluster.lab().fabric().in_netns(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { tokio::time::timeout(PATIENCE, self.send(request)).await.context("no answer")? })
        })?;
        Ok(match answer {
            Ok(chain) => Ok(WorkloadCert::assemble(key, chain, &identity)?),
            Err(status) => Err(status),
        })
    }

    async fn send(&self, request: Request<IstioCertificateRequest>) -> Result<Result<Vec<String>, Status>> {
        let channel = control_plane::channel(&self.root).await?;
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
        Ok(answer.map(|answer| answer.into_inner().cert_chain))
    }

    /// Lines of the audit log, of all replicas, that say this of a request.
    fn audited(&self, message: &str, cause: &str) -> Result<usize> {
        let selector = "app.kubernetes.io/component=control-plane";
        let text = self.cluster.kubectl(&["logs", "-n", NAMESPACE, "-l", selector, "--tail=-1"])?;
        Ok(text.lines().filter(|line| line.contains(message) && line.contains(cause)).count())
    }

    /// A certificate for this identity is issued, and it is in the log.
    fn is_given(&self, token: &str, identity: &str) -> Result<()> {
        // It may know of a new pod a moment later than kubectl does.
        let mut last = String::new();
        let cert = wait::until("a certificate", CHANGE, || {
            let answer = self.ask(Some(token), identity);
            last = format!("{answer:?}");
            answer.ok()?.ok()
        })
        .with_context(|| format!("{identity}: {last}"))?;
        ensure!(cert.identity().to_string() == identity, "{cert:?}");
        wait::until_true("an audit line", CHANGE, || {
            self.audited("certificate issued", identity).is_ok_and(|lines| lines > 0)
        })
    }

    /// It is refused without a reason; the reason is in the log, once.
    fn is_refused(&self, what: &str, token: Option<&str>, identity: &str, cause: &str) -> Result<()> {
        let before = self.audited("certificate refused", cause)?;
        let Err(status) = self.ask(token, identity)? else { anyhow::bail!("{what}: a certificate") };
        ensure!((status.code(), status.message()) == (Code::Unauthenticated, "not authorized"), "{what}: {status:?}");
        let audited = || self.audited("certificate refused", cause).is_ok_and(|lines| lines == before + 1);
        wait::until_true("one audit line more", CHANGE, audited).with_context(|| format!("{what}: {cause}"))
    }

    fn token(&self, namespace: &str, account: &str, more: &[&str]) -> Result<String> {
        control_plane::token(self.cluster, namespace, account, more)
    }

    fn bound(&self, namespace: &str, account: &str, pod: &str) -> Result<String> {
        control_plane::bound_token(self.cluster, namespace, account, pod)
    }
}

/// A pod on node 1 that runs this and is not started again.
fn run(cluster: &Cluster, namespace: &str, name: &str, account: &str, script: &str) -> Result<()> {
    cluster.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  serviceAccountName: {account}
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  nodeName: node-1
  containers:
  - {{name: app, image: {APPS}, imagePullPolicy: Never, command: [/bin/sh, -c, \"{script}\"]}}
"
    ))?;
    phase(cluster, namespace, name, "Ready")
}

/// Waits until a pod is Ready, or has succeeded.
fn phase(cluster: &Cluster, namespace: &str, name: &str, wanted: &str) -> Result<()> {
    let until = if wanted == "Ready" { "--for=condition=Ready" } else { "--for=jsonpath={.status.phase}=Succeeded" };
    let timeout = format!("--timeout={}s", PODS.as_secs());
    cluster.kubectl(&["wait", "-n", namespace, &format!("pod/{name}"), until, &timeout]).map(drop)
}

#[test]
fn forged_callers_get_no_certificate_and_each_is_in_the_audit_log() -> Result<()> {
    let (cluster, _) = meshed("kube-tokens", true)?;
    let (cart, web) = (start(&cluster, "shop", "cart", 1)?, start(&cluster, "shop", "web", 2)?);
    start(&cluster, "outside", "plain", 1)?;
    captured(&cluster, &[&cart, &web], true)?;
    let root = control_plane::root(&cluster)?;
    let caller = Caller { cluster: &cluster, root };
    let of = |namespace: &str, account: &str| format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
    let (cart, web) = (of("shop", "cart"), of("shop", "web"));
    let proxies = [proxy(&cluster, 1)?, proxy(&cluster, 2)?];
    let good = caller.bound(NAMESPACE, "node-proxy", &proxies[0])?;
    let other = caller.bound(NAMESPACE, "node-proxy", &proxies[1])?;
    // Each proxy gets its own pods' certificates, or the rest would prove nothing.
    caller.is_given(&good, &cart)?;
    caller.is_given(&other, &web)?;

    // Tokens: of a pod that is gone by the time it is shown, made while it is there; one like it is good until then.
    run(&cluster, NAMESPACE, "gone", "node-proxy", "exec culvert-lab app hold:7000")?;
    let gone = [caller.bound(NAMESPACE, "node-proxy", "gone")?, caller.bound(NAMESPACE, "node-proxy", "gone")?];
    caller.is_given(&gone[0], &cart)?;
    cluster.kubectl(&["delete", "pod", "gone", "-n", NAMESPACE, "--timeout=60s"])?;
    let app = caller.bound("shop", "cart", "cart")?;
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", &proxies[0]];
    let for_api = caller.token(NAMESPACE, "node-proxy", &bound)?;
    let for_another = caller.token(NAMESPACE, "node-proxy", &[&bound[..], &["--audience", "another"]].concat())?;
    let unbound = caller.token(NAMESPACE, "node-proxy", &["--audience", AUDIENCE])?;
    // The signature's first character: another one, of the same alphabet.
    let (claims, signature) = good.rsplit_once('.').context("a token")?;
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let altered = format!("{claims}.{first}{}", signature.get(1..).context("a signature")?);
    // As it was ten minutes ago, and ran out two minutes ago (the API server grants one); one that is changed and has not run out is good.
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let aged = |iat: u64, exp: u64| {
        cluster.token_with(&good, |claims| {
            (claims["iat"], claims["nbf"], claims["exp"]) = (iat.into(), iat.into(), exp.into());
        })
    };
    caller.is_given(&aged(now - 600, now + 600)?, &cart)?;
    let expired = aged(now - 600, now - 120)?;
    let refused: [(&str, Option<&str>, &str); 9] = [
        ("a token that has expired", Some(&expired), "the API server does not take the token"),
        ("an app's token", Some(&app), "which is not the proxies' account"),
        ("a token for the API server", Some(&for_api), "the API server does not take the token"),
        ("a token for somebody else", Some(&for_another), "the API server does not take the token"),
        ("a token that is bound to nothing", Some(&unbound), "not bound to a pod on a node"),
        ("a token of a pod that is gone", Some(&gone[1]), "the API server does not take the token"),
        ("an altered token", Some(&altered), "the API server does not take the token"),
        ("no token of anybody's", Some("garbage"), "the API server does not take the token"),
        ("no token", None, "no bearer token"),
    ];
    for (what, token, cause) in refused {
        caller.is_refused(what, token, &cart, cause)?;
    }

    // Identities that are not the node's.
    let not_there = |identity: &str| format!("no mesh pod with the identity {identity} is bound to the node");
    caller.is_refused("node 2's proxy for node 1's pod", Some(&other), &cart, &not_there(&cart))?;
    caller.is_refused("a pod on another node", Some(&good), &web, &not_there(&web))?;
    let plain = of("outside", "plain");
    caller.is_refused("a pod that is not in the mesh", Some(&good), &plain, &not_there(&plain))?;
    cluster.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: task, namespace: shop}\n")?;
    run(&cluster, "shop", "task", "task", "until test -e /tmp/end; do sleep 0.1; done")?;
    let task = of("shop", "task");
    caller.is_given(&good, &task)?;
    cluster.kubectl(&["exec", "-n", "shop", "task", "--", "touch", "/tmp/end"])?;
    phase(&cluster, "shop", "task", "Succeeded")?;
    wait::until_true("the completed pod to be known as such", CHANGE, || {
        matches!(caller.ask(Some(&good), &task), Ok(Err(_)))
    })?;
    // The log is read through the node: what was asked just now is in it before the next lines are counted.
    let asked = || caller.audited("certificate refused", &not_there(&task)).is_ok_and(|lines| lines >= 1);
    wait::until_true("its audit line", CHANGE, asked)?;
    caller.is_refused("a completed pod", Some(&good), &task, &not_there(&task))?;
    // Nothing of this was held against who asks for its own.
    caller.is_given(&good, &cart)
}

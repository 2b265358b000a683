//! Objects that are nothing but objects, written to the API server by many hands.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cluster::Cluster;
use mesh_kube::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::as_admin::with_api;

/// Requests on their way at a time.
const HANDS: usize = 24;
/// Namespaces that everything is spread over, all of them in the mesh.
const NAMESPACES: usize = 10;
/// Service accounts in each.
const ACCOUNTS: usize = 20;

/// How many of each.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) nodes: usize,
    pub(crate) services: usize,
    pub(crate) policies: usize,
    pub(crate) pods: usize,
}

/// One request.
struct Write(Method, String, Value);

fn post(path: &str, body: Value) -> Write {
    Write(Method::Post, path.to_owned(), body)
}

/// Writes objects, as the cluster's administrator.
pub(crate) struct Writer<'a>(pub(crate) &'a Cluster);

fn namespace(n: usize) -> String {
    format!("scale-{}", n % NAMESPACES)
}

fn far(n: usize) -> String {
    format!("far-{n}")
}

/// Whether a node is one of these.
pub(crate) fn is_far(node: &str) -> bool {
    node.starts_with("far-")
}

/// Of the part of the pods' ranges that no node of this machine has.
fn addresses(n: usize) -> [String; 2] {
    [format!("198.18.{}.{}", 16 + n / 250, 1 + n % 250), format!("fd77:0:0:7::{:x}", n + 1)]
}

/// The service that a pod is behind; 20 pods each.
fn app(n: usize, services: usize) -> usize {
    n % services
}

impl Writer<'_> {
    /// All of these, in any order; the first that is refused is the error.
    fn all(&self, count: usize, make: impl Fn(usize) -> Vec<Write> + Send + Sync + 'static) -> Result<Duration> {
        with_api(self.0, async |api| {
            let begun = Instant::now();
            let (next, make) = (Arc::new(AtomicUsize::new(0)), Arc::new(make));
            let mut hands = JoinSet::new();
            for _ in 0..HANDS {
                let (api, next, make) = (api.clone(), next.clone(), make.clone());
                hands.spawn(async move {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= count {
                            return Ok::<_, anyhow::Error>(());
                        }
                        for Write(method, path, body) in make(n) {
                            api.write(method, &path, &body).await.with_context(|| format!("{method:?} {path}"))?;
                        }
                    }
                });
            }
            while let Some(ended) = hands.join_next().await {
                ended??;
            }
            Ok(begun.elapsed())
        })
    }

    /// The namespaces with their accounts.
    pub(crate) fn namespaces(&self) -> Result<Duration> {
        self.all(NAMESPACES, move |n| {
            let labels = json!({"culvert.io/mesh": "enabled"});
            let mut writes =
                vec![post("/api/v1/namespaces", json!({"metadata": {"name": namespace(n), "labels": labels}}))];
            let accounts = (0..ACCOUNTS).map(|account| format!("account-{account}")).chain(["default".to_owned()]);
            let path = format!("/api/v1/namespaces/{}/serviceaccounts", namespace(n));
            writes.extend(accounts.map(|name| post(&path, json!({"metadata": {"name": name}}))));
            writes
        })
    }

    /// Nodes that are not there.
    pub(crate) fn nodes(&self, count: usize) -> Result<Duration> {
        self.all(count, move |n| {
            let labels =
                json!({"topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": format!("r-{}", n % 3)});
            vec![post("/api/v1/nodes", json!({"metadata": {"name": far(n), "labels": labels}}))]
        })
    }

    /// Services, each with its EndpointSlice.
    pub(crate) fn services(&self, counts: Counts) -> Result<Duration> {
        self.all(counts.services, move |n| {
            let (space, name) = (namespace(n), format!("app-{n}"));
            let ports = json!([{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]);
            let service = json!({
                "metadata": {"name": name},
                "spec": {"selector": {"app": name}, "ports": ports, "ipFamilyPolicy": "RequireDualStack"},
            });
            let each = counts.pods / counts.services;
            let pods = (0..each).map(|k| n + k * counts.services);
            let endpoints: Vec<Value> = pods
                .map(|pod| {
                    let target = json!({"kind": "Pod", "namespace": space, "name": format!("pod-{pod}")});
                    json!({"addresses": [addresses(pod)[0]], "conditions": {"ready": true}, "targetRef": target})
                })
                .collect();
            let slice = json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            });
            vec![
                post(&format!("/api/v1/namespaces/{space}/services"), service),
                post(&format!("/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices"), slice),
            ]
        })
    }

    /// Policies for the pods behind them.
    pub(crate) fn policies(&self, counts: Counts) -> Result<Duration> {
        self.all(counts.policies, move |n| {
            let principals: Vec<String> = (0..3)
                .map(|k| format!("cluster.local/ns/{}/sa/account-{}", namespace(n + k), (n + k) % ACCOUNTS))
                .collect();
            let rules = json!([
                {"from": [{"source": {"principals": principals}}], "to": [{"operation": {"ports": ["8080"]}}]},
                {"from": [{"source": {"namespaces": [namespace(n + 1)]}}]},
            ]);
            let app = format!("app-{}", n % counts.services);
            let policy = json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": format!("policy-{n}")},
                "spec": {"selector": {"matchLabels": {"app": app}}, "action": "ALLOW", "rules": rules},
            });
            let space = namespace(n % counts.services);
            vec![post(&format!("/apis/security.istio.io/v1/namespaces/{space}/authorizationpolicies"), policy)]
        })
    }

    /// Running, ready pods of far nodes.
    pub(crate) fn pods(&self, numbers: Range<usize>) -> Result<Duration> {
        let first = numbers.start;
        self.all(numbers.len(), move |n| {
            let n = first + n;
            let (counts, name) = (crate::WHOLE, format!("pod-{n}"));
            let app = app(n, counts.services);
            let path = format!("/api/v1/namespaces/{}/pods", namespace(app));
            let pod = json!({
                "metadata": {"name": name, "labels": {"app": format!("app-{app}"), "version": "v1", "pod-template-hash": "5d4f8c7b9"}},
                "spec": {
                    "nodeName": far(n % counts.nodes), "serviceAccountName": format!("account-{}", n % ACCOUNTS),
                    "automountServiceAccountToken": false, "enableServiceLinks": false,
                    "containers": [{"name": "app", "image": "localhost/app", "ports": [{"containerPort": 8080}]}],
                },
            });
            let status = status(n, true);
            vec![Write(Method::Post, path.clone(), pod), Write(Method::Merge, format!("{path}/{name}/status"), status)]
        })
    }

    /// Changes whether pods are ready, one after the other at a steady pace: half as many pods as changes, each unready first and ready
    /// again when all of them were. A pod that came back at once might be as before when it is looked at, and be no change.
    pub(crate) fn flip(&self, changes: usize, pace: Duration) -> Result<Duration> {
        with_api(self.0, async |api| {
            let begun = tokio::time::Instant::now();
            let pods = changes / 2;
            for n in 0..changes {
                tokio::time::sleep_until(begun + pace * u32::try_from(n)?).await;
                let (pod, ready) = (n % pods, n >= pods);
                let path =
                    format!("/api/v1/namespaces/{}/pods/pod-{pod}/status", namespace(app(pod, crate::WHOLE.services)));
                api.write(Method::Merge, &path, &status(pod, ready)).await.with_context(|| path.clone())?;
            }
            Ok(begun.elapsed())
        })
    }
}

fn status(n: usize, ready: bool) -> Value {
    let ips = addresses(n).map(|ip| json!({"ip": ip}));
    let ready = if ready { "True" } else { "False" };
    json!({"status": {
        "phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips, "hostIP": "198.19.255.99", "hostIPs": [{"ip": "198.19.255.99"}],
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": ready}],
    }})
}

//! A cluster that stands, and pods in it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::{APPS, Cluster, Config};
use serde_json::Value;

pub(crate) use crate::figure::figure;

/// How long pods may take to be Ready until a test calls them lost.
pub(crate) const PODS: Duration = Duration::from_secs(90);
/// Where the pods of [`web`] answer with both ends of each connection.
pub(crate) const WHOAMI: u16 = 9000;

/// Whether this run may take long: `cargo xtask test --long`.
pub(crate) fn long() -> bool {
    std::env::var_os("CULVERT_LONG").is_some_and(|value| value == "1")
}

/// A cluster of two nodes; how long it took is printed.
pub(crate) fn up(name: &str) -> Result<Cluster> {
    ensure!(rustix::process::geteuid().is_root(), "this test needs root: namespaces, mounts and control groups");
    let begun = Instant::now();
    let cluster = Cluster::up(&Config { name: name.to_owned(), ..Config::default() }, |_| {})?;
    figure("cluster up", format!("{:.1}", begun.elapsed().as_secs_f64()), "s", "two nodes Ready, parts in the cache");
    Ok(cluster)
}

/// A Deployment `web` with two pods on each node, behind a dual-stack Service of the same name on port 80.
pub(crate) fn web(cluster: &Cluster) -> Result<()> {
    cluster.apply(&format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 4
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {{matchLabels: {{app: web}}}}
      containers:
      - name: web
        image: {APPS}
        imagePullPolicy: Never
        command: [/bin/sh, -c, "echo started $(hostname); exec culvert-lab app whoami:{WHOAMI}"]
        readinessProbe: {{tcpSocket: {{port: {WHOAMI}}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: {WHOAMI}}}]
"#
    ))?;
    let begun = Instant::now();
    rolled_out(cluster)?;
    figure("four pods Ready", format!("{:.1}", begun.elapsed().as_secs_f64()), "s", "after apply, images on the nodes");
    Ok(())
}

/// Waits until every pod of `web` is Ready.
pub(crate) fn rolled_out(cluster: &Cluster) -> Result<()> {
    let timeout = format!("--timeout={}s", PODS.as_secs());
    let done = cluster.kubectl(&["rollout", "status", "deployment/web", &timeout]).map(drop);
    done.with_context(|| cluster.kubectl(&["get", "pods,events", "-o", "wide"]).unwrap_or_default())
}

/// A pod of `web`.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) restarts: u64,
}

/// The pods of `web`.
pub(crate) fn pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let list = cluster.get(&["pods", "-l", "app=web"])?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("text");
    list["items"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|pod| {
            let ips = pod["status"]["podIPs"].as_array().context("addresses")?;
            Ok(Pod {
                name: text(&pod["metadata"]["name"])?,
                node: text(&pod["spec"]["nodeName"])?,
                ips: ips.iter().map(|ip| Ok(text(&ip["ip"])?.parse()?)).collect::<Result<_>>()?,
                restarts: pod["status"]["containerStatuses"][0]["restartCount"].as_u64().context("a number")?,
            })
        })
        .collect()
}

/// The Service's virtual addresses, one per family.
pub(crate) fn service(cluster: &Cluster) -> Result<Vec<IpAddr>> {
    let ips = cluster.get(&["service", "web"])?["spec"]["clusterIPs"].clone();
    ips.as_array().context("addresses")?.iter().map(|ip| Ok(ip.as_str().context("text")?.parse()?)).collect()
}

//! A cluster with the mesh installed, a small shop in it, and what its pods say to each other: plain sockets in a pod's own network.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cluster::mesh::{Mesh, NAMESPACE};
use cluster::{APPS, Cluster};
use lab::{Pid, ns, wait};
use serde_json::Value;

use crate::support::{PODS, figure, up};

/// Where the shop's pods send everything back.
pub(crate) const ECHO: u16 = 7000;
/// Where the app of each of them counts what reaches it.
pub(crate) const STATS: &str = "/tmp/stats";
/// How long a change may take until a test calls it lost.
pub(crate) const CHANGE: Duration = Duration::from_secs(20);
/// How long an attempt may go without an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

/// A cluster with the mesh, the namespace `shop` (in it, if `enrolled`) and the namespace `outside`.
pub(crate) fn meshed(name: &str, enrolled: bool) -> Result<(Cluster, Mesh)> {
    meshed_with(name, enrolled, &str::to_owned)
}

/// The same with a chart that says something else.
pub(crate) fn meshed_with(name: &str, enrolled: bool, changed: &dyn Fn(&str) -> String) -> Result<(Cluster, Mesh)> {
    let mut mesh = Mesh::find()?;
    let cluster = up(name)?;
    let rendered = std::fs::read_to_string(&mesh.manifests)?;
    let said = changed(&rendered);
    if said != rendered {
        mesh.manifests = cluster.lab().dir().join("mesh.yaml");
        std::fs::write(&mesh.manifests, said)?;
    }
    let begun = Instant::now();
    cluster.install(&mesh, |_| {})?;
    figure(
        "mesh installed",
        format!("{:.1}", begun.elapsed().as_secs_f64()),
        "s",
        "images loaded, applied, all of it Ready",
    );
    namespaces(&cluster, enrolled)?;
    Ok((cluster, mesh))
}

pub(crate) fn namespaces(cluster: &Cluster, enrolled: bool) -> Result<()> {
    cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: outside}\n")?;
    if enrolled { enrol(cluster, true) } else { Ok(()) }
}

/// Opts the namespace `shop` in or out.
pub(crate) fn enrol(cluster: &Cluster, enrolled: bool) -> Result<()> {
    enrol_all(cluster, &["shop"], enrolled)
}

/// Opts namespaces in or out.
pub(crate) fn enrol_all(cluster: &Cluster, namespaces: &[&str], enrolled: bool) -> Result<()> {
    let label = if enrolled { "culvert.io/mesh=enabled" } else { "culvert.io/mesh-" };
    namespaces.iter().try_for_each(|name| cluster.kubectl(&["label", "namespace", name, label]).map(drop))
}

/// The policy that lets nobody but `cart` call an app of the shop.
pub(crate) fn only_cart(app: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: only-cart, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  rules: [{{from: [{{source: {{serviceAccounts: [cart]}}}}]}}]
"
    )
}

/// A pod of the shop that runs.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) node: usize,
    pub(crate) ips: Vec<IpAddr>,
    netns: PathBuf,
}

/// Starts a pod on a node with a service account of its own name's first part (`web-1` is of `web`); returns when it is Ready.
pub(crate) fn start(cluster: &Cluster, namespace: &str, name: &str, node: usize) -> Result<Member> {
    let account = name.split('-').next().unwrap_or(name);
    cluster.apply(&format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: {account}, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {account}}}}}
spec:
  serviceAccountName: {account}
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  nodeName: node-{node}
  containers:
  - name: app
    image: {APPS}
    imagePullPolicy: Never
    command: [/bin/sh, -c, \"exec culvert-lab app --stats {STATS} echo:{ECHO}\"]
    readinessProbe: {{tcpSocket: {{port: {ECHO}}}, periodSeconds: 1}}
"
    ))?;
    member(cluster, namespace, name, node)
}

/// A pod with addresses of both families and a shell's environment, once it is Ready.
pub(crate) fn member(cluster: &Cluster, namespace: &str, name: &str, node: usize) -> Result<Member> {
    let timeout = format!("--timeout={}s", PODS.as_secs());
    let ready = cluster.kubectl(&["wait", "-n", namespace, &format!("pod/{name}"), "--for=condition=Ready", &timeout]);
    ready
        .with_context(|| cluster.kubectl(&["get", "pods,events", "-n", namespace, "-o", "wide"]).unwrap_or_default())?;
    let pod = cluster.get(&["pod", name, "-n", namespace])?;
    let ips = pod["status"]["podIPs"].as_array().context("addresses")?;
    let ips = ips.iter().map(|ip| Ok(ip["ip"].as_str().context("text")?.parse()?)).collect::<Result<Vec<IpAddr>>>()?;
    ensure!(ips.len() == 2, "{name} has {ips:?}");
    Ok(Member { name: name.into(), namespace: namespace.into(), node, ips, netns: netns_of(cluster, name)? })
}

/// The network of a pod.
fn netns_of(cluster: &Cluster, pod: &str) -> Result<PathBuf> {
    Ok(process_of(cluster, pod)?.ns("net"))
}

/// A process of a pod, by the name that every process in it has in its environment, in the control groups of this cluster: another
/// one beside it may have a pod of the same name.
pub(crate) fn process_of(cluster: &Cluster, pod: &str) -> Result<Pid> {
    let (wanted, group) = (format!("HOSTNAME={pod}"), format!("/culvert-lab/{}/", cluster.lab().name()));
    let of = |path: &Path| std::fs::read(path.join("environ")).unwrap_or_default();
    let is_ours = |path: &Path| std::fs::read_to_string(path.join("cgroup")).is_ok_and(|text| text.contains(&group));
    let found = std::fs::read_dir("/proc")?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| of(path).split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) && is_ours(path));
    let found = found.with_context(|| format!("no process of {pod}"))?;
    let pid = found.file_name().and_then(|name| name.to_str()).context("a number")?.parse()?;
    Pid::of(pid)
}

impl Member {
    /// Its network, to be looked for when it is gone.
    pub(crate) fn network(&self) -> Result<Network> {
        let is = std::fs::metadata(&self.netns).with_context(|| self.netns.display().to_string())?;
        Ok(Network { device: is.dev(), inode: is.ino() })
    }

    /// Its addresses with the echo server's port.
    pub(crate) fn echo(&self) -> Vec<SocketAddr> {
        self.ips.iter().map(|ip| SocketAddr::new(*ip, ECHO)).collect()
    }

    /// A connection from this pod.
    pub(crate) fn connect(&self, to: SocketAddr) -> Result<io::Result<TcpStream>> {
        self.inside(|| Ok(dial(to)))
    }

    /// Does work in this pod's network.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        ns::in_netns(&self.netns, work)
    }

    /// Where this pod takes connections of both families, on a port of the kernel's choice.
    pub(crate) fn listen(&self) -> Result<TcpListener> {
        ns::in_netns(&self.netns, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).context("listen"))
    }

    /// Whether a connection from this pod is answered; an error says how it was not.
    pub(crate) fn asks(&self, to: SocketAddr) -> Result<io::Result<()>> {
        Ok(self.connect(to)?.and_then(|stream| say(&stream)))
    }

    /// What is in its network of ours: nf_tables' tables, and rules and routes of our table, of either family.
    pub(crate) fn ours(&self) -> Result<Vec<String>> {
        const ALL: &str =
            "nft list tables && ip rule && ip -6 rule && ip route show table all && ip -6 route show table all";
        let all = self.inside(|| {
            let output = std::process::Command::new("sh").args(["-c", ALL]).output().context("start sh")?;
            ensure!(output.status.success(), "{output:?}");
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })?;
        let is_ours =
            |line: &&str| ["culvert", "lookup 15001100", "table 15001100"].iter().any(|word| line.contains(word));
        Ok(all.lines().filter(is_ours).map(str::to_owned).collect())
    }

    /// Whether what was observed of this pod is that it is captured.
    pub(crate) fn is_captured(&self, cluster: &Cluster) -> bool {
        let path = "{.status.conditions[?(@.type==\"culvert.io/Captured\")].status}";
        let output = format!("jsonpath={path}");
        cluster
            .kubectl(&["get", "pod", &self.name, "-n", &self.namespace, "-o", &output])
            .is_ok_and(|text| text == "True")
    }
}

/// A network namespace.
pub(crate) struct Network {
    device: u64,
    pub(crate) inode: u64,
}

impl Network {
    /// Who holds it: processes of the machine that are in it, have it open, or have a mount of it.
    pub(crate) fn holders(&self) -> Vec<String> {
        let mount = format!(" net:[{}] ", self.inode);
        let is_it = |path: &Path| {
            std::fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
        };
        let holds = |process: &Path| {
            let open = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            is_it(&process.join("ns/net"))
                || std::fs::read_to_string(process.join("mountinfo")).is_ok_and(|text| text.contains(&mount))
                || open.into_iter().any(|file| is_it(&file.path()))
        };
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
        let processes = processes.filter(|path| path.join("ns").exists() && holds(path));
        let name = |path: std::path::PathBuf| {
            format!("{} {}", path.display(), std::fs::read_to_string(path.join("comm")).unwrap_or_default().trim())
        };
        processes.map(name).collect()
    }
}

/// A connection from the calling thread's network.
pub(crate) fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Says something on an open stream to an echo server and waits for it to come back.
pub(crate) fn say(mut stream: &TcpStream) -> io::Result<()> {
    let mut answer = [0; 5];
    stream.write_all(b"hello")?;
    stream.read_exact(&mut answer)?;
    if &answer == b"hello" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Waits until every pod is captured, or none.
pub(crate) fn captured(cluster: &Cluster, members: &[&Member], wanted: bool) -> Result<()> {
    members.iter().try_for_each(|member| {
        wait::until_true(&format!("{} to be captured: {wanted}", member.name), CHANGE, || {
            member.is_captured(cluster) == wanted
        })
    })
}

/// Waits until connections from one to the other are answered, or refused, over both families.
pub(crate) fn until(from: &Member, to: &Member, answered: bool) -> Result<()> {
    to.echo().into_iter().try_for_each(|to| {
        let mut last = String::new();
        wait::until_true("a connection to be met as it should", CHANGE, || {
            let met = from.asks(to);
            last = format!("{met:?}");
            met.is_ok_and(|met| met.is_ok() == answered)
        })
        .with_context(|| format!("{} to {to}, answered: {answered}; last: {last}", from.name))
    })
}

/// The access log of a node's worker.
pub(crate) fn access_log(cluster: &Cluster, node: usize) -> Result<Vec<Value>> {
    let pods = cluster.get(&["pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=node-proxy"])?;
    let is_there = |pod: &&Value| pod["spec"]["nodeName"] == format!("node-{node}").as_str();
    let pod = pods["items"].as_array().context("a list")?.iter().find(is_there).context("a node-proxy")?;
    let name = pod["metadata"]["name"].as_str().context("text")?;
    let text = cluster.kubectl(&["logs", "-n", NAMESPACE, name, "-c", "worker"])?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.filter(|line| line["log"] == "access").collect())
}

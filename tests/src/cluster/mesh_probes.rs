//! In a STRICT namespace the kubelet's probes of each kind pass, and nobody else reaches the same ports: not pods from outside of the
//! mesh, not another node, not who comes through a Service, a load balancer's address or a hostPort, with a node's address or its own. So
//! it stays with pod-watcher dead.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster::{APPS, Cluster};
use lab::{Node, plan, wait};
use serde_json::json;

use crate::shop::{CHANGE, Member, captured, member, meshed, start};
use crate::support::figure;

/// The probed ports of a pod, and one that is not.
const HTTP: u16 = 8080;
const TCP: u16 = 8081;
const GRPC: u16 = 2379;
const UNPROBED: u16 = 8090;
/// A hostPort is this much above the pod's own.
const HOST: u16 = 10_000;
/// The first of the NodePorts.
const NODE_PORT: u16 = 30_080;
/// Periods of a second that are waited for: in each, every container has a readiness and a liveness probe.
const PROBES: u64 = 5;
/// What etcd is linked to: the image has no libraries.
const LIBRARIES: &str = "/lib/x86_64-linux-gnu";
/// Containers with their kinds of probe.
const KINDS: [&str; 4] = ["http", "tcp", "grpc", "exec"];
const PATIENCE: Duration = Duration::from_secs(3);

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: all, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// A pod with a container for each kind of probe. What answers gRPC health checks is etcd, which is on every node for its own sake.
fn probed(cluster: &Cluster, name: &str, node: usize) -> Result<Member> {
    let both = |probe: &str| {
        let probe = format!("{probe}, periodSeconds: 1, timeoutSeconds: 10");
        format!("readinessProbe: {{{probe}}}\n    livenessProbe: {{{probe}}}")
    };
    let container = |kind: &str, program: &str, probe: &str| {
        format!(
            "\n  - name: {kind}\n    image: {APPS}\n    imagePullPolicy: Never\n    command: [/bin/sh, -c, \"exec {program}\"]\n    {}",
            both(probe)
        )
    };
    let http = container("http", &format!("culvert-lab app http:{HTTP}"), &format!("httpGet: {{port: {HTTP}}}"));
    let tcp = container("tcp", &format!("culvert-lab app echo:{TCP}"), &format!("tcpSocket: {{port: {TCP}}}"));
    let etcd = format!(
        "{LIBRARIES}/ld-linux-x86-64.so.2 /etcd --data-dir /tmp/etcd --listen-client-urls 'http://[::]:{GRPC}' \
         --advertise-client-urls http://127.0.0.1:{GRPC} --listen-peer-urls http://127.0.0.1:2380"
    );
    let grpc = container("grpc", &etcd, &format!("grpc: {{port: {GRPC}}}"));
    // From within, over the pod's own loopback.
    let client = format!("[culvert-lab, client, connect, \"127.0.0.1:{UNPROBED}\", --send, x]");
    let exec = container("exec", &format!("culvert-lab app echo:{UNPROBED}"), &format!("exec: {{command: {client}}}"));
    let ports: String =
        [HTTP, TCP, GRPC].map(|port| format!("{{containerPort: {port}, hostPort: {}}}", port + HOST)).join(", ");
    cluster.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  nodeName: node-{node}
  volumes:
  - {{name: etcd, hostPath: {{path: /usr/bin/etcd, type: File}}}}
  - {{name: libraries, hostPath: {{path: /usr{LIBRARIES}, type: Directory}}}}
  containers:{http}
    ports: [{ports}]{tcp}{exec}{grpc}
    volumeMounts:
    - {{name: etcd, mountPath: /etcd, readOnly: true}}
    - {{name: libraries, mountPath: {LIBRARIES}, readOnly: true}}
"
    ))?;
    member(cluster, "shop", name, node)
}

/// A Service of nodes' ports and of a load balancer's address for the probed ones of a pod.
struct Exposed {
    /// `externalTrafficPolicy`: with `Cluster` callers come with a node's address, with `Local` with their own.
    traffic: &'static str,
    /// The first of its NodePorts.
    node_port: u16,
    /// Addresses inside the cluster and, of the same families, those that a load balancer would have.
    cluster: Vec<IpAddr>,
    balancer: Vec<IpAddr>,
}

/// Makes one; there is no load balancer, so this says in the Service's status what it would, and leads its addresses to node 1.
fn expose(cluster: &Cluster, pod: &str, traffic: &'static str, n: u16) -> Result<Exposed> {
    let (name, node_port) = (format!("{pod}-{}", traffic.to_lowercase()), NODE_PORT + 10 * n);
    let ports: Vec<String> = (0..)
        .zip([HTTP, TCP, GRPC])
        .map(|(n, port)| format!("{{name: p{n}, port: {port}, targetPort: {port}, nodePort: {}}}", node_port + n))
        .collect();
    cluster.apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: {traffic}
  ipFamilyPolicy: RequireDualStack
  selector: {{app: {pod}}}
  ports: [{}]
",
        ports.join(", ")
    ))?;
    // Beside the ranges of pods, services and nodes.
    let (v4, v6) = (Ipv4Addr::new(198, 19, 100, n as u8 + 1), Ipv6Addr::new(0xfd77, 0xffff, 0, 1, 0, 0, 0, n + 1));
    let (via4, via6, port) = (plan::node_v4(1), plan::node_v6(1), plan::port_name(1));
    let routes = format!("route add {v4} via {via4} dev {port}\nroute add {v6} via {via6} dev {port}\n");
    cluster.lab().fabric().ip(&routes)?;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": v4}, {"ip": v6}]}}}).to_string();
    cluster.kubectl(&[
        "patch",
        "service",
        &name,
        "-n",
        "shop",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ])?;
    let ips = cluster.get(&["service", &name, "-n", "shop"])?["spec"]["clusterIPs"].clone();
    let ips = ips.as_array().context("addresses")?.iter();
    let ips = ips.map(|ip| Ok(ip.as_str().context("text")?.parse()?)).collect::<Result<_>>()?;
    Ok(Exposed { traffic, node_port, cluster: ips, balancer: vec![v4.into(), v6.into()] })
}

/// Somebody who tries, and the address he tries.
type Attempt<'a> = (String, Place<'a>, SocketAddr);

#[derive(Clone, Copy)]
enum Place<'a> {
    Pod(&'a Member),
    Node(&'a Node),
}

impl Place<'_> {
    /// Whether what he says there is answered; each of the servers answers this.
    fn asks(self, to: SocketAddr) -> Result<io::Result<()>> {
        let stream = match self {
            Self::Pod(member) => member.connect(to)?,
            Self::Node(node) => node.in_netns(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)))?,
        };
        Ok(stream.and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
            stream.read_exact(&mut [0])
        }))
    }
}

/// Everybody who is not the kubelet of the pod's node, at every way to its probed ports.
fn strangers<'a>(cluster: &'a Cluster, pods: &[&'a Member], web: &Member, exposed: &[Exposed]) -> Vec<Attempt<'a>> {
    let (fabric, far) = (cluster.lab().fabric(), cluster.lab().node(2));
    let mut all = Vec::new();
    for (n, port) in (0..).zip([HTTP, TCP, GRPC]) {
        let from_pods = |what: &str, to: SocketAddr| -> Vec<Attempt<'a>> {
            pods.iter().map(|pod| (format!("the pod {}{what}", pod.name), Place::Pod(pod), to)).collect()
        };
        for ip in &web.ips {
            let to = SocketAddr::new(*ip, port);
            all.extend(from_pods("", to));
            all.push(("a process of the other node".into(), Place::Node(far), to));
            all.push(("a machine beside the nodes".into(), Place::Node(fabric), to));
        }
        for ip in cluster.lab().node(1).ips() {
            all.push(("through a hostPort".into(), Place::Node(fabric), SocketAddr::new(ip, port + HOST)));
        }
        for Exposed { traffic, node_port, cluster: inside, balancer } in exposed {
            for node in cluster.lab().nodes() {
                // With `Local` a node without such a pod takes nothing.
                let ips = if *traffic == "Local" && node.index() != web.node { vec![] } else { node.ips() };
                let what = format!("through a NodePort of {} ({traffic})", node.name());
                let at = |ip| (what.clone(), Place::Node(fabric), SocketAddr::new(ip, node_port + n));
                all.extend(ips.into_iter().map(at));
            }
            for ip in inside {
                all.push(("through the Service's address".into(), Place::Node(fabric), SocketAddr::new(*ip, port)));
            }
            for ip in balancer {
                let (what, to) =
                    (format!(" through a load balancer's address ({traffic})"), SocketAddr::new(*ip, port));
                all.push((format!("a machine{what}"), Place::Node(fabric), to));
                all.push((format!("a process of the other node{what}"), Place::Node(far), to));
                all.extend(from_pods(&what, to));
            }
        }
    }
    all
}

/// All of them are answered, or none; soon, for rules and policies travel.
fn met(strangers: &[Attempt], answered: bool) -> Result<()> {
    strangers.iter().try_for_each(|(who, place, to)| {
        let mut last = String::new();
        wait::until_true("a connection to be met as it should", CHANGE, || {
            let met = place.asks(*to);
            last = format!("{met:?}");
            met.is_ok_and(|met| met.is_ok() == answered)
        })
        .with_context(|| format!("{who} at {to}, answered: {answered}; last: {last}"))
    })
}

/// Probes that passed and that did not, of both kinds, in the order of [`KINDS`]: what the node's kubelet counted.
fn counted(cluster: &Cluster, pod: &Member) -> Result<[(u64, u64); 4]> {
    let path = format!("/api/v1/nodes/node-{}/proxy/metrics/probes", pod.node);
    let text = cluster.kubectl(&["get", "--raw", &path])?;
    let of = |kind: &str, passed: bool| {
        let labels = [format!("pod=\"{}\"", pod.name), format!("container=\"{kind}\"")];
        let lines = text.lines().filter(|line| line.starts_with("prober_probe_total{"));
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        let lines = lines.filter(|line| line.contains("result=\"successful\"") == passed);
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    };
    Ok(KINDS.map(|kind| (of(kind, true), of(kind, false))))
}

/// Waits until each container was probed some more; none of these probes may have failed, and no container may have been started again.
fn pass(cluster: &Cluster, pods: &[&Member], when: &str) -> Result<()> {
    for pod in pods {
        let before = counted(cluster, pod)?;
        let mut now = before;
        wait::until_true(&format!("probes of {} {when}", pod.name), Duration::from_secs(60), || {
            now = counted(cluster, pod).unwrap_or(now);
            let more = |(now, before): (&(u64, u64), &(u64, u64))| now.0 >= before.0 + 2 * PROBES;
            now.iter().zip(&before).all(more)
        })
        .with_context(|| format!("{KINDS:?}: {before:?}, then {now:?}"))?;
        let failed = |all: &[(u64, u64)]| all.iter().map(|(_, failed)| failed).sum::<u64>();
        let events = || cluster.kubectl(&["get", "events", "-n", "shop"]).unwrap_or_default();
        ensure!(failed(&now) == failed(&before), "{} {when}: {before:?}, then {now:?}\n{}", pod.name, events());
        let state = cluster.get(&["pod", &pod.name, "-n", "shop"])?["status"].clone();
        let is_well = |status: &serde_json::Value| status["ready"] == true && status["restartCount"] == 0;
        let containers = state["containerStatuses"].as_array().context("containers")?;
        ensure!(containers.len() == KINDS.len() && containers.iter().all(is_well), "{when}: {state:#}");
        let seen: Vec<u64> = now.iter().zip(&before).map(|(now, before)| now.0 - before.0).collect();
        figure(&format!("probes of {} {when}", pod.name), format!("{seen:?}"), "passed", &format!("of {KINDS:?}"));
    }
    Ok(())
}

/// Sends a signal to pod-watcher on every node.
fn signal(cluster: &Cluster, name: &str) -> Result<()> {
    let send = |node: &Node| node.exec(&["pkill", &format!("-{name}"), "-x", "pod-watcher"])?.ok().map(drop);
    cluster.lab().nodes().iter().try_for_each(send)
}

#[test]
fn probes_of_strict_pods_pass_and_nobody_else_reaches_their_ports_also_while_pod_watcher_is_dead() -> Result<()> {
    let (cluster, _) = meshed("kube-probes", true)?;
    let web = probed(&cluster, "web", 1)?;
    let exposed = [expose(&cluster, "web", "Cluster", 0)?, expose(&cluster, "web", "Local", 1)?];
    let (near, far) = (start(&cluster, "outside", "near", 1)?, start(&cluster, "outside", "far", 2)?);
    captured(&cluster, &[&web], true)?;
    let strangers = strangers(&cluster, &[&near, &far], &web, &exposed);
    // Before STRICT each of them gets through, or their refusal would prove nothing.
    met(&strangers, true)?;

    cluster.apply(STRICT)?;
    met(&strangers, false)?;
    pass(&cluster, &[&web], "in a STRICT namespace")?;
    // A pod that never was in another.
    let late = probed(&cluster, "late", 2)?;
    captured(&cluster, &[&late], true)?;
    pass(&cluster, &[&late], "STRICT from its start")?;
    // kubelet dials one family; its place is let in over both, and to no port without a probe.
    for ip in &web.ips {
        let kubelets = Place::Node(cluster.lab().node(1));
        for (port, passes) in [(HTTP, true), (TCP, true), (GRPC, true), (UNPROBED, false)] {
            let met = kubelets.asks(SocketAddr::new(*ip, port))?;
            ensure!(met.is_ok() == passes, "the kubelet's place at {ip} port {port}: {met:?}");
        }
    }
    met(&strangers, false)?;

    signal(&cluster, "STOP")?;
    pass(&cluster, &[&web, &late], "with pod-watcher stopped")?;
    met(&strangers, false)?;
    signal(&cluster, "KILL")?;
    pass(&cluster, &[&web, &late], "after pod-watcher was killed")?;
    met(&strangers, false)
}

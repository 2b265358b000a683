//! Whatever a pod of the mesh is made of works: init containers, hooks, Jobs, a StatefulSet that dials itself by its headless name; and
//! what people do to one: exec, logs, port-forward, debug.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use cluster::{APPS, Cluster};
use lab::wait;
use serde_json::json;

use crate::shop::{self, CHANGE, ECHO, Member, PATIENCE, captured, meshed, say, start};
use crate::support::PODS;

/// Where `kubectl port-forward` listens, in the control plane's network.
const FORWARDED: u16 = 17_000;
/// Who may reach `web`, by what is tried here: an answer shows that the asker was known.
const ASKERS: [&str; 4] = ["early", "once", "db", "debugged"];

/// A command that asks echo servers and ends well if every one answers; as JSON, which is YAML too.
fn asking(to: &[IpAddr]) -> String {
    let ask = |ip: &IpAddr| {
        let to = SocketAddr::new(*ip, ECHO);
        format!("culvert-lab client connect {to} --send hello | tee /dev/stderr | grep -q '\"ok\":1'")
    };
    let all: Vec<String> = to.iter().map(ask).collect();
    json!(["/bin/sh", "-c", all.join(" && ")]).to_string()
}

fn account(name: &str) -> String {
    format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: shop}}\n---\n")
}

/// What a pod consists of that does as `command` says in a container of this name.
fn container(name: &str, command: &str) -> String {
    format!("{{name: {name}, image: {APPS}, imagePullPolicy: Never, command: {command}}}")
}

/// An init container, and a hook after the start, that both reach the other node.
fn early(cluster: &Cluster, web: &Member) -> Result<()> {
    let ask = asking(&web.ips);
    cluster.apply(&format!(
        "{}apiVersion: v1
kind: Pod
metadata: {{name: early, namespace: shop}}
spec:
  serviceAccountName: early
  nodeName: node-1
  terminationGracePeriodSeconds: 1
  initContainers: [{}]
  containers:
  - name: app
    image: {APPS}
    imagePullPolicy: Never
    command: [/bin/sh, -c, \"exec culvert-lab app echo:{ECHO}\"]
    lifecycle: {{postStart: {{exec: {{command: {ask}}}}}}}
",
        account("early"),
        container("first", &ask)
    ))?;
    ready(cluster, &["pod/early", "--for=condition=Ready"])?;
    let said = cluster.kubectl(&["logs", "-n", "shop", "early", "-c", "first"])?;
    let answered = said.lines().filter(|report| report.contains("\"ok\":1")).count();
    ensure!(answered == web.ips.len(), "the init container said: {said}");
    let restarts =
        "jsonpath={.status.containerStatuses[*].restartCount} {.status.initContainerStatuses[*].restartCount}";
    let restarts = cluster.kubectl(&["get", "pod", "-n", "shop", "early", "-o", restarts])?;
    // A hook that fails ends its container.
    ensure!(restarts == "0 0", "something was tried again: {restarts}");
    Ok(())
}

fn ready(cluster: &Cluster, what: &[&str]) -> Result<()> {
    let timeout = format!("--timeout={}s", PODS.as_secs());
    cluster
        .kubectl(&[&["wait", "-n", "shop", &timeout], what].concat())
        .map(drop)
        .with_context(|| cluster.kubectl(&["get", "pods,events", "-n", "shop", "-o", "wide"]).unwrap_or_default())
}

fn job(cluster: &Cluster, web: &Member) -> Result<()> {
    cluster.apply(&format!(
        "{}apiVersion: batch/v1
kind: Job
metadata: {{name: once, namespace: shop}}
spec:
  backoffLimit: 0
  template:
    spec:
      serviceAccountName: once
      restartPolicy: Never
      containers: [{}]
",
        account("once"),
        container("app", &asking(&web.ips))
    ))?;
    ready(cluster, &["job/once", "--for=condition=Complete"])
}

/// One pod on each node, which find themselves under their own name and each other by address.
fn stateful_set(cluster: &Cluster, web: &Member) -> Result<()> {
    cluster.apply(&format!(
        "{}apiVersion: v1
kind: Service
metadata: {{name: db, namespace: shop}}
spec: {{clusterIP: None, ipFamilyPolicy: RequireDualStack, selector: {{app: db}}, ports: [{{port: {ECHO}}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db, namespace: shop}}
spec:
  serviceName: db
  replicas: 2
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      serviceAccountName: db
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {{matchLabels: {{app: db}}}}}}
      containers:
      - name: app
        image: {APPS}
        imagePullPolicy: Never
        command: [/bin/sh, -c, \"exec culvert-lab app echo:{ECHO}\"]
        readinessProbe: {{tcpSocket: {{port: {ECHO}}}, periodSeconds: 1}}
",
        account("db")
    ))?;
    let timeout = format!("--timeout={}s", PODS.as_secs());
    cluster.kubectl(&["rollout", "status", "-n", "shop", "statefulset/db", &timeout])?;
    let members: Vec<Member> = ["db-0", "db-1"]
        .iter()
        .map(|name| {
            let node = cluster.get(&["pod", name, "-n", "shop"])?["spec"]["nodeName"].clone();
            let node = node.as_str().and_then(|node| node.strip_prefix("node-")?.parse().ok()).context("a node")?;
            shop::member(cluster, "shop", name, node)
        })
        .collect::<Result<_>>()?;
    captured(cluster, &[&members[0], &members[1]], true)?;
    for member in &members {
        // kubelet writes it into /etc/hosts.
        let own = format!("{}.db.shop.svc.cluster.local:{ECHO}", member.name);
        let said = exec(cluster, &member.name, &["culvert-lab", "client", "connect", &own, "--send", "hello"])?;
        ensure!(said.contains("\"ok\":1"), "{own}: {said}");
        for to in members.iter().chain([web]).flat_map(Member::echo) {
            member.asks(to)?.with_context(|| format!("{} to {to}", member.name))?;
        }
    }
    Ok(())
}

fn exec(cluster: &Cluster, pod: &str, argv: &[&str]) -> Result<String> {
    cluster.kubectl(&[&["exec", "-n", "shop", pod, "--"], argv].concat())
}

fn port_forward(cluster: &Cluster, to: &Member) -> Result<()> {
    let mut command = cluster.command(&cluster.parts().kubectl);
    command.args(["port-forward", "-n", "shop", &format!("pod/{}", to.name), &format!("{FORWARDED}:{ECHO}")]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = cluster.lab().fabric().in_netns(|| command.spawn().context("start kubectl"))?;
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, FORWARDED));
    let through = wait::until_true("the forwarded port to be answered", CHANGE, || {
        let stream = cluster.lab().fabric().in_netns(|| Ok(TcpStream::connect_timeout(&at, PATIENCE)?));
        stream.is_ok_and(|stream| stream.set_read_timeout(Some(PATIENCE)).is_ok() && say(&stream).is_ok())
    });
    let _ = child.kill(); // it may have ended by itself, which the wait has seen
    child.wait()?;
    through
}

/// A container put into a pod that runs: it is in the pod's network, and its connections are the pod's.
fn debug(cluster: &Cluster, pod: &Member, web: &Member) -> Result<()> {
    let ask: Vec<String> = serde_json::from_str(&asking(&web.ips))?;
    let (image, mut argv) = (format!("--image={APPS}"), vec!["debug", "-n", "shop", &pod.name, "-c", "look"]);
    argv.extend([image.as_str(), "--image-pull-policy=Never", "--profile=general", "--attach=false", "--"]);
    argv.extend(ask.iter().map(String::as_str));
    cluster.kubectl(&argv)?;
    let path = "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}";
    let mut code = String::new();
    wait::until_true("the debug container to end", PODS, || {
        code = cluster.kubectl(&["get", "pod", "-n", "shop", &pod.name, "-o", path]).unwrap_or_default();
        !code.is_empty()
    })?;
    let said = cluster.kubectl(&["logs", "-n", "shop", &pod.name, "-c", "look"]).unwrap_or_default();
    ensure!(code == "0", "ended with {code}: {said}");
    Ok(())
}

/// A pod of a runtime class whose name says that it has a kernel of its own: it starts and is reached in clear, nothing of ours is in its
/// network, and it is told so. (The class's handler here is runc: what counts is the name, which is all that is known of a runtime.)
fn other_kernel(cluster: &Cluster, from: &Member) -> Result<()> {
    cluster.apply(&format!(
        "apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {{name: gvisor}}
handler: runc
---
{}apiVersion: v1
kind: Pod
metadata: {{name: sealed, namespace: shop}}
spec:
  runtimeClassName: gvisor
  serviceAccountName: sealed
  nodeName: node-1
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: {APPS}
    imagePullPolicy: Never
    command: [/bin/sh, -c, \"exec culvert-lab app echo:{ECHO}\"]
    readinessProbe: {{tcpSocket: {{port: {ECHO}}}, periodSeconds: 1}}
",
        account("sealed")
    ))?;
    let sealed = shop::member(cluster, "shop", "sealed", 1)?;
    let condition = "jsonpath={.status.conditions[?(@.type==\"culvert.io/Captured\")]['status','reason']}";
    let event = ["get", "events", "-n", "shop", "--field-selector", "reason=NotCaptured,involvedObject.name=sealed"];
    let event = [&event[..], &["-o", "jsonpath={.items[*].message}"]].concat();
    let mut told = (String::new(), String::new());
    wait::until_true("the pod to be told", CHANGE, || {
        let said = cluster.kubectl(&["get", "pod", "-n", "shop", "sealed", "-o", condition]).unwrap_or_default();
        told = (said, cluster.kubectl(&event).unwrap_or_default());
        told.0 == "False OtherKernel" && told.1.contains("a kernel of its own")
    })
    .with_context(|| format!("{told:?}"))?;
    ensure!(sealed.ours()?.is_empty(), "in its network: {:?}", sealed.ours()?);
    shop::until(from, &sealed, true)
}

#[test]
fn init_containers_hooks_jobs_and_stateful_sets_work_in_the_mesh_and_so_do_exec_logs_port_forward_and_debug()
-> Result<()> {
    let (cluster, _) = meshed("kube-pods", true)?;
    let (web, guest) = (start(&cluster, "shop", "web", 2)?, start(&cluster, "shop", "guest", 1)?);
    let pod = start(&cluster, "shop", "debugged", 1)?;
    captured(&cluster, &[&web, &guest, &pod], true)?;
    cluster.apply(&format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: known, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  rules: [{{from: [{{source: {{serviceAccounts: [{}]}}}}]}}]
",
        ASKERS.join(", ")
    ))?;
    // Without one of these accounts there is no answer.
    shop::until(&guest, &web, false)?;
    early(&cluster, &web).context("init container and hook")?;
    job(&cluster, &web).context("Job")?;
    stateful_set(&cluster, &web).context("StatefulSet")?;
    other_kernel(&cluster, &guest).context("a kernel of its own")?;

    ensure!(exec(&cluster, &web.name, &["hostname"])?.trim() == web.name, "exec is in another pod");
    port_forward(&cluster, &web).context("port-forward")?;
    debug(&cluster, &pod, &web).context("debug")?;
    let logs = cluster.kubectl(&["logs", "-n", "shop", &web.name])?;
    ensure!(logs.contains("ready"), "logs: {logs}");
    // The init container's connections were the mesh's, as its account, across the nodes.
    wait::until_true("the line of the init container", CHANGE, || {
        shop::access_log(&cluster, 1).unwrap_or_default().iter().any(|line| {
            line["source_pod"] == "shop/early"
                && line["security"] == "mutual_tls"
                && line["source_identity"] == "spiffe://cluster.local/ns/shop/sa/early"
        })
    })
}

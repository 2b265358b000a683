//! The control plane: etcd, API server, controller manager and scheduler on the lab's fabric, and their certificates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Result;
use lab::{Lab, Process, Program, plan};

use crate::parts::INSIDE;
use crate::pki::{Pki, Use};
use crate::ready;

/// Virtual addresses of Services, those the lab plans with.
pub(crate) const SERVICES: [&str; 2] = [plan::CLUSTER_RANGES[1], plan::CLUSTER_RANGES[3]];
/// Addresses of pods on all nodes.
pub(crate) const PODS: [&str; 2] = [plan::CLUSTER_RANGES[0], plan::CLUSTER_RANGES[2]];
/// The Service `kubernetes`: always the first address of each range.
const KUBERNETES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 128, 1)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0x80, 0, 0, 0, 1))];
/// etcd and the API server are ready 4 s after their start on two idle cores; a first start on a busy machine took 30 s.
const DEADLINE: Duration = Duration::from_secs(120);
/// Where etcd keeps its data: in memory, for it flushes each write to disk and nobody needs it after a power cut of the machine.
const DATA: &str = "/run/etcd";

/// Where clients find the API server.
pub(crate) fn server() -> String {
    format!("https://{}:6443", plan::CONTROL_PLANE_V4)
}

/// Certificates of the control plane and of its clients.
pub(crate) fn certificates(pki: &Pki) -> Result<()> {
    let dns = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let own: [IpAddr; 4] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        plan::CONTROL_PLANE_V4.into(),
        plan::CONTROL_PLANE_V6.into(),
    ];
    let to = Use::Server { dns: dns.map(str::to_owned).to_vec(), ips: own.into_iter().chain(KUBERNETES).collect() };
    pki.issue("apiserver", "kube-apiserver", None, to)?;
    pki.issue("apiserver-kubelet", "kube-apiserver-kubelet-client", Some("system:masters"), Use::Client)?;
    let server = server();
    pki.client("admin", "admin", Some("system:masters"), &server)?;
    pki.client("controller-manager", "system:kube-controller-manager", None, &server)?;
    pki.client("scheduler", "system:kube-scheduler", None, &server)?;
    pki.client("proxy", "system:kube-proxy", None, &server)
}

/// Starts etcd and the API server; they are ready some seconds later, see [`finish`].
pub(crate) fn start(lab: &Lab) -> Result<Process> {
    let etcd = lab.fabric().spawn(
        Program::new("etcd", &["/usr/bin/etcd"])
            .args(["--data-dir", DATA, "--log-level", "warn", "--quota-backend-bytes", "1500000000"])
            .args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"]),
    )?;
    ready::until(&etcd, "etcd to listen", DEADLINE, || {
        let listens = || Ok(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, 2379))?);
        lab.fabric().in_netns(listens).ok().map(drop)
    })?;
    let pki = |name: &str| lab.dir().join("pki").join(name).display().to_string();
    lab.fabric().spawn(
        program("kube-apiserver")
            .args(["--etcd-servers", ETCD, "--bind-address", "::", "--secure-port", "6443"])
            .args(["--advertise-address".to_owned(), plan::CONTROL_PLANE_V4.to_string()])
            .args(["--service-cluster-ip-range".to_owned(), SERVICES.join(",")])
            .args(["--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction"])
            // Webhooks and aggregated APIs are reached by pod address: the control plane has routes to the pods, and none of
            // kube-proxy's rules.
            .args(["--enable-aggregator-routing", "--allow-privileged"])
            .args(["--client-ca-file".to_owned(), pki("ca.crt")])
            .args(["--tls-cert-file".to_owned(), pki("apiserver.crt")])
            .args(["--tls-private-key-file".to_owned(), pki("apiserver.key")])
            .args(["--kubelet-client-certificate".to_owned(), pki("apiserver-kubelet.crt")])
            .args(["--kubelet-client-key".to_owned(), pki("apiserver-kubelet.key")])
            .args(["--kubelet-certificate-authority".to_owned(), pki("ca.crt")])
            // Node names are not in any DNS: without this exec and logs fail.
            .args(["--kubelet-preferred-address-types", "InternalIP"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc.cluster.local"])
            .args(["--service-account-key-file".to_owned(), pki("sa.pub")])
            .args(["--service-account-signing-key-file".to_owned(), pki("sa.key")]),
    )
}

const ETCD: &str = "http://127.0.0.1:2379";

/// Waits for the API server, then starts what follows it. Not before: both give up when it is not there within 10 s.
pub(crate) fn finish(lab: &Lab, api: &Process, is_ready: impl Fn() -> bool) -> Result<()> {
    ready::until(api, "the API server to say it is ready", DEADLINE, ready::now_and_then(|| is_ready().then_some(())))?;
    let pki = |name: &str| lab.dir().join("pki").join(name).display().to_string();
    // One of each, so nobody to elect a leader with. Request rates raised from 20 per second, which tests with many objects exceed.
    let common = |name: &str, conf: &str| {
        program(name)
            .args(["--leader-elect=false", "--kube-api-qps=500", "--kube-api-burst=1000"])
            .args(["--kubeconfig".to_owned(), pki(conf)])
    };
    lab.fabric().spawn(
        common("kube-controller-manager", "controller-manager.conf")
            .args(["--use-service-account-credentials", "--allocate-node-cidrs=false"])
            .args(["--root-ca-file".to_owned(), pki("ca.crt")])
            .args(["--service-account-private-key-file".to_owned(), pki("sa.key")])
            .args(["--cluster-signing-cert-file".to_owned(), pki("ca.crt")])
            .args(["--cluster-signing-key-file".to_owned(), pki("ca.key")])
            .args(["--cluster-cidr".to_owned(), PODS.join(",")])
            .args(["--service-cluster-ip-range".to_owned(), SERVICES.join(",")]),
    )?;
    lab.fabric().spawn(common("kube-scheduler", "scheduler.conf"))?;
    Ok(())
}

/// A component of Kubernetes under its own name.
pub(crate) fn program(name: &str) -> Program {
    Program::new(name, &[&format!("{INSIDE}/{name}")])
}

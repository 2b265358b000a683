//! A node's programs: containerd, kubelet, kube-proxy, with their configuration and in their order.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::{Families, Lab, Node, Process, cgroup, plan};
use serde_json::{Value, json};

use crate::control::{PODS, program, server};
use crate::pki::{Pki, Use};
use crate::{dns, images, ready};

/// containerd listens within a second, on a busy machine within ten.
const DEADLINE: Duration = Duration::from_secs(60);
/// Where containerd listens, as the node sees it.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// Kernel settings of the whole machine that kubelet would set (`setupKernelTunables`): each node has a copy.
pub(crate) const SHIELD: [&str; 6] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
];

/// After `bridge`: hostPort.
pub(crate) fn portmap() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true } })
}

/// The names of a node's programs.
pub(crate) fn names(index: usize) -> [String; 3] {
    ["containerd", "kubelet", "kube-proxy"].map(|name| format!("{name}-{index}"))
}

/// A node's certificates: it names itself to the API server, and is named by it.
pub(crate) fn certificates(pki: &Pki, index: usize) -> Result<()> {
    let name = plan::node_name(index);
    let user = format!("system:node:{name}");
    pki.client(&name, &user, Some("system:nodes"), &server())?;
    let ips = plan::node_ips(index, Families::Dual);
    pki.issue(&format!("{name}-server"), &user, Some("system:nodes"), Use::Server { dns: vec![name.clone()], ips })
}

/// Starts containerd and gives it its images. Everything here can be done again: a boot after a power cut does.
pub(crate) fn runtime(lab: &Lab, node: &Node) -> Result<()> {
    bridge_through_netfilter(node)?;
    let config = conf(lab, node, "containerd.toml", CONTAINERD)?;
    let [name, ..] = names(node.index());
    let containerd = node.spawn(lab::Program::new(name, &["/usr/bin/containerd", "--config"]).args([config]))?;
    let socket = || node.init().root(SOCKET).exists();
    ready::until(&containerd, "containerd to listen", DEADLINE, || {
        let answers = || node.exec(&["ctr", "version"]).is_ok_and(|output| output.exit.success());
        (socket() && answers()).then_some(())
    })?;
    images::import(lab, node).with_context(|| ready::explain(&containerd))
}

/// Starts kubelet and kube-proxy.
pub(crate) fn agents(lab: &Lab, node: &Node) -> Result<()> {
    let (name, index) = (node.name(), node.index());
    let group = cgroup::prepare_root(lab.name(), &format!("{name}/pods"))?;
    let kubelet_conf = conf(lab, node, "kubelet.json", &format!("{:#}", kubelet(lab, name, &group)))?;
    let proxy_conf = conf(lab, node, "proxy.json", &format!("{:#}", proxy(lab, name)))?;
    let ips: Vec<String> = node.ips().iter().map(ToString::to_string).collect();
    let [_, kubelet_name, proxy_name] = names(index);
    let pki = |file: &str| lab.dir().join("pki").join(file).display().to_string();
    let mut kubelet = program("kubelet")
        .args(["--config".to_owned(), kubelet_conf, "--kubeconfig".to_owned(), pki(&format!("{name}.conf"))])
        .args(["--hostname-override", name, "--node-ip", &ips.join(","), "--root-dir", "/var/lib/kubelet", "--v=2"]);
    kubelet.name = kubelet_name;
    node.spawn(kubelet)?;
    let mut proxy = program("kube-proxy").args(["--config".to_owned(), proxy_conf]);
    proxy.name = proxy_name;
    node.spawn(proxy)?;
    Ok(())
}

/// The programs of a node that runs, for an error.
pub(crate) fn kubelet_of(lab: &Lab, index: usize) -> Option<Process> {
    let [_, kubelet, _] = names(index);
    lab.processes().remove(&kubelet)
}

/// A reply from one pod to another on the same bridge must pass the node's connection tracking, or the address of a Service in it
/// is never turned back. On in every new namespace unless the machine says otherwise.
fn bridge_through_netfilter(node: &Node) -> Result<()> {
    node.in_netns(|| {
        for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let path = Path::new("/proc/sys/net/bridge").join(name);
            fs::write(&path, "1").with_context(|| format!("write {} (kernel module br_netfilter)", path.display()))?;
        }
        Ok(())
    })
}

/// A configuration file in the cluster's directory, which the node sees under the same path.
fn conf(lab: &Lab, node: &Node, file: &str, text: &str) -> Result<String> {
    let path = lab.dir().join("nodes").join(node.name()).join(file);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path.display().to_string())
}

/// No systemd, no AppArmor, and no right to lower an OOM score below the machine's own.
const CONTAINERD: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/culvert/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#;

fn kubelet(lab: &Lab, name: &str, group: &str) -> Value {
    let pki = |file: &str| lab.dir().join("pki").join(file);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // Machines with version 1 and hybrid control groups are still around.
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": group,
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pki(&format!("{name}-server.crt")),
        "tlsPrivateKeyFile": pki(&format!("{name}-server.key")),
        "clusterDNS": dns::ADDRESSES,
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "failSwapOn": false,
        // What follows keeps kubelet from limiting or judging a machine that it shares with others.
        "oomScoreAdj": 0,
        "enforceNodeAllocatable": [],
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%", "nodefs.inodesFree": "0%",
            "imagefs.available": "0%", "imagefs.inodesFree": "0%",
        },
        "nodeStatusUpdateFrequency": "5s",
        "maxPods": 250,
    })
}

fn proxy(lab: &Lab, name: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": { "kubeconfig": lab.dir().join("pki/proxy.conf") },
        "hostnameOverride": name,
        "clusterCIDR": PODS.join(","),
        // These settings belong to the machine.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        "nodePortAddresses": ["primary"],
    })
}

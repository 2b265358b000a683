//! A pod as the runtime makes it before it calls plugins: a netns with `lo` up. Its processes, if it has any, sit in a cgroup that is
//! named as kubelet names it.

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use mesh_net::Netns;
use mesh_net::capture::{Found, Mode, Session};
use serde_json::{Value, json};

use super::run;

pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub container: String,
    pub netns: Netns,
    process: Option<(Child, PathBuf)>,
}

static NUMBER: AtomicU32 = AtomicU32::new(1);

impl Pod {
    pub fn new(namespace: &str, name: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let uid = format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id());
        let netns = Netns::create().expect("netns of a pod");
        netns.run(|| run("ip", &["link", "set", "lo", "up"])).expect("entered");
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            container: format!("c{number}"),
            uid,
            netns,
            process: None,
        }
    }

    /// One that kubelet calls by the hash of its file.
    pub fn new_static(namespace: &str, name: &str) -> Self {
        let mut pod = Self::new(namespace, name);
        pod.uid = pod.uid.replace('-', "");
        pod
    }

    pub fn manifest(&self, mesh: Option<&str>) -> Value {
        let labels = mesh.map(|value| json!({ "culvert.io/mesh": value })).unwrap_or(json!({}));
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": self.uid, "labels": labels},
            "spec": {"nodeName": "n1", "serviceAccountName": "buyer", "containers": [{
                "name": "app", "image": "i", "livenessProbe": {"httpGet": {"path": "/", "port": 8080}},
            }]},
        })
    }

    /// The object that kubelet makes in the API for a static pod: with a uid of its own, while the pod is called otherwise on the node.
    pub fn mirror(&self, uid: &str, addresses: &[&str], mesh: Option<&str>) -> Value {
        let mut object = self.manifest(mesh);
        object["metadata"]["uid"] = json!(uid);
        let hash = self.uid.as_str();
        object["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash, "kubernetes.io/config.source": "file"});
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        object["status"] = json!({ "podIPs": ips });
        object
    }

    /// What the plugins before ours made.
    pub fn result(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "mac": "0a:58:c6:12:01:02", "sandbox": self.netns_path()}],
            "ips": [{"address": "198.18.1.2/24", "interface": 0}, {"address": "fd77:0:0:1::2/64", "interface": 0}],
        })
    }

    pub fn netns_path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_fd().as_raw_fd())
    }

    /// What is in force, read by a session of our own.
    pub fn rules(&self) -> Option<Found> {
        let mut session = Session::open(&self.netns, Mode::Plain).expect("session");
        // One that goes away while it is read is read again.
        let again = (0..3).find_map(|_| session.read().ok());
        again.unwrap_or_else(|| session.read().expect("read"))
    }

    pub fn stage(&self) -> Option<mesh_net::capture::Stage> {
        self.rules().and_then(|found| found.spec).map(|spec| spec.stage)
    }

    /// Runs a process in the pod.
    pub fn start_process(&mut self) {
        let dir = cgroup_root().join(format!("pod{}", self.uid));
        // The end of another test's process may take the root away in between.
        (0..50).find_map(|_| std::fs::create_dir_all(&dir).ok()).expect("cgroup");
        let child = self
            .netns
            .run(|| Command::new("sleep").arg("600").stdin(Stdio::null()).spawn())
            .expect("entered")
            .expect("sleep");
        std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).expect("moved into its cgroup");
        self.process = Some((child, dir));
    }

    pub fn end_process(&mut self) {
        if let Some((mut child, dir)) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_dir(dir);
            let _ = std::fs::remove_dir(cgroup_root());
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.end_process();
    }
}

/// In a hierarchy that this machine has, apart from other tests.
fn cgroup_root() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let fields = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
    let mount = mounts
        .lines()
        .map(fields)
        .find(|fields| fields[2] == "cgroup2")
        .or_else(|| mounts.lines().map(fields).find(|fields| fields[2] == "cgroup"));
    Path::new(&mount.expect("a cgroup hierarchy")[1]).join(format!("culvert-watcher-test-{}", std::process::id()))
}

//! One node for a test: a netns of its own with the real pod-watcher in it, the real `culvert-cni` called as a runtime calls it, a
//! keeper that does what the test says, and pods that are bare network namespaces. Everything ends with the value.
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

pub mod api;
pub mod ended;
pub mod flows;
pub mod keeper;
pub mod pod;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mesh_net::Netns;
use serde_json::{Value, json};

pub use ended::{ended, plugin, run};
pub use keeper::{FakeKeeper, Seen};
pub use pod::Pod;

/// A node.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub netns: Netns,
    pub watcher: Option<Child>,
    pub flags: Vec<String>,
}

impl Node {
    /// With pod-watcher running; `flags` are added to its command line.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_with(flags, |_| Vec::new())
    }

    /// The same, with flags that depend on what is set up in the node before.
    pub fn start_with(flags: &[&str], prepare: impl FnOnce(&Self) -> Vec<String>) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
        // Two hundred namespaces and their listeners are held by this process.
        let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        limit.current = limit.maximum;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("soft limit up to the hard one");
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join("source")).expect("directory");
        let mut node = Self {
            dir,
            netns: Netns::create().expect("netns of the node"),
            watcher: None,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        };
        node.netns.run(|| run("ip", &["link", "set", "lo", "up"])).expect("entered");
        node.namespace("shop", Some("enabled"));
        node.namespace("tools", None);
        let more = prepare(&node);
        node.flags.extend(more);
        node.start_watcher();
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts pod-watcher and waits until it serves.
    pub fn start_watcher(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pod-watcher"));
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("log");
        command
            .args(["--node-name", "n1", "--metrics-address", "127.0.0.1:15025"])
            .env("CULVERT_SOURCE", self.path("source"))
            .arg("--cni-socket")
            .arg(self.path("run/cni.sock"))
            .arg("--proxy-socket")
            .arg(self.path("run/proxy.sock"))
            .arg("--admin-socket")
            .arg(self.path("run/admin.sock"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .arg("--status-dir")
            .arg(self.path("status"))
            .args(&self.flags)
            .env("CULVERT_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // A child of this thread starts in the netns that the thread is in.
        let child = self.netns.run(|| command.spawn());
        self.watcher = Some(child.expect("entered").expect("pod-watcher starts"));
        let (admin, log) = (self.path("run/admin.sock"), self.path("log"));
        eventually("pod-watcher serves", || {
            let up = std::os::unix::net::UnixStream::connect(&admin).is_ok();
            if !up && self.watcher.as_mut().is_some_and(|child| child.try_wait().expect("status").is_some()) {
                panic!("pod-watcher ended:\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            up
        });
    }

    /// `kill -9`.
    pub fn kill_watcher(&mut self) {
        let mut child = self.watcher.take().expect("running");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    pub fn namespace(&self, name: &str, mesh: Option<&str>) {
        let labels = mesh.map(|value| json!({ "culvert.io/mesh": value })).unwrap_or(json!({}));
        self.manifest(
            &format!("ns-{name}"),
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        );
    }

    /// Renamed into place.
    pub fn manifest(&self, name: &str, object: &Value) {
        let aside = self.path("aside");
        std::fs::write(&aside, object.to_string()).expect("written");
        std::fs::rename(&aside, self.path("source").join(format!("{name}.json"))).expect("renamed");
    }

    /// See [`Caller::cni`].
    pub fn cni(&self, command: &str, pod: &Pod, extra: Value) -> (bool, Value, Duration) {
        self.caller().cni(command, pod, extra)
    }

    /// A runtime of this node, for another thread.
    pub fn caller(&self) -> Caller {
        Caller { socket: self.path("run/cni.sock"), state: self.path("state") }
    }

    pub fn add(&self, pod: &Pod) -> (bool, Value, Duration) {
        self.cni("ADD", pod, json!({}))
    }

    pub fn del(&self, pod: &Pod) {
        let (ok, answer, _) = self.cni("DEL", pod, json!({}));
        assert!(ok && answer.is_null(), "DEL: {answer}");
    }

    /// `pod-watcher admin … -o json`, the same binary.
    pub fn admin(&self, args: &[&str]) -> Value {
        let child = Command::new(env!("CARGO_BIN_EXE_pod-watcher"))
            .args(["admin", "-o", "json", "--admin-socket"])
            .arg(self.path("run/admin.sock"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let output = ended(child, &format!("pod-watcher admin {args:?}"), Duration::from_secs(30));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The admin view of one pod.
    pub fn view(&self, pod: &Pod) -> Option<Value> {
        let all = self.admin(&["pods"]);
        all["pods"].as_array().expect("list").iter().find(|one| one["uid"] == pod.uid.as_str()).cloned()
    }

    /// Reasons of all events, oldest first.
    pub fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("status/events.jsonl")).unwrap_or_default();
        // The last one may be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    pub fn event(&self, reason: &str) -> Option<Value> {
        self.events().into_iter().rev().find(|event| event["reason"] == reason)
    }

    /// What pod-watcher uses.
    pub fn usage(&self) -> Usage {
        let pid = self.watcher.as_ref().expect("running").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("procfs");
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|rest| rest.split_whitespace().next());
        // Of the whole process, threads that have ended included: fields 14 and 15, in hundredths of a second.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("procfs");
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks: u64 = after_name.split(' ').skip(11).take(2).filter_map(|text| text.parse::<u64>().ok()).sum();
        Usage {
            descriptors: descriptors(pid),
            resident_kib: resident.and_then(|text| text.parse().ok()).expect("a number"),
            cpu: Duration::from_millis(ticks * 10),
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

/// What calls the plugin.
pub struct Caller {
    socket: PathBuf,
    state: PathBuf,
}

impl Caller {
    /// Calls culvert-cni as a runtime does: (exit code is 0, standard output, how long it took).
    pub fn cni(&self, command: &str, pod: &Pod, extra: Value) -> (bool, Value, Duration) {
        let mut conf = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "culvert-cni",
            "socket": self.socket, "stateDir": self.state, "timeoutSeconds": 15,
            "prevResult": pod.result(),
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        let mut call = Command::new(plugin());
        call.env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.container)
            .env("CNI_NETNS", pod.netns_path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
                    pod.namespace, pod.name, pod.uid
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = call.spawn().expect("culvert-cni starts");
        child.stdin.take().expect("piped").write_all(conf.to_string().as_bytes()).expect("written");
        // Twice the patience that it has itself.
        let output = ended(child, &format!("culvert-cni {command}"), Duration::from_secs(30));
        let took = begun.elapsed();
        assert!(output.stderr.is_empty(), "culvert-cni wrote to stderr: {}", String::from_utf8_lossy(&output.stderr));
        let answer =
            if output.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&output.stdout).expect("JSON") };
        (output.status.success(), answer, took)
    }
}

/// How many descriptors of each kind: `socket`, `/dev/null`, `anon_inode`, a path.
fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("procfs").flatten() {
        // One that was closed since is none.
        let Ok(target) = std::fs::read_link(fd.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        // Opened once, for the first random mark, and kept: a static binary's way to the kernel's generator.
        if target == "/dev/urandom" {
            continue;
        }
        let kind = if target.starts_with("socket:") { "socket" } else { target.split('[').next().unwrap_or_default() };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

/// What a process uses.
#[derive(Debug)]
pub struct Usage {
    pub descriptors: BTreeMap<String, usize>,
    pub resident_kib: u64,
    pub cpu: Duration,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.watcher.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of pod-watcher ---\n{}", self.log());
        }
    }
}

/// Waits for a fact.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    within(Duration::from_secs(20), what, &mut holds);
}

/// Waits for a fact, and says how long it took.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        // A look, not a wait for time: the fact has no notification that a test could take.
        let _ = rustix::event::poll(&mut [], Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 5_000_000 }));
    }
    begun.elapsed()
}

/// Whether a culvert-cni that this process started is running.
pub fn plugin_runs() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").expect("procfs").filter_map(Result::ok);
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    children
        .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .any(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "culvert-cni"))
}

/// `ip` with many lines, in the netns of the calling thread.
pub fn ip_batch(lines: &str) {
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(lines.as_bytes()).expect("written");
    run("ip", &["-batch", file.path().to_str().expect("text")]);
}

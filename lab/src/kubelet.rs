//! Kubelet's and containerd's part: the steps that make a pod and take it away, in their order.
//!
//! Manifest with uid and node name → network namespace → CNI ADD → sandbox process → addresses in the status → app →
//! readiness. Away: deletion mark → app ended → sandbox ended → CNI DEL → namespace gone → manifest gone.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::handle::PodHandle;
use crate::lab::Shared;
use crate::pod::{App, PodRecord};
use crate::proc::Process;
use crate::spawn::{self, Mounts, Place, Program, User};
use crate::{cgroup, init, ns, objects, wait};

/// How long an app may take to listen.
const APP_DEADLINE: Duration = Duration::from_secs(20);
/// terminationGracePeriodSeconds
const GRACE: Duration = Duration::from_secs(1);

impl Shared {
    /// Everything up to the running sandbox: what containerd calls RunPodSandbox.
    pub(crate) fn run_sandbox(&self, pod: &PodHandle) -> Result<()> {
        self.write_pod(&pod.record())?;
        if pod.record().pod.host_network {
            let ips = self.node(pod.node())?.ips();
            pod.with(|s| s.record.ips = ips);
        } else {
            self.attach(pod)?;
        }
        let pause = self.start_pause(pod)?;
        pod.with(|s| {
            s.record.pause = Some(pause.id());
            s.pause = Some(pause);
        });
        self.write_pod(&pod.record())
    }

    fn attach(&self, pod: &PodHandle) -> Result<()> {
        let record = pod.record();
        let node = self.node(record.node)?;
        node.exec(&["ip", "netns", "add", &record.netns])?.ok().context("make a network namespace")?;
        let families = self.families;
        let netns = self.netns_of(&record);
        ns::ip_batch(&netns, "link set lo up\n")?;
        if families.v6() {
            // Duplicate address detection would cost each pod more than a second.
            ns::in_netns(&netns, || {
                for name in ["all", "default"] {
                    fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0")?;
                }
                Ok(())
            })?;
        }
        let added = node.network(|network| network.add(&record.attachment()))?;
        pod.with(|s| {
            s.record.ips = families.filter(added.ips());
            s.record.added = added;
        });
        Ok(())
    }

    fn start_pause(&self, pod: &PodHandle) -> Result<Process> {
        let record = pod.record();
        let hosts = self.hosts_file(&record);
        fs::write(&hosts, "127.0.0.1 localhost\n").with_context(|| format!("write {}", hosts.display()))?;
        let node = self.node(record.node)?;
        let at = Place {
            init: node.init(),
            net: self.netns_of(&record),
            mount: node.init().ns("mnt"),
            cgroup: record.cgroup(),
        };
        let mut program =
            Program::new(format!("pause-{}", record.uid), &["culvert-lab", "pause"]).as_user(User::plain(65535));
        program.cgroup = Some(format!("{}/sandbox", record.cgroup()));
        program.mounts = Mounts { bind: vec![(hosts, "/etc/hosts".into())], ..Mounts::default() };
        let now = spawn::start(&self.dir, &at, &program)?;
        let pause = Process::started(program, at, self.dir.clone(), now);
        // Its mount namespace is joined by what comes next, so it must stand.
        pause.wait_stdout(init::READY, APP_DEADLINE)?;
        Ok(pause)
    }

    /// Starts the pod's app and waits until it serves; then the pod is ready.
    pub(crate) fn start_app(&self, pod: &PodHandle) -> Result<()> {
        let record = pod.record();
        let program = match &record.pod.app {
            App::None => None,
            App::Command(argv) => Some(pod.program("app", &argv.iter().map(String::as_str).collect::<Vec<_>>())),
            App::Serve(servers) => {
                let stats = pod.stats_file();
                if !stats.exists() {
                    // Made here, for any user of the pod may have to write it.
                    fs::write(&stats, "").with_context(|| format!("write {}", stats.display()))?;
                    use std::os::unix::fs::PermissionsExt;
                    fs::set_permissions(&stats, fs::Permissions::from_mode(0o666))?;
                }
                let argv = ["culvert-lab", "app", "--name", &record.pod.name, "--stats"];
                Some(
                    pod.program("app", &argv)
                        .args([stats.to_string_lossy().into_owned()])
                        .args(servers.iter().cloned()),
                )
            }
        };
        if let Some(program) = program {
            let app = match pod.app() {
                Some(app) => {
                    app.restart()?;
                    app
                }
                None => pod.spawn(program)?,
            };
            if matches!(record.pod.app, App::Serve(_)) {
                app.wait_stdout(init::READY, APP_DEADLINE)?;
            }
            pod.with(|s| s.app = Some(app));
        }
        self.probe(&record)?;
        pod.with(|s| {
            s.record.running = true;
            s.record.ready = true;
        });
        self.write_pod(&pod.record())
    }

    /// Kubelet's readiness probes: from the node's own network to the pod's address.
    fn probe(&self, record: &PodRecord) -> Result<()> {
        let node = self.node(record.node)?;
        let Some(ip) = record.ips.first() else { return Ok(()) };
        for port in &record.pod.probe_ports {
            let to = SocketAddr::new(*ip, *port);
            wait::until_true(&format!("the probe of {} at {to} to succeed", record.pod.key()), APP_DEADLINE, || {
                node.in_netns(|| Ok(std::net::TcpStream::connect_timeout(&to, Duration::from_secs(1))?)).is_ok()
            })?;
        }
        Ok(())
    }

    /// Ends the app and marks the pod as going.
    pub(crate) fn stop_app(&self, pod: &PodHandle) -> Result<()> {
        pod.with(|s| (s.record.ending, s.record.ready) = (true, false));
        self.write_pod(&pod.record())?;
        self.publish()?;
        if let Some(app) = pod.app() {
            app.stop(GRACE)?;
            app.forget();
        }
        Ok(())
    }

    /// Everything after the app's end: what containerd calls StopPodSandbox and RemovePodSandbox. Goes on after a failed
    /// DEL, as kubelet would with its next try, and returns the failure.
    pub(crate) fn remove_sandbox(&self, pod: &PodHandle) -> Result<()> {
        let record = pod.record();
        if let Some(pause) = pod.with(|s| s.pause.take()) {
            pause.kill()?;
            pause.forget();
        }
        let node = self.node(record.node)?;
        let mut deleted = Ok(Vec::new());
        if !record.pod.host_network {
            deleted = node.network(|network| network.del(&record.attachment()));
            if self.netns_of(&record).exists() {
                node.exec(&["ip", "netns", "del", &record.netns])?.ok().context("remove the network namespace")?;
            }
        }
        cgroup::remove(self.dir.name(), &record.cgroup())?;
        for path in [self.hosts_file(&record), self.manifest(&manifest_name(&record)), self.dir.join(record.file())] {
            let _ = fs::remove_file(path);
        }
        deleted.map(drop).with_context(|| format!("remove pod {}", record.pod.key()))
    }

    /// Network namespace of a pod, as a path seen from outside.
    pub(crate) fn netns_of(&self, record: &PodRecord) -> std::path::PathBuf {
        match self.node(record.node) {
            Ok(node) if record.pod.host_network => node.netns(),
            Ok(node) => node.init().root(format!("/run/netns/{}", record.netns)),
            Err(_) => std::path::PathBuf::new(),
        }
    }

    pub(crate) fn hosts_file(&self, record: &PodRecord) -> std::path::PathBuf {
        self.dir.join(format!("pods/{}-hosts", record.uid))
    }

    /// The pod's record and its manifest.
    pub(crate) fn write_pod(&self, record: &PodRecord) -> Result<()> {
        self.dir.write(record.file(), record)?;
        self.write_manifest(&manifest_name(record), &[objects::pod(record)])
    }
}

pub(crate) fn manifest_name(record: &PodRecord) -> String {
    format!("pod-{}-{}", record.pod.namespace, record.pod.name)
}

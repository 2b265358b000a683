//! Starting the mesh: directories with their owners and modes, then each process as exactly the user its manifest names.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::config::{CNI_SOCKET, CONTROL_PLANE_UID, MeshConfig, ROOT_NAMESPACE, WORKER_UID};
use super::{Mesh, OnNode, READY_DEADLINE, lock, proxy_name};
use crate::lab::Lab;
use crate::node::Node;
use crate::pod::{App, Pod};
use crate::proc::Process;
use crate::spawn::{Mounts, Program, User};
use crate::{plan, wait};

impl Mesh {
    /// Starts the control plane, then every node's processes; returns when every worker is ready.
    pub(crate) fn start(lab: &Lab, config: &MeshConfig) -> Result<Mesh> {
        let mesh = Mesh::new(lab, config);
        lab.namespace(ROOT_NAMESPACE, &[])?;
        lab.namespace("kube-system", &[])?;
        if config.control_plane {
            mesh.write_tokens(lab)?;
            *lock(&mesh.control_plane) = Some(mesh.start_control_plane(lab)?);
        }
        if config.nodes {
            for index in 1..=lab.nodes().len() {
                mesh.launch_node(lab, index)?;
            }
            for index in 1..=lab.nodes().len() {
                mesh.wait_ready(index)?;
            }
        }
        Ok(mesh)
    }

    /// Starts one node's processes after a boot.
    pub(crate) fn start_node(&self, lab: &Lab, index: usize) -> Result<()> {
        if !self.config.nodes {
            return Ok(());
        }
        self.launch_node(lab, index)?;
        self.wait_ready(index)
    }

    /// The directory of the control plane's own files, as it and this process see it.
    fn control_plane_dir(&self) -> std::path::PathBuf {
        self.lab.dir.join("control-plane")
    }

    fn write_tokens(&self, lab: &Lab) -> Result<()> {
        let dir = self.control_plane_dir();
        crate::state::make_dir(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        chown(&dir, Some(CONTROL_PLANE_UID), Some(CONTROL_PLANE_UID))?;
        let tokens: Map<String, Value> =
            lab.nodes().iter().map(|node| (self.token(node.index()), Value::from(node.name()))).collect();
        owned(&dir.join("tokens.json"), serde_json::to_string(&tokens)?.as_bytes(), CONTROL_PLANE_UID, 0o400)
    }

    /// A node's token: random once per lab, kept with the lab's records.
    fn token(&self, index: usize) -> String {
        let record = format!("nodes/{}-token", plan::node_name(index));
        self.lab.dir.read(&record).unwrap_or_else(|_| {
            let fresh = format!("{:032x}", rand::random::<u128>());
            // Not written: the next reader makes another one, and the worker is refused by name. Nothing is hidden.
            let _ = self.lab.dir.write(&record, &fresh);
            fresh
        })
    }

    fn start_control_plane(&self, lab: &Lab) -> Result<Process> {
        let (manifests, own) = (lab.dir().join("manifests"), self.control_plane_dir());
        let argv = self.config.control_plane(&manifests.to_string_lossy(), &own.to_string_lossy());
        let program = Program::new("control-plane", &[]).args(argv).as_user(User::plain(CONTROL_PLANE_UID));
        let process = lab.fabric().spawn(program)?;
        let root = own.join("root-cert.pem");
        self.wait_for_file(&process, &root)?;
        let at = std::net::SocketAddr::new(self.control_plane_ip(), plan::CONTROL_PLANE_PORT);
        wait::until_true("the control plane to listen", READY_DEADLINE, || {
            lab.fabric().in_netns(|| Ok(std::net::TcpStream::connect_timeout(&at, READY_DEADLINE)?)).is_ok()
        })
        .with_context(|| process.tail(15))?;
        Ok(process)
    }

    /// Starts pod-watcher, the node-proxy pod, keeper and worker of a node; the worker need not be ready yet.
    fn launch_node(&self, lab: &Lab, index: usize) -> Result<()> {
        let node = lab.shared.node(index)?;
        self.directories(node)?;
        let manifests = lab.dir().join("manifests");
        let argv = self.config.watcher(node.name(), &manifests.to_string_lossy());
        let mut watcher = Program::new(format!("pod-watcher-{index}"), &[])
            .args(argv)
            .as_user(User::root().with_caps(&["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"]));
        // Of its own, so that what the kernel holds for it is told from what other programs of the node left there.
        watcher.cgroup = Some(format!("{}/system/pod-watcher", node.name()));
        let watcher = node.spawn(watcher)?;
        self.wait_for_file(&watcher, &node.init().root(CNI_SOCKET))?;
        if self.config.install_chain {
            let network = "/etc/cni/net.d/10-culvert-lab.conflist";
            wait::until_true("our plugin in the chain", READY_DEADLINE, || {
                node.read(network).is_ok_and(|text| text.contains("culvert-cni"))
            })
            .with_context(|| watcher.tail(15))?;
        }

        let proxy = match lab.pod(ROOT_NAMESPACE, &proxy_name(index)) {
            Some(pod) => {
                lab.shared.run_sandbox(&pod)?;
                pod
            }
            None => lab.add_sandbox(
                Pod::new(ROOT_NAMESPACE, &proxy_name(index)).node(index).service_account("node-proxy").app(App::None),
            )?,
        };
        let group = proxy.with(|s| s.record.cgroup());
        let mut keeper = Program::new(format!("keeper-{index}"), &[])
            .args(self.config.keeper())
            .as_user(User::root().with_caps(&["SYS_ADMIN", "NET_ADMIN"]));
        keeper.cgroup = Some(format!("{group}/keeper"));
        keeper.memory = self.config.keeper_memory;
        keeper.mounts = Mounts { read_only_root: true, hide: vec![lab.dir().path().into()], ..Mounts::default() };
        let keeper = proxy.spawn(keeper)?;
        self.wait_for_file(&keeper, &node.init().root("/run/node-proxy/keeper.sock"))?;

        let control_plane = self.config.control_plane.then(|| {
            format!("https://{}", std::net::SocketAddr::new(self.control_plane_ip(), plan::CONTROL_PLANE_PORT))
        });
        let mut worker = Program::new(format!("worker-{index}"), &[])
            .args(self.config.worker(node.name(), control_plane))
            .as_user(User::plain(WORKER_UID));
        worker.cgroup = Some(format!("{group}/worker"));
        worker.memory = self.config.worker_memory;
        // A container sees only what is mounted into it: neither the node's sockets nor the lab's own files.
        let hide = ["/run/culvert", "/run/netns", "/var/lib/culvert/cni", "/var/lib/cni"];
        let hide = hide.iter().map(Into::into).chain([lab.dir().path().to_owned()]).collect();
        worker.mounts = Mounts { read_only_root: true, hide, ..Mounts::default() };
        let worker = proxy.spawn(worker)?;
        lock(&self.nodes).insert(index, OnNode { watcher, proxy, keeper, worker });
        Ok(())
    }

    /// What the DaemonSets mount: hostPaths, the emptyDir between keeper and worker, the projected token.
    fn directories(&self, node: &Node) -> Result<()> {
        let at = |path: &str| node.init().root(path);
        directory(&at("/run/culvert"), 0, 0, 0o700)?;
        directory(&at("/run/node-proxy"), 0, WORKER_UID, 0o2750)?;
        directory(&at("/run/node-proxy-worker"), WORKER_UID, WORKER_UID, 0o700)?;
        directory(&at("/var/lib/culvert/cni"), 0, 0, 0o755)?;
        directory(&at("/var/lib/culvert/node-proxy"), WORKER_UID, WORKER_UID, 0o700)?;
        directory(&at("/run/secrets/culvert"), 0, 0, 0o755)?;
        if self.config.control_plane {
            owned(&at("/run/secrets/culvert/token"), self.token(node.index()).as_bytes(), WORKER_UID, 0o400)?;
            let root =
                fs::read(self.control_plane_dir().join("root-cert.pem")).context("read the control plane's root")?;
            owned(&at("/run/secrets/culvert/root-cert.pem"), &root, 0, 0o644)?;
        }
        Ok(())
    }

    fn wait_for_file(&self, process: &Process, path: &Path) -> Result<()> {
        let what = format!("{} to make {}", process.name(), path.display());
        wait::until(&what, READY_DEADLINE, || match path.exists() {
            true => Some(Ok(())),
            false if !process.is_alive() => Some(Err(anyhow::anyhow!("{} ended", process.name()))),
            false => None,
        })
        .flatten()
        .with_context(|| format!("{}:\n{}", process.name(), process.tail(15)))
    }
}

fn directory(path: &Path, uid: u32, gid: u32, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    chown(path, Some(uid), Some(gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| format!("mode of {}", path.display()))
}

fn owned(path: &Path, bytes: &[u8], uid: u32, mode: u32) -> Result<()> {
    let _ = fs::remove_file(path); // so that an old, stricter mode is no hindrance
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))?;
    chown(path, Some(uid), Some(uid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| format!("mode of {}", path.display()))
}

//! A lab: its nodes, its fabric, its pods and its objects; from `up` to `down`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::capture::Capture;
use crate::config::Config;
use crate::handle::{PodHandle, PodState};
use crate::kubelet::manifest_name;
use crate::mesh::Mesh;
use crate::node::{self, Node};
use crate::objects::{self, Service, ServiceRecord};
use crate::plan::{self, Families};
use crate::pod::{Pod, PodRecord};
use crate::proc::{self, Process};
use crate::state::{self, Dir};
use crate::watch::Watch;
use crate::{binaries, capture};

/// A lab that stands. Taken down when dropped, unless [`Lab::keep`] was called.
pub struct Lab {
    pub(crate) shared: Arc<Shared>,
    mesh: Option<Mesh>,
    owned: bool,
}

/// What pods need of their lab.
pub(crate) struct Shared {
    pub(crate) dir: Dir,
    pub(crate) families: Families,
    pub(crate) fabric: Node,
    pub(crate) nodes: Vec<Node>,
    objects: Mutex<Objects>,
}

#[derive(Default)]
struct Objects {
    pods: BTreeMap<String, PodHandle>,
    services: BTreeMap<String, ServiceRecord>,
    accounts: Vec<String>,
    /// Namespaces with the mesh's label.
    meshed: BTreeSet<String>,
    /// See [`Lab::enrolled`].
    enrolled: BTreeMap<IpAddr, String>,
}

impl Lab {
    /// Makes the nodes, the fabric and, if asked, the mesh. Leftovers of a dead lab of the same name are taken away first.
    pub fn up(config: Config) -> Result<Lab> {
        binaries::check(config.mesh.is_some())?;
        ensure!((1..=plan::MAX_NODES).contains(&config.nodes), "a lab has 1 to {} nodes", plan::MAX_NODES);
        let dir = Dir::of(&config.name)?;
        if let Some(pid) = dir.held_by() {
            anyhow::bail!("lab {} is being run by process {pid}", config.name);
        }
        state::sweep();
        dir.down().context("take away what an earlier lab of this name left")?;
        dir.create()?;
        let made = Lab::make(&dir, &config);
        made.inspect_err(|_| {
            // The first error is the one to tell.
            let _ = dir.down();
        })
    }

    fn make(dir: &Dir, config: &Config) -> Result<Lab> {
        dir.write("config.json", config)?;
        let families = config.families;
        let booting: Vec<_> = (0..=config.nodes).map(|index| Node::boot(dir, index, config)).collect::<Result<_>>()?;
        let mut nodes: Vec<Node> = booting.into_iter().map(|node| node.finish()).collect::<Result<_>>()?;
        let fabric = nodes.remove(0);
        crate::ns::ip_batch(&fabric.netns(), &plan::fabric_base(families)).context("network of the fabric")?;
        for node in &nodes {
            node::plug(&fabric, node, families)?;
        }
        let shared = Shared { dir: dir.clone(), families, fabric, nodes, objects: Mutex::default() };
        let mut lab = Lab { shared: Arc::new(shared), mesh: None, owned: true };
        if let Some(mesh) = &config.mesh {
            lab.mesh = Some(Mesh::start(&lab, mesh)?);
        }
        Ok(lab)
    }

    /// A lab that another process made and let stay.
    pub fn attach(name: &str) -> Result<Lab> {
        let dir = Dir::of(name)?;
        ensure!(dir.exists(), "there is no lab named {name} (culvert-lab up)");
        let config: Config = dir.read("config.json")?;
        let fabric = Node::attach(&dir, 0, config.families)?;
        let nodes = (1..=config.nodes).map(|i| Node::attach(&dir, i, config.families)).collect::<Result<_>>()?;
        let shared = Arc::new(Shared { dir, families: config.families, fabric, nodes, objects: Mutex::default() });
        let processes = proc::recorded(&shared.dir);
        for record in shared.dir.read_all::<PodRecord>("pods") {
            let pause = processes.get(&format!("pause-{}", record.uid)).cloned();
            let app = processes.get(&format!("{}-app", record.pod.key().replace('/', "-"))).cloned();
            let key = record.pod.key();
            let state = Arc::new(Mutex::new(PodState { record, pause, app }));
            shared.objects().pods.insert(key, PodHandle { lab: shared.clone(), state });
        }
        for record in shared.dir.read_all::<ServiceRecord>("services") {
            shared.objects().services.insert(format!("{}/{}", record.service.namespace, record.service.name), record);
        }
        let mut lab = Lab { shared, mesh: None, owned: false };
        if let Some(mesh) = &config.mesh {
            lab.mesh = Some(Mesh::attach(&lab, mesh, &processes)?);
        }
        Ok(lab)
    }

    /// Lets the lab stand after this process; `culvert-lab down` takes it away.
    pub fn keep(mut self) -> Result<()> {
        for node in std::iter::once(&self.shared.fabric).chain(&self.shared.nodes) {
            node.let_stay()?;
        }
        self.shared.dir.set_owner(true)?;
        self.owned = false;
        Ok(())
    }

    /// Takes the lab down and says whether everything went.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        self.shared.dir.down()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.shared.dir.name()
    }

    /// Its directory.
    pub fn dir(&self) -> &Dir {
        &self.shared.dir
    }

    /// Its IP families.
    pub fn families(&self) -> Families {
        self.shared.families
    }

    /// Node 1, 2…; panics if there is none of that number.
    pub fn node(&self, index: usize) -> &Node {
        self.shared.node(index).expect("a node of this lab: numbers start with 1")
    }

    /// Every node.
    pub fn nodes(&self) -> &[Node] {
        &self.shared.nodes
    }

    /// The netns between the nodes, where the control plane runs and `192.0.2.1` stands for the rest of the world.
    pub fn fabric(&self) -> &Node {
        &self.shared.fabric
    }

    /// The mesh; panics in a lab without one.
    pub fn mesh(&self) -> &Mesh {
        self.mesh.as_ref().expect("a lab with a mesh: Config::with_mesh")
    }

    /// Whether there is a mesh.
    pub fn has_mesh(&self) -> bool {
        self.mesh.is_some()
    }

    /// Starts to count and search what crosses the fabric.
    pub fn capture(&self, markers: &[&[u8]]) -> Result<Capture> {
        capture::Capture::start(&self.shared.fabric.netns(), markers)
    }

    /// Starts to note what crosses the fabric beside the tunnels.
    pub fn watch(&self) -> Result<Watch> {
        Watch::start(&self.shared.fabric.netns())
    }

    /// Addresses of the pods that the mesh was asked to have, at whatever time, by label of theirs or of their namespace; and whose
    /// they are.
    pub fn enrolled(&self) -> BTreeMap<IpAddr, String> {
        self.shared.objects().enrolled.clone()
    }

    /// Makes a pod: sandbox, CNI, app; returns when its app serves and its endpoints are published.
    pub fn add_pod(&self, pod: Pod) -> Result<PodHandle> {
        let handle = self.add_sandbox(pod)?;
        self.start_app(&handle)?;
        Ok(handle)
    }

    /// Makes a pod up to its sandbox: its network stands, its app was not started. A pod whose ADD fails is taken back; the
    /// error holds the plugin's [`crate::CniError`].
    pub fn add_sandbox(&self, pod: Pod) -> Result<PodHandle> {
        let key = pod.key();
        ensure!((1..=self.shared.nodes.len()).contains(&pod.node), "pod {key}: there is no node {}", pod.node);
        ensure!(self.pod(&pod.namespace, &pod.name).is_none(), "pod {key} exists already");
        self.shared.ensure_around(&pod)?;
        let node = pod.node;
        let state = PodState { record: PodRecord::new(pod, node), pause: None, app: None };
        let handle = PodHandle { lab: self.shared.clone(), state: Arc::new(Mutex::new(state)) };
        self.shared.objects().pods.insert(key.clone(), handle.clone());
        if let Err(error) = self.shared.run_sandbox(&handle) {
            self.shared.objects().pods.remove(&key);
            let _ = self.shared.remove_sandbox(&handle); // the ADD's failure is the one to tell
            return Err(error.context(format!("make pod {key}")));
        }
        self.shared.note_enrolled();
        Ok(handle)
    }

    /// Starts (or restarts) a pod's app and publishes it.
    pub fn start_app(&self, pod: &PodHandle) -> Result<()> {
        self.shared.start_app(pod).with_context(|| format!("start the app of pod {}", pod.key()))?;
        self.shared.publish()
    }

    /// Ends a pod's app and takes it out of its services; the sandbox stays.
    pub fn stop_app(&self, pod: &PodHandle) -> Result<()> {
        self.shared.stop_app(pod)
    }

    /// Takes a pod away: app ended, then DEL, then everything else.
    pub fn remove_pod(&self, pod: &PodHandle) -> Result<()> {
        self.shared.stop_app(pod)?;
        self.shared.objects().pods.remove(&pod.key());
        let removed = self.shared.remove_sandbox(pod);
        self.shared.publish()?;
        removed
    }

    /// Changes a pod's labels (opt-in and opt-out of a running pod).
    pub fn label_pod(&self, pod: &PodHandle, name: &str, value: Option<&str>) -> Result<()> {
        self.change_pod(pod, |pod| change(&mut pod.labels, name, value))
    }

    /// Changes a pod's annotations while it runs.
    pub fn annotate_pod(&self, pod: &PodHandle, name: &str, value: Option<&str>) -> Result<()> {
        self.change_pod(pod, |pod| change(&mut pod.annotations, name, value))
    }

    fn change_pod(&self, pod: &PodHandle, change: impl FnOnce(&mut Pod)) -> Result<()> {
        pod.with(|state| change(&mut state.record.pod));
        self.shared.note_enrolled();
        self.shared.write_pod(&pod.record())?;
        self.shared.publish()
    }

    /// A pod by its name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodHandle> {
        self.shared.objects().pods.get(&format!("{namespace}/{name}")).cloned()
    }

    /// Every pod.
    pub fn pods(&self) -> Vec<PodHandle> {
        self.shared.objects().pods.values().cloned().collect()
    }

    /// Every recorded program of the lab, by its name: those this process started and those of an earlier one.
    pub fn processes(&self) -> BTreeMap<String, Process> {
        proc::recorded(&self.shared.dir)
    }

    /// Every service.
    pub fn services(&self) -> Vec<ServiceRecord> {
        self.shared.objects().services.values().cloned().collect()
    }

    /// Makes a namespace, or changes its labels.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        match labels.contains(&(objects::MESH, "enabled")) {
            true => self.shared.objects().meshed.insert(name.to_owned()),
            false => self.shared.objects().meshed.remove(name),
        };
        self.shared.note_enrolled();
        self.shared.write_manifest(&format!("ns-{name}"), &[objects::namespace(name, &objects::labels(labels))])
    }

    /// Makes a service; its virtual addresses.
    pub fn service(&self, service: Service) -> Result<Vec<IpAddr>> {
        let key = format!("{}/{}", service.namespace, service.name);
        let mut objects = self.shared.objects();
        let ips = match objects.services.get(&key) {
            _ if service.headless => Vec::new(),
            Some(old) if !old.ips.is_empty() => old.ips.clone(),
            _ => {
                let number: u16 = self.shared.dir.read("services-made").unwrap_or(0);
                self.shared.dir.write("services-made", &(number + 1))?;
                self.shared.families.filter([plan::service_v4(number).into(), plan::service_v6(number).into()])
            }
        };
        let record = ServiceRecord { service, ips: ips.clone() };
        self.shared.dir.write(format!("services/{}.json", key.replace('/', "-")), &record)?;
        objects.services.insert(key, record);
        drop(objects);
        self.shared.publish()?;
        Ok(ips)
    }

    /// Writes any other manifests, as one file, put in place by rename.
    pub fn apply(&self, name: &str, text: &str) -> Result<()> {
        state::write_atomic(&self.shared.manifest_yaml(name), text.as_bytes())
    }

    /// Deletes what [`Lab::apply`] wrote under this name.
    pub fn delete(&self, name: &str) -> Result<()> {
        let path = self.shared.manifest_yaml(name);
        fs::remove_file(&path).with_context(|| format!("delete {}", path.display()))
    }

    /// Boots a node again after [`Node::power_cut`]: same disk, same name. As kubelet does, sandboxes from before are deleted
    /// through CNI and made anew under their old uid; with a mesh its processes are started first. How long it took.
    pub fn boot(&self, index: usize) -> Result<Duration> {
        let start = Instant::now();
        self.power_on(index)?;
        self.start_pods(index)?;
        Ok(start.elapsed())
    }

    /// The first half of [`Lab::boot`]: the node stands, the sandboxes from before are deleted, and nothing runs yet.
    pub fn power_on(&self, index: usize) -> Result<()> {
        let node = self.node(index);
        ensure!(!node.init().is_alive(), "{} is running", node.name());
        let config: Config = self.shared.dir.read("config.json")?;
        let fresh = Node::boot(&self.shared.dir, index, &config)?.finish()?;
        node.rebooted(fresh);
        node::unplug(&self.shared.fabric, index)?;
        node::plug(&self.shared.fabric, node, config.families)?;
        for pod in self.pods().iter().filter(|pod| pod.node() == index) {
            pod.with(|s| (s.pause, s.app, s.record.pause) = (None, None, None));
            self.shared.reset_sandbox(pod)?;
        }
        Ok(())
    }

    /// The second half: the mesh's processes, then every pod of the node that does not run.
    pub fn start_pods(&self, index: usize) -> Result<()> {
        if let Some(mesh) = &self.mesh {
            mesh.start_node(self, index)?;
        }
        let ours = |pod: &PodHandle| self.mesh.as_ref().is_some_and(|mesh| mesh.is_proxy_pod(pod));
        let stopped = |pod: &PodHandle| pod.node() == index && pod.with(|s| s.pause.is_none());
        for pod in self.pods().iter().filter(|pod| stopped(pod) && !ours(pod)) {
            self.shared.run_sandbox(pod)?;
            self.shared.note_enrolled();
            self.start_app(pod)?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = self.shared.dir.down()
        {
            tracing::error!(lab = self.name(), error = format!("{error:#}"), "not everything was taken down");
        }
    }
}

impl Shared {
    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn node(&self, index: usize) -> Result<&Node> {
        let node = if index == 0 { Some(&self.fabric) } else { self.nodes.get(index - 1) };
        node.with_context(|| format!("there is no node {index}"))
    }

    pub(crate) fn manifest(&self, name: &str) -> PathBuf {
        self.dir.join(format!("manifests/{name}.yml"))
    }

    fn manifest_yaml(&self, name: &str) -> PathBuf {
        self.dir.join(format!("manifests/{name}.yaml"))
    }

    /// One file of manifests, put in place by rename: several documents become a List's worth of YAML documents.
    pub(crate) fn write_manifest(&self, name: &str, documents: &[Value]) -> Result<()> {
        let texts: Vec<String> = documents.iter().map(serde_json::to_string_pretty).collect::<Result<_, _>>()?;
        let text = texts.join("\n---\n") + "\n";
        let path = self.manifest(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(()); // nobody is woken for nothing
        }
        state::write_atomic(&path, text.as_bytes())
    }

    /// The namespace and the service account of a pod, made if they are not there.
    fn ensure_around(&self, pod: &Pod) -> Result<()> {
        let namespace = format!("ns-{}", pod.namespace);
        if !self.manifest(&namespace).exists() {
            self.write_manifest(&namespace, &[objects::namespace(&pod.namespace, &BTreeMap::new())])?;
        }
        let account = format!("sa-{}-{}", pod.namespace, pod.service_account);
        let mut objects = self.objects();
        if !objects.accounts.contains(&account) {
            self.write_manifest(&account, &[objects::service_account(&pod.namespace, &pod.service_account)])?;
            objects.accounts.push(account);
        }
        Ok(())
    }

    /// The controllers' work after any change: endpoint slices and the pods' /etc/hosts.
    pub(crate) fn publish(&self) -> Result<()> {
        let objects = self.objects();
        let pods: Vec<PodRecord> = objects.pods.values().map(PodHandle::record).collect();
        let services: Vec<ServiceRecord> = objects.services.values().cloned().collect();
        for record in &services {
            let mut documents = vec![objects::service(record, self.families)];
            documents.extend(objects::endpoint_slices(record, &pods, self.families));
            self.write_manifest(&format!("svc-{}-{}", record.service.namespace, record.service.name), &documents)?;
        }
        for pod in pods.iter().filter(|p| p.pause.is_some()) {
            let path = self.hosts_file(pod);
            let text = objects::hosts(pod, &services, &pods);
            // Written in place: the pod sees this very file through a bind mount.
            if fs::read_to_string(&path).is_ok_and(|old| old != text) {
                fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Adds whoever is in the mesh now to those that ever were.
    fn note_enrolled(&self) {
        let mut objects = self.objects();
        let Objects { pods, meshed, enrolled, .. } = &mut *objects;
        for PodRecord { pod, ips, .. } in pods.values().map(PodHandle::record).filter(|record| !record.pod.host_network)
        {
            let own = pod.labels.get(objects::MESH).map(String::as_str);
            if own == Some("enabled") || (own.is_none() && meshed.contains(&pod.namespace)) {
                enrolled.extend(ips.iter().map(|ip| (*ip, pod.key())));
            }
        }
    }

    /// After a power cut: the old sandbox is deleted through CNI, the record starts over under the same uid.
    fn reset_sandbox(&self, pod: &PodHandle) -> Result<()> {
        let record = pod.record();
        let gone = self.remove_sandbox(pod);
        let mut fresh = PodRecord::new(Pod { uid: Some(record.uid), ..record.pod }, record.node);
        fresh.netns = format!("cni-{}", &fresh.container_id[..32]);
        pod.with(|s| s.record = fresh);
        gone.with_context(|| format!("clean up after {}", manifest_name(&pod.record())))
    }
}

/// Writes a key of a pod's labels or annotations, or takes it out.
fn change(pairs: &mut BTreeMap<String, String>, name: &str, value: Option<&str>) {
    match value {
        Some(value) => drop(pairs.insert(name.into(), value.into())),
        None => drop(pairs.remove(name)),
    }
}

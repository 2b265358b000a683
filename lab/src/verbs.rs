//! The verbs for people: up, down, status, exec, add, rm, policy.

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use lab::out::say;
use lab::pod::{ECHO, HTTP};
use lab::{App, Config, Exit, Lab, MeshConfig, Pod, Service, binaries, interrupt, state};

use crate::cli::Topology;

/// `culvert-lab add`.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The lab
    #[arg(long, default_value = "lab")]
    name: String,
    /// NAMESPACE/POD
    pod: String,
    /// Node
    #[arg(long, default_value_t = 1)]
    node: usize,
    /// Service account
    #[arg(long, default_value = "default")]
    service_account: String,
    /// KEY=VALUE; culvert.io/mesh=enabled takes the pod into the mesh
    #[arg(long)]
    label: Vec<String>,
    /// Port with a readiness probe
    #[arg(long)]
    probe: Vec<u16>,
    /// The program to run; our standard servers when absent
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    argv: Vec<String>,
}

/// `culvert-lab policy`.
#[derive(Debug, Args)]
pub(crate) struct Policy {
    /// The lab
    #[arg(long, default_value = "lab")]
    name: String,
    /// A file of manifests, or - for standard input
    file: Option<String>,
    /// Under which name it is kept; the file's name when absent
    #[arg(long = "as")]
    kept_as: Option<String>,
    /// Take away what was put in place under this name
    #[arg(long, conflicts_with = "file")]
    delete: Option<String>,
}

/// The lab that the story and `up` make.
pub(crate) fn config(topology: &Topology) -> Config {
    let config = Config::default().name(&topology.name).nodes(topology.nodes).families(topology.families());
    // The story has the plugin wait for a dead pod-watcher; 15 s, the default, is long to look at.
    let mesh = MeshConfig { cni_timeout: 5, ..MeshConfig::default() };
    if topology.no_mesh { config } else { config.mesh(mesh) }
}

/// The pods of the story: a shop of two web servers and a cart, and two strangers outside of the mesh.
pub(crate) fn populate(lab: &Lab) -> Result<()> {
    let far = lab.nodes().len();
    lab.namespace("shop", &[("culvert.io/mesh", "enabled")])?;
    lab.namespace("outside", &[])?;
    let web = |name: &str| Pod::new("shop", name).label("app", "web").service_account("web").probe(HTTP);
    for pod in [
        web("web-1"),
        web("web-2").node(far),
        Pod::new("shop", "cart").service_account("cart"),
        Pod::new("shop", "guest").service_account("guest"),
        Pod::new("outside", "stranger"),
        Pod::new("outside", "other").node(far),
    ] {
        lab.add_pod(pod)?;
    }
    lab.service(Service::new("shop", "web").port(80, HTTP).port(7, ECHO))?;
    lab.service(Service::new("shop", "web-pods").selector("app", "web").headless().port(80, HTTP))?;
    Ok(())
}

/// What to try in a lab that was left up, as commands that work where they are printed: through the project's own command where
/// that started us (`cargo xtask lab` says so in the environment), else by this program's path.
pub(crate) fn to_try(name: &str) -> String {
    let command = std::env::var("CULVERT_LAB_COMMAND").unwrap_or_else(|_| {
        std::env::current_exe().map_or_else(|_| "culvert-lab".to_owned(), |path| path.display().to_string())
    });
    let named = if name == "lab" { String::new() } else { format!(" --name {name}") };
    [
        format!("status{named}"),
        format!("exec{named} shop/cart -- curl -s http://web.shop/"),
        format!("exec{named} outside/stranger -- curl -s http://web-pods.shop:8080/"),
        format!("add{named} shop/extra --node 2"),
        format!("policy{named} FILE.yaml"),
        format!("down{named}"),
    ]
    .map(|verb| format!("  {command} {verb}"))
    .join("\n")
}

pub(crate) fn up(topology: &Topology) -> Result<()> {
    interrupt::take_down_on_signal(&state::Dir::of(&topology.name)?)?;
    let lab = Lab::up(config(topology))?;
    populate(&lab)?;
    let name = lab.name().to_owned();
    lab.keep()?;
    say(&format!("lab {name} is up. Try:\n{}", to_try(&name)))
}

pub(crate) fn down(name: &str, all: bool) -> Result<()> {
    let labs = if all { state::recorded() } else { vec![state::Dir::of(name)?] };
    for lab in labs {
        if let Some(pid) = lab.held_by() {
            anyhow::bail!(
                "lab {} is being run by process {pid}: end that first (Ctrl-C there, or kill {pid})",
                lab.name()
            );
        }
        lab.down().with_context(|| format!("take lab {} down", lab.name()))?;
        let left = state::leftovers(lab.name());
        ensure!(left.is_empty(), "of lab {} is left: {}", lab.name(), left.join(", "));
        say(&format!("lab {} is down, nothing is left", lab.name()))?;
    }
    Ok(())
}

pub(crate) fn status(name: &str) -> Result<()> {
    let lab = Lab::attach(name)?;
    let mut nodes = table(&["node", "addresses", "pid 1"]);
    for node in std::iter::once(lab.fabric()).chain(lab.nodes()) {
        let ips = if node.index() == 0 { "-".into() } else { join(&node.ips()) };
        nodes.add_row(vec![node.name().to_owned(), ips, node.init().pid.to_string()]);
    }
    let mut pods = table(&["pod", "node", "addresses", "account", "ready", "memory", "connections", "mesh"]);
    for pod in lab.pods() {
        let record = pod.record();
        let memory = pod.memory().map_or_else(|| "-".into(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
        let mesh = lab.has_mesh().then(|| lab.mesh().pod_status(&pod)).flatten();
        pods.add_row(vec![
            pod.key(),
            record.node.to_string(),
            join(&record.ips),
            record.pod.service_account.clone(),
            record.ready.to_string(),
            memory,
            pod.stats().connections.to_string(),
            mesh.map_or_else(|| "-".into(), |s| format!("enrolled={}", s["enrolled"])),
        ]);
    }
    let mut services = table(&["service", "addresses", "ports"]);
    for record in lab.services() {
        let ports: Vec<String> = record.service.ports.iter().map(|(port, target)| format!("{port}→{target}")).collect();
        let ips = if record.service.headless { "headless".into() } else { join(&record.ips) };
        services.add_row(vec![format!("{}/{}", record.service.namespace, record.service.name), ips, ports.join(" ")]);
    }
    say(&format!("{nodes}\n{pods}\n{services}"))?;
    if lab.has_mesh() {
        let mut processes = table(&["process", "pid", "running", "log"]);
        for process in lab.mesh().processes() {
            let log = process.log_base().display().to_string() + ".{log,out}";
            processes.add_row(vec![
                process.name().to_owned(),
                process.pid().to_string(),
                process.is_alive().to_string(),
                log,
            ]);
        }
        say(&processes.to_string())?;
    }
    Ok(())
}

pub(crate) fn exec(name: &str, place: &str, argv: &[String]) -> Result<ExitCode> {
    let lab = Lab::attach(name)?;
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let exit = match place.split_once('/') {
        Some((namespace, pod)) => {
            let pod =
                lab.pod(namespace, pod).with_context(|| format!("there is no pod {place} (culvert-lab status)"))?;
            pod.exec_attached(&argv)?
        }
        None => {
            let mut nodes = std::iter::once(lab.fabric()).chain(lab.nodes());
            let node = nodes.find(|n| n.name() == place).with_context(|| format!("there is no node {place}"))?;
            node.exec_attached(&argv)?
        }
    };
    Ok(match exit {
        Exit::Code(code) => ExitCode::from(code.clamp(0, 255) as u8),
        Exit::Signal(signal) => ExitCode::from(128u8.saturating_add(signal.clamp(0, 127) as u8)),
        Exit::Unknown => ExitCode::FAILURE,
    })
}

pub(crate) fn add(add: Add) -> Result<()> {
    let Add { name, pod, node, service_account, label, probe, argv } = add;
    let lab = Lab::attach(&name)?;
    let (namespace, pod_name) = pod.split_once('/').context("a pod is written NAMESPACE/POD")?;
    let mut pod = Pod::new(namespace, pod_name).node(node).service_account(&service_account);
    for label in &label {
        let (key, value) = label.split_once('=').with_context(|| format!("label {label}: KEY=VALUE"))?;
        pod = pod.label(key, value);
    }
    pod.probe_ports = probe;
    if !argv.is_empty() {
        pod = pod.app(App::Command(argv));
    }
    let made = lab.add_pod(pod)?;
    say(&format!("pod {} has {}", made.key(), join(&made.ips())))
}

pub(crate) fn rm(name: &str, pod: &str) -> Result<()> {
    let lab = Lab::attach(name)?;
    let (namespace, pod_name) = pod.split_once('/').context("a pod is written NAMESPACE/POD")?;
    let handle = lab.pod(namespace, pod_name).with_context(|| format!("there is no pod {pod} (culvert-lab status)"))?;
    lab.remove_pod(&handle)
}

pub(crate) fn policy(policy: Policy) -> Result<()> {
    let Policy { name, file, kept_as, delete } = policy;
    let lab = Lab::attach(&name)?;
    if let Some(kept) = delete {
        return lab.delete(&kept);
    }
    let file = file.context("which file? (- for standard input, --delete NAME to take one away)")?;
    let text = if file == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text
    } else {
        std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?
    };
    let stem = std::path::Path::new(&file).file_stem().map(|s| s.to_string_lossy().into_owned());
    let kept = kept_as.or(stem.filter(|s| s != "-")).unwrap_or_else(|| "stdin".into());
    lab.apply(&kept, &text)?;
    say(&format!("kept as {kept}; to take it away: culvert-lab policy --delete {kept}"))
}

pub(crate) fn capture(name: &str, seconds: u64, markers: &[String]) -> Result<()> {
    let lab = Lab::attach(name)?;
    let markers: Vec<&[u8]> = markers.iter().map(|m| m.as_bytes()).collect();
    let capture = lab.capture(&markers)?;
    // The time is what was asked for. Not by parking: somebody's token may be left, which ends that at once.
    #[expect(clippy::disallowed_methods, reason = "a person asked for this time; there is no fact to wait for")]
    std::thread::sleep(std::time::Duration::from_secs(seconds));
    let mut rows = table(&["from", "to", "", "payload packets", "payload bytes", "markers"]);
    for (ends, flow) in capture.flows()?.iter().filter(|(_, flow)| flow.packets > 0) {
        rows.add_row(vec![
            ends.from.to_string(),
            ends.to.to_string(),
            if ends.tcp { "TCP" } else { "UDP" }.into(),
            flow.packets.to_string(),
            flow.payload.to_string(),
            flow.markers.to_string(),
        ]);
    }
    say(&rows.to_string())
}

/// A table as wide as it needs.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    table
}

pub(crate) fn join(ips: &[std::net::IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Whether every binary of the mesh lies beside this one.
pub(crate) fn mesh_is_built() -> bool {
    binaries::MESH.iter().all(|name| binaries::own(name).is_some())
}

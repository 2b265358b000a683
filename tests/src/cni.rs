//! Our plugin as an independent caller meets it: `cnitool` of the CNI project, in a lab node, with a configuration of each spec
//! version. Results against golden files (`BLESS=1` writes them).
//!
//! Debian's plugins end at 1.0.0: at 1.1.0 ours stands alone in the list, with the result of a plugin before it written into its
//! configuration. What `cnitool` has no word for (VERSION, and a verb before the version that brought it) is asked of the plugin
//! itself.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lab::{Lab, Output, wait};
use serde_json::{Value, json};

use crate::support::{CHANGE, mesh};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const PLUGIN: &str = "/opt/cni/bin/culvert-cni";

/// A container that `cnitool` makes: network, namespace and pod share their number.
struct Container<'a> {
    lab: &'a Lab,
    tool: String,
    number: usize,
    version: &'static str,
}

fn cnitool() -> Result<String> {
    let path = std::env::var("CULVERT_CNITOOL").ok().filter(|path| !path.is_empty()).context(
        "CULVERT_CNITOOL names no cnitool: run `cargo xtask test lab`, which builds it and sets the variable, or set it yourself after \
         `go install github.com/containernetworking/cni/cnitool@v1.3.0`",
    )?;
    ensure!(std::path::Path::new(&path).is_file(), "CULVERT_CNITOOL is {path}, and there is no such file");
    Ok(path)
}

/// What a plugin before ours would have made, in the words of 1.1.0.
fn fed() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            { "name": "cni0", "mac": "0a:58:c6:12:01:01", "mtu": 1500 },
            { "name": "eth0", "mac": "0a:58:c6:12:01:4d", "mtu": 1500, "sandbox": "/run/netns/cnitool-3" },
        ],
        "ips": [
            { "interface": 1, "address": "198.18.63.2/24", "gateway": "198.18.63.1" },
            { "interface": 1, "address": "fd77:0:0:7::2/64", "gateway": "fd77:0:0:7::1" },
        ],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "198.18.63.1", "mtu": 1400, "priority": 10 }, { "dst": "::/0" }],
        "dns": {},
    })
}

impl<'a> Container<'a> {
    /// The pod's record, its namespace and the configuration.
    fn new(lab: &'a Lab, tool: &str, number: usize) -> Result<Container<'a>> {
        let container = Container { lab, tool: tool.into(), number, version: VERSIONS[number] };
        let name = container.name();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": name, "uid": container.uid(), "labels": {} },
            "spec": { "nodeName": "node-1", "serviceAccountName": "default", "containers": [{ "name": "app", "image": "localhost/app" }] },
            "status": { "phase": "Pending" },
        });
        lab.apply(&name, &pod.to_string())?;
        let script = format!(
            "ip netns add {name} && ip netns exec {name} sh -c \
             'ip link set lo up; for i in all default; do echo 0 > /proc/sys/net/ipv6/conf/$i/accept_dad; done'"
        );
        lab.node(1).exec(&["sh", "-c", &script])?.ok()?;
        let conflist = json!({ "cniVersion": container.version, "name": name, "plugins": container.plugins()? });
        let dir = lab.node(1).init().root(container.directory());
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("net.conflist"), format!("{conflist:#}"))?;
        Ok(container)
    }

    fn name(&self) -> String {
        format!("cnitool-{}", self.number)
    }

    fn uid(&self) -> String {
        format!("00000000-0000-4000-8000-00000000000{}", self.number)
    }

    fn directory(&self) -> String {
        format!("/run/{}", self.name())
    }

    /// Our own part is that of the node's real configuration.
    fn plugins(&self) -> Result<Vec<Value>> {
        let real: Value = serde_json::from_str(&self.lab.node(1).read("/etc/cni/net.d/10-culvert-lab.conflist")?)?;
        let mut ours = real["plugins"][1].clone();
        ensure!(ours["type"] == "culvert-cni", "{real}");
        if self.version == "1.1.0" {
            ours["prevResult"] = fed();
            return Ok(vec![ours]);
        }
        let n = self.number;
        let ranges = json!([
            [{ "subnet": format!("198.18.6{n}.0/24") }],
            [{ "subnet": format!("fd77:0:0:{}::/64", 4 + n) }],
        ]);
        let routes = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
        let bridge = json!({
            "type": "bridge", "bridge": format!("cnitool{n}"), "isGateway": true,
            "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
        });
        Ok(vec![bridge, ours])
    }

    fn args(&self) -> String {
        format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={};K8S_POD_UID={}",
            self.name(),
            self.uid()
        )
    }

    /// A verb through `cnitool`.
    fn tool(&self, verb: &str) -> Result<Output> {
        let directory = format!("NETCONFPATH={}", self.directory());
        let netns = format!("/run/netns/{}", self.name());
        let args = ["env", "CNI_PATH=/opt/cni/bin", &directory, &self.args(), &self.tool, verb, &self.name(), &netns];
        self.lab.node(1).exec(&args)
    }

    /// A verb of the plugin itself: whether it went well, and its answer.
    fn plugin(&self, verb: &str, extra: Value) -> Result<(bool, Value)> {
        let mut conf = self.plugins()?.pop().context("ours is the last")?;
        conf["cniVersion"] = self.version.into();
        conf["name"] = self.name().into();
        for (key, value) in extra.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        let script = format!("printf %s '{conf}' | CNI_COMMAND={verb} CNI_PATH=/opt/cni/bin {PLUGIN}");
        let output = self.lab.node(1).exec(&["sh", "-c", &script])?;
        let answer = if output.stdout.is_empty() { Value::Null } else { serde_json::from_str(&output.stdout)? };
        Ok((output.exit.success(), answer))
    }

    /// Whether pod-watcher knows it; then redirect is in force in its namespace. (After DEL the rules stay, closed, until the
    /// runtime removes the namespace.)
    fn captured(&self) -> Result<bool> {
        let known = self.lab.mesh().watcher_admin(1, &["pods"])?.contains(&format!("shop/{}", self.name()));
        let list = ["ip", "netns", "exec", &self.name(), "nft", "list", "table", "inet", "culvert"];
        let rules = self.lab.node(1).exec(&list)?.stdout.contains("tproxy to :15006");
        ensure!(rules || !known, "{}: pod-watcher knows it, and its rules are not there", self.name());
        Ok(known)
    }
}

/// A result without what is random: MACs and the names of veth pairs.
fn stable(result: &Value) -> Result<String> {
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().context("interfaces")? {
        interface["mac"] = "MAC".into();
        if interface["name"].as_str().is_some_and(|name| name.starts_with("veth")) {
            interface["name"] = "VETH".into();
        }
    }
    Ok(format!("{result:#}\n"))
}

fn golden(version: &str, text: &str) -> Result<()> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/cni-{version}.json"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().context("a directory")?)?;
        std::fs::write(&path, text)?;
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    ensure!(text == wanted, "{} differs; look at the difference, then BLESS=1. Now:\n{text}", path.display());
    Ok(())
}

fn add(container: &Container<'_>) -> Result<()> {
    let text = container.tool("add")?.ok()?;
    golden(container.version, &stable(&serde_json::from_str(&text)?)?)?;
    ensure!(container.captured()?, "ADD went well, and the pod is not captured");
    Ok(())
}

/// CHECK, STATUS, GC and VERSION: what the version has of them, and a proper refusal of what it has not.
fn ask(container: &Container<'_>) -> Result<()> {
    let version = container.version;
    let check = container.tool("check")?;
    // libcni refuses by itself what 0.3.1 does not know.
    ensure!(check.exit.success() == (version != "0.3.1"), "CHECK: {check:?}");
    ensure!(container.tool("status")?.exit.success(), "STATUS: {:?}", container.tool("status")?);
    for verb in ["STATUS", "GC"] {
        let (ok, answer) = container.plugin(verb, json!({}))?;
        match version {
            // A GC without the list of what is valid, too: it removes nothing, as the caller asserts.
            "1.1.0" => ensure!(ok && answer.is_null(), "{verb}: {answer}"),
            _ => ensure!(!ok && answer["code"] == 1 && answer["cniVersion"] == version, "{verb}: {answer}"),
        }
    }
    let (ok, answer) = container.plugin("VERSION", json!({}))?;
    ensure!(ok && answer == json!({ "cniVersion": version, "supportedVersions": VERSIONS }), "VERSION: {answer}");
    ensure!(container.captured()?, "a question changed something");
    Ok(())
}

#[test]
fn cnitool_gets_golden_results_in_every_version_and_gc_without_a_list_removes_nothing() -> Result<()> {
    let tool = cnitool()?;
    let lab = mesh("cni")?;
    let all: Vec<Container<'_>> =
        (0..VERSIONS.len()).map(|number| Container::new(&lab, &tool, number)).collect::<Result<_>>()?;
    for container in &all {
        add(container).and_then(|()| ask(container)).with_context(|| format!("cniVersion {}", container.version))?;
    }

    // `cnitool gc` sends no list: libcni takes away what it has itself cached of this one network, the plugin nothing more.
    let newest = all.last().context("1.1.0")?;
    newest.tool("gc")?.ok().context("GC by cnitool")?;
    wait::until_true("the network's own container to be let go of", CHANGE, || newest.captured().is_ok_and(|is| !is))?;
    for container in &all[..3] {
        ensure!(container.captured()?, "cniVersion {}: GC of another network took it away", container.version);
    }
    // The control: with a list the plugin removes what is not on it.
    let (ok, answer) = newest.plugin("GC", json!({ "cni.dev/valid-attachments": [] }))?;
    ensure!(ok && answer.is_null(), "GC with an empty list: {answer}");
    wait::until_true("all to be let go of", CHANGE, || {
        all.iter().all(|container| container.captured().is_ok_and(|is| !is))
    })?;

    // CHECK says no now, by its cause; DEL says yes, also a second time.
    for container in &all {
        let check = container.tool("check")?;
        ensure!(!check.exit.success(), "CHECK of {} is fine after GC", container.name());
        // 0.3.1 has no CHECK, and of the newest libcni has kept no result.
        let ours = !matches!(container.version, "0.4.0" | "1.0.0")
            || check.stderr.contains(&format!("shop/{}", container.name()));
        ensure!(ours, "CHECK of {} names no pod: {}", container.name(), check.stderr);
        for _ in 0..2 {
            container.tool("del")?.ok().with_context(|| format!("DEL with cniVersion {}", container.version))?;
        }
    }
    lab.down()
}

#[test]
fn cnitool_takes_a_container_back_in_every_version() -> Result<()> {
    let tool = cnitool()?;
    let lab = mesh("cni-del")?;
    for number in 0..VERSIONS.len() {
        let container = Container::new(&lab, &tool, number)?;
        let context = || format!("cniVersion {}", container.version);
        container.tool("add")?.ok().with_context(context)?;
        ensure!(container.captured()?, "{}: not captured", context());
        container.tool("del")?.ok().with_context(context)?;
        wait::until_true("pod-watcher to let go of it", CHANGE, || container.captured().is_ok_and(|is| !is))
            .with_context(context)?;
    }
    lab.down()
}

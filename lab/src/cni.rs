//! The container runtime's half of CNI: runs a network's plugins in order, hands each the result of the one before, keeps
//! the last result, and takes everything back in reverse order (CNI 1.0, sections 2 to 4).
//!
//! Deliberately written from the specification and not from our own plugin's code, so that the lab is a second opinion.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::plan::{self, Families};
use crate::proc::Exit;
use crate::spawn::{self, Place, Program};
use crate::state::Dir;

/// Longest time a plugin may take; kubelet gives the whole ADD four minutes, our plugin's own deadline is 15 s.
const PLUGIN_DEADLINE: Duration = Duration::from_secs(60);

/// One container's attachment to the node's network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// CNI_CONTAINERID: the sandbox.
    pub container_id: String,
    /// CNI_NETNS: the path as the node sees it.
    pub netns: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_ARGS, in order.
    pub args: Vec<(String, String)>,
    /// Addresses asked for, instead of the next free ones.
    pub ips: Vec<IpAddr>,
}

/// What an ADD gave.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Added {
    /// The last plugin's result.
    pub result: Value,
    /// Each plugin's part of the time.
    pub times: Vec<(String, Duration)>,
}

impl Added {
    /// Addresses of the result.
    pub fn ips(&self) -> Vec<IpAddr> {
        let list = self.result["ips"].as_array().into_iter().flatten();
        list.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
    }

    /// The time a plugin took.
    pub fn time_of(&self, plugin: &str) -> Option<Duration> {
        self.times.iter().find(|(name, _)| name == plugin).map(|(_, time)| *time)
    }
}

/// A plugin's refusal (CNI 1.0, section 5, "Error").
#[derive(Clone, Debug, thiserror::Error)]
#[error("CNI {verb} by {plugin} for container {container}: code {code}: {msg}{}", if .details.is_empty() { String::new() } else { format!(" ({})", .details) })]
pub struct CniError {
    /// The plugin that refused.
    pub plugin: String,
    /// ADD, DEL, CHECK…
    pub verb: String,
    /// The container.
    pub container: String,
    /// Its error code.
    pub code: u64,
    /// Its message.
    pub msg: String,
    /// Its details.
    pub details: String,
    /// How long it took to refuse.
    pub after: Duration,
}

/// A node's network, as its /etc/cni/net.d describes it.
pub struct Network<'a> {
    pub(crate) lab: &'a Dir,
    pub(crate) node: &'a Place,
    pub(crate) name: &'a str,
}

/// The network configuration of a node: Debian's reference chain, with our plugin behind it when there is a mesh.
pub fn conflist(index: usize, families: Families, ours: Option<Value>) -> String {
    let mut ranges = Vec::new();
    let mut routes = Vec::new();
    if families.v4() {
        ranges.push(json!([{ "subnet": plan::pod_range_v4(index) }]));
        routes.push(json!({ "dst": "0.0.0.0/0" }));
    }
    if families.v6() {
        ranges.push(json!([{ "subnet": plan::pod_range_v6(index) }]));
        routes.push(json!({ "dst": "::/0" }));
    }
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
        "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
    });
    let plugins: Vec<Value> = std::iter::once(bridge).chain(ours).collect();
    // 1.0.0: the newest version Debian's plugins speak.
    format!("{:#}\n", json!({ "cniVersion": "1.0.0", "name": "culvert-lab", "plugins": plugins }))
}

impl Network<'_> {
    fn conflist(&self) -> Result<Value> {
        let path = self.node.init.root("/etc/cni/net.d/10-culvert-lab.conflist");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    fn cache(&self, at: &Attachment) -> std::path::PathBuf {
        self.lab.join(format!("nodes/{}/cni-cache/{}-{}.json", self.name, at.container_id, at.ifname))
    }

    /// ADD through the chain. After a failure the caller still owes a DEL.
    pub fn add(&self, at: &Attachment) -> Result<Added> {
        let conflist = self.conflist()?;
        let mut added = Added::default();
        for plugin in conflist["plugins"].as_array().into_iter().flatten() {
            let start = Instant::now();
            let previous = (!added.result.is_null()).then_some(&added.result);
            let result = self.call("ADD", at, &conflist, plugin, previous)?;
            added.times.push((plugin["type"].as_str().unwrap_or_default().to_owned(), start.elapsed()));
            added.result = result.context("a plugin answered ADD with nothing")?;
        }
        let cache = self.cache(at);
        crate::state::make_dir(cache.parent().unwrap_or(self.lab.path()))?;
        crate::state::write_atomic(&cache, serde_json::to_string(&added)?.as_bytes())?;
        Ok(added)
    }

    /// DEL through the chain, last plugin first. Every plugin is called; the first failure is the answer.
    pub fn del(&self, at: &Attachment) -> Result<Vec<(String, Duration)>> {
        let conflist = self.conflist()?;
        let cached: Option<Added> = fs::read_to_string(self.cache(at)).ok().and_then(|t| serde_json::from_str(&t).ok());
        let mut times = Vec::new();
        let mut failed = None;
        for plugin in conflist["plugins"].as_array().into_iter().flatten().rev() {
            let start = Instant::now();
            if let Err(error) = self.call("DEL", at, &conflist, plugin, cached.as_ref().map(|c| &c.result)) {
                failed.get_or_insert(error);
            }
            times.push((plugin["type"].as_str().unwrap_or_default().to_owned(), start.elapsed()));
        }
        match failed {
            Some(error) => Err(error),
            None => {
                let _ = fs::remove_file(self.cache(at));
                Ok(times)
            }
        }
    }

    /// CHECK through the chain with the cached result.
    pub fn check(&self, at: &Attachment) -> Result<()> {
        let conflist = self.conflist()?;
        let text = fs::read_to_string(self.cache(at)).context("CHECK needs the result of an ADD")?;
        let cached: Added = serde_json::from_str(&text)?;
        for plugin in conflist["plugins"].as_array().into_iter().flatten() {
            self.call("CHECK", at, &conflist, plugin, Some(&cached.result))?;
        }
        Ok(())
    }

    fn call(
        &self,
        verb: &str,
        at: &Attachment,
        list: &Value,
        plugin: &Value,
        previous: Option<&Value>,
    ) -> Result<Option<Value>> {
        let mut conf: Map<String, Value> = plugin.as_object().cloned().unwrap_or_default();
        conf.insert("cniVersion".into(), list["cniVersion"].clone());
        conf.insert("name".into(), list["name"].clone());
        if let Some(previous) = previous {
            conf.insert("prevResult".into(), previous.clone());
        }
        if !at.ips.is_empty() {
            conf.insert("args".into(), json!({ "cni": { "ips": at.ips } }));
        }
        let kind = plugin["type"].as_str().context("a plugin without a type")?.to_owned();
        let args: Vec<String> = at.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let program = Program::new(format!("cni-{kind}"), &[&format!("/opt/cni/bin/{kind}")])
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &at.container_id)
            .env("CNI_NETNS", &at.netns)
            .env("CNI_IFNAME", &at.ifname)
            .env("CNI_ARGS", &args.join(";"))
            .env("CNI_PATH", "/opt/cni/bin");
        let start = Instant::now();
        let input = serde_json::to_vec(&conf)?;
        let output = spawn::exec(self.lab, self.node, &program, &input, PLUGIN_DEADLINE)?;
        if output.exit == Exit::Code(0) {
            let text = output.stdout.trim();
            return if text.is_empty() {
                Ok(None)
            } else {
                Ok(Some(serde_json::from_str(text).context("a plugin's answer")?))
            };
        }
        let error: Value = serde_json::from_str(output.stdout.trim()).unwrap_or(Value::Null);
        let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
        let msg = if error.is_null() { format!("{:?} {}", output.exit, output.stderr.trim()) } else { text("msg") };
        Err(CniError {
            plugin: kind,
            verb: verb.into(),
            container: at.container_id.clone(),
            code: error["code"].as_u64().unwrap_or(0),
            msg,
            details: text("details"),
            after: start.elapsed(),
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_has_one_range_per_family_and_ours_last() {
        let dual: Value =
            serde_json::from_str(&conflist(2, Families::Dual, Some(json!({ "type": "culvert-cni" })))).expect("json");
        assert_eq!(dual["plugins"][0]["ipam"]["ranges"][1][0]["subnet"], "fd77:0:0:2::/64");
        assert_eq!(dual["plugins"][1]["type"], "culvert-cni");
        let four: Value = serde_json::from_str(&conflist(1, Families::V4, None)).expect("json");
        assert_eq!(four["plugins"][0]["ipam"]["ranges"].as_array().map(Vec::len), Some(1));
        assert_eq!(four["plugins"].as_array().map(Vec::len), Some(1));
    }
}

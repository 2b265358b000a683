//! One network configuration as a text: what it is, and the same with our plugin in its chain or without. Pure.
//!
//! Everything that is not ours stays byte for byte, so that taking ours out gives back what was there (CNI 1.1, section 1: keys that
//! a program does not know are for others). What is not understood is named and never written.

use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::json::{self, Member};

/// `type` of our plugin, and the name of its binary.
pub const PLUGIN: &str = "culvert-cni";
/// Versions of the specification that our plugin answers, as `cni_plugin::version` has them; `tests/install.rs` holds both together.
pub const SPEAKS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Our part of the chain: the settings of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    r#type: &'static str,
    /// pod-watcher's socket.
    pub socket: PathBuf,
    /// For the whole of a call.
    pub timeout_seconds: u64,
    /// Passed without asking anyone.
    pub exclude_namespaces: Vec<String>,
    /// Where the plugin finds what pod-watcher last wrote.
    pub state_dir: PathBuf,
}

impl Entry {
    /// With these settings.
    pub fn new(socket: PathBuf, timeout_seconds: u64, exclude_namespaces: Vec<String>, state_dir: PathBuf) -> Self {
        Self { r#type: PLUGIN, socket, timeout_seconds, exclude_namespaces, state_dir }
    }

    fn text(&self) -> String {
        serde_json::to_string(self).expect("strings and a number, and paths that came from the command line as text")
    }
}

/// Why a configuration is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The runtime cannot use it either, and takes the next.
    #[error("malformed: {0}")]
    Malformed(String),
    /// The runtime uses it, and our plugin cannot be in its chain.
    #[error("cannot be chained: {0}")]
    Unfit(String),
}

fn malformed(what: &str) -> Unusable {
    Unusable::Malformed(what.to_owned())
}

/// A `.conflist`: a chain of plugins.
#[derive(Clone, Debug)]
pub struct List<'a> {
    text: &'a str,
    /// Where the array of plugins is.
    plugins: Range<usize>,
    /// Where each plugin is, and whether it is ours.
    chain: Vec<(Range<usize>, bool)>,
}

impl<'a> List<'a> {
    /// Reads it.
    pub fn read(text: &'a str) -> Result<Self, Unusable> {
        let members = object(text)?;
        let plugins = only(&members, "plugins")?.ok_or_else(|| malformed("it has no plugins"))?;
        let array = json::elements(&text[plugins.clone()]).ok_or_else(|| malformed("plugins is not a list"))?;
        let mut chain = Vec::new();
        for at in array {
            let at = plugins.start + at.start..plugins.start + at.end;
            let kind = plugin_type(&text[at.clone()])?;
            chain.push((at, kind == PLUGIN));
        }
        if chain.iter().all(|(_, ours)| *ours) {
            return Err(malformed("it has no plugin that makes an interface"));
        }
        named(text, &members)?;
        Ok(Self { text, plugins, chain })
    }

    /// Whether our plugin is in it.
    pub fn has_ours(&self) -> bool {
        self.chain.iter().any(|(_, ours)| *ours)
    }

    /// With this entry once in the chain and behind the plugin that makes the interface. An entry that stands well stays where it is:
    /// others may put themselves behind it, and two that both want to be last would fight.
    pub fn with(&self, entry: &Entry) -> String {
        let stands = self.chain.iter().skip(1).find(|(_, ours)| *ours);
        match stands {
            Some((at, _)) if self.chain.iter().filter(|(_, ours)| *ours).count() == 1 => {
                let same =
                    serde_json::from_str::<Value>(&self.text[at.clone()]).ok() == serde_json::to_value(entry).ok();
                let entry = if same { self.text[at.clone()].to_owned() } else { entry.text() };
                format!("{}{entry}{}", &self.text[..at.start], &self.text[at.end..])
            }
            _ => {
                let bare = self.without();
                // It was a list with a plugin that is not ours, and still is.
                let Ok(list) = List::read(&bare) else { return self.text.to_owned() };
                let (Some((first, _)), Some((last, _))) = (list.chain.first(), list.chain.last()) else {
                    return self.text.to_owned();
                };
                let gap = &bare[list.plugins.start + 1..first.start];
                format!("{},{gap}{}{}", &bare[..last.end], entry.text(), &bare[last.end..])
            }
        }
    }

    /// Without our plugin.
    pub fn without(&self) -> String {
        let mut text = self.text.to_owned();
        for (n, (at, _)) in
            self.chain.iter().enumerate().filter(|(_, (_, ours))| *ours).collect::<Vec<_>>().into_iter().rev()
        {
            // With the comma before it; the first with the one behind it.
            let gone = match (n.checked_sub(1).and_then(|n| self.chain.get(n)), self.chain.get(n + 1)) {
                (Some((before, _)), _) => before.end..at.end,
                (None, Some((next, _))) => at.start..next.start,
                (None, None) => at.clone(),
            };
            text.replace_range(gone, "");
        }
        text
    }

    /// Whether it is what [`list_of`] made of this single configuration, whatever our entry says.
    pub fn is_made_of(&self, single: &str) -> bool {
        let mut others = self.chain.iter().filter(|(_, ours)| !ours);
        self.has_ours()
            && others.next().is_some_and(|(at, _)| &self.text[at.clone()] == single.trim())
            && others.next().is_none()
    }
}

/// A `.conf` with one plugin as a list of it and ours: version and name as it has them, itself unchanged (as libcni's
/// `ConfListFromConf` makes one).
pub fn list_of(single: &str, entry: &Entry) -> Result<String, Unusable> {
    let members = members_of_single(single)?;
    let raw = |key| only(&members, key).map(|at| at.map_or("null", |at| &single[at]));
    Ok(format!(
        "{{\n  \"cniVersion\": {},\n  \"name\": {},\n  \"plugins\": [\n    {},\n    {}\n  ]\n}}\n",
        raw("cniVersion")?,
        raw("name")?,
        single.trim(),
        entry.text()
    ))
}

/// Whether a runtime can use this text as a single configuration.
pub fn is_usable_single(text: &str) -> bool {
    members_of_single(text).is_ok()
}

fn members_of_single(single: &str) -> Result<Vec<Member>, Unusable> {
    let members = object(single)?;
    if members.iter().any(|member| member.key == "plugins") {
        return Err(malformed("it is a list, which only a .conflist may be"));
    }
    if plugin_type(single)? == PLUGIN {
        return Err(malformed("it has no plugin that makes an interface"));
    }
    named(single, &members)?;
    Ok(members)
}

fn object(text: &str) -> Result<Vec<Member>, Unusable> {
    json::members(text).ok_or_else(|| malformed("it is not a JSON object"))
}

/// The value of a key; one that stands there twice is read differently by different programs.
fn only(members: &[Member], key: &str) -> Result<Option<Range<usize>>, Unusable> {
    let mut found = members.iter().filter(|member| member.key == key);
    let value = found.next().map(|member| member.value.clone());
    if found.next().is_some() {
        return Err(Unusable::Unfit(format!("{key:?} is there twice")));
    }
    Ok(value)
}

fn plugin_type(text: &str) -> Result<String, Unusable> {
    let members = json::members(text).ok_or_else(|| malformed("a plugin is not a JSON object"))?;
    let value = only(&members, "type")?.and_then(|at| serde_json::from_str::<String>(&text[at]).ok());
    value.filter(|kind| !kind.is_empty()).ok_or_else(|| malformed("a plugin has no type"))
}

/// It has a name, and a version that our plugin speaks: else every pod of the node would fail by us.
fn named(text: &str, members: &[Member]) -> Result<(), Unusable> {
    let value = |key| only(members, key).map(|at| at.and_then(|at| serde_json::from_str::<Value>(&text[at]).ok()));
    if value("name")?.as_ref().and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(malformed("it has no name"));
    }
    let (one, more) = (value("cniVersion")?, value("cniVersions")?);
    // CNI 1.1: the runtime may pick any of `cniVersions`. A missing version means 0.1.0 or 0.2.0, which knows no chains.
    for version in one.iter().chain(more.iter().filter_map(Value::as_array).flatten()) {
        if !version.as_str().is_some_and(|version| SPEAKS.contains(&version)) {
            return Err(Unusable::Unfit(format!("cniVersion {version} is none of {}", SPEAKS.join(", "))));
        }
    }
    if one.is_none() && more.is_none() {
        return Err(Unusable::Unfit(format!("it has no cniVersion; {} can be chained", SPEAKS.join(", "))));
    }
    Ok(())
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;

//! The directory of network configurations: what is to be done to it so that our plugin is in the chain of the one that the runtime
//! uses, or in none. Pure: from texts to steps. Each step leaves a directory that works, and from each place another plan leads on, so
//! a power cut between two steps is met like anything else.
//!
//! The runtime takes the first file by name that ends in `.conf`, `.conflist` or `.json` (libcni `ConfFiles`; containerd and CRI-O).

use std::collections::BTreeMap;

use super::chain::{Entry, List, Unusable, is_usable_single, list_of};

/// Behind the name of a single configuration that a list made by us stands for; no runtime reads such a file.
pub const KEPT: &str = ".before-culvert";

/// Files by name. What cannot be read has a reason instead of a text.
pub type Files = BTreeMap<String, Result<String, String>>;

/// One thing to do, whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The file shall say this, if it still says what it did (`None`: is not there).
    Write {
        /// Which.
        name: String,
        /// Said when the plan was made.
        before: Option<String>,
        /// Is to say.
        text: String,
    },
    /// The file shall have another name, replacing what has it, if it still says what it did.
    Rename {
        /// From.
        name: String,
        /// Said when the plan was made.
        before: String,
        /// To.
        to: String,
    },
    /// The file shall be no more, if it still says what it did.
    Remove {
        /// Which.
        name: String,
        /// Said when the plan was made.
        before: String,
    },
}

/// A file that is left alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Left {
    /// Which.
    pub name: String,
    /// Why.
    pub why: String,
}

/// Whether our plugin is in the chain that the runtime uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// In this file, once the steps are done.
    In(String),
    /// Not; why.
    Out(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// What it leads to.
    pub chain: Chain,
    /// Files that are left alone although they look like configurations.
    pub left: Vec<Left>,
}

/// Whether a file of this name is read by runtimes.
pub fn is_live(name: &str) -> bool {
    name.ends_with(".conflist") || is_single(name)
}

fn is_single(name: &str) -> bool {
    name.ends_with(".conf") || name.ends_with(".json")
}

/// The name of the list that is made of a single configuration.
fn list_name(single: &str) -> String {
    let stem = single.rsplit_once('.').map_or(single, |(stem, _)| stem);
    format!("{stem}.conflist")
}

/// Our plugin in the chain of the first configuration that the runtime can use.
pub fn put(files: &Files, entry: &Entry) -> Plan {
    let mut left = Vec::new();
    for (name, text) in files.iter().filter(|(name, _)| is_live(name)) {
        let planned = match text {
            Err(why) => Err(Unusable::Unfit(why.clone())),
            Ok(text) if is_single(name) => convert(files, name, text, entry),
            Ok(text) => List::read(text).map(|list| {
                let wanted = list.with(entry);
                let step = Step::Write { name: name.clone(), before: Some(text.clone()), text: wanted.clone() };
                let steps = if wanted == *text { Vec::new() } else { vec![step] };
                (steps, name.clone())
            }),
        };
        match planned {
            Ok((steps, name)) => return Plan { steps, chain: Chain::In(name), left },
            Err(unusable) => {
                left.push(Left { name: name.clone(), why: unusable.to_string() });
                // The runtime goes by this one: our plugin in the next would look well and capture nothing.
                if let Unusable::Unfit(why) = unusable {
                    return Plan { steps: Vec::new(), chain: Chain::Out(format!("{name} is in use: {why}")), left };
                }
            }
        }
    }
    Plan { steps: Vec::new(), chain: Chain::Out("no network is configured yet".to_owned()), left }
}

/// A list in place of a single configuration, which is kept aside under a name that no runtime reads.
fn convert(files: &Files, name: &str, text: &str, entry: &Entry) -> Result<(Vec<Step>, String), Unusable> {
    let list = list_of(text, entry)?;
    let (to, kept) = (list_name(name), format!("{name}{KEPT}"));
    let before = match files.get(&to) {
        None => None,
        // Ours from before: its owner has written the single one anew, or the power went between two steps.
        Some(Ok(old)) if is_ours(files, old, &[&kept, name]) => Some(old.clone()),
        Some(_) => return Err(Unusable::Unfit(format!("{to} stands beside it"))),
    };
    // It must be the first once the single one is aside.
    if let Some(other) = files.keys().find(|other| is_live(other) && *other != name && **other < to) {
        return Err(Unusable::Unfit(format!("{other} would come before {to}")));
    }
    let mut steps = Vec::new();
    if before.as_deref() != Some(&list) {
        steps.push(Step::Write { name: to.clone(), before, text: list });
    }
    steps.push(Step::Rename { name: name.to_owned(), before: text.to_owned(), to: kept });
    Ok((steps, to))
}

/// Whether this list was made by us of one of these.
fn is_ours(files: &Files, list: &str, singles: &[&str]) -> bool {
    let Ok(list) = List::read(list) else { return false };
    singles.iter().any(|single| matches!(files.get(*single), Some(Ok(text)) if list.is_made_of(text)))
}

/// Our plugin in no chain, and everything as its owner had it.
pub fn take_out(files: &Files) -> Plan {
    let (mut steps, mut left) = (Vec::new(), Vec::new());
    for (name, text) in files.iter().filter(|(name, _)| name.ends_with(".conflist")) {
        let read = text.as_ref().map_err(Clone::clone).and_then(|text| match List::read(text) {
            Ok(list) => Ok((text, list)),
            Err(why) => Err(why.to_string()),
        });
        match read {
            Ok((text, list)) if list.has_ours() => {
                let kept = singles(name).find(|single| is_ours(files, text, &[&format!("{single}{KEPT}")]));
                match kept.and_then(|single| Some((files.get(&format!("{single}{KEPT}"))?.as_ref().ok()?, single))) {
                    // The single one comes first by name or replaces the list: the network has a configuration at every moment.
                    Some((single_text, single)) if can_stand_alone(files.get(&single)) => {
                        let name_kept = format!("{single}{KEPT}");
                        if !files.contains_key(&single) {
                            steps.push(Step::Rename { name: name_kept, before: single_text.clone(), to: single });
                        }
                        steps.push(Step::Remove { name: name.clone(), before: text.clone() });
                    }
                    // A list of its owner; or what its owner has put beside it nobody can use, and the list is all the network has.
                    _ => {
                        steps.push(Step::Write { name: name.clone(), before: Some(text.clone()), text: list.without() })
                    }
                }
            }
            Ok(_) => {}
            Err(why) => left.push(Left { name: name.clone(), why }),
        }
    }
    if !steps.is_empty() {
        return Plan { steps, chain: Chain::Out("taken out".to_owned()), left };
    }
    // What is still kept stands for nothing any more: its owner has another configuration, or none.
    for (name, text) in files.iter().filter(|(name, _)| name.ends_with(KEPT)) {
        match text {
            Ok(text) => steps.push(Step::Remove { name: name.clone(), before: text.clone() }),
            Err(why) => left.push(Left { name: name.clone(), why: why.clone() }),
        }
    }
    Plan { steps, chain: Chain::Out("taken out".to_owned()), left }
}

/// Whether the list may go: its single configuration can come back, or its owner has put a usable one there.
fn can_stand_alone(single: Option<&Result<String, String>>) -> bool {
    single.is_none_or(|text| text.as_ref().is_ok_and(|text| is_usable_single(text)))
}

/// Names of single configurations that this list may have been made of.
fn singles(list: &str) -> impl Iterator<Item = String> {
    let stem = list.strip_suffix(".conflist").unwrap_or(list).to_owned();
    ["conf", "json"].into_iter().map(move |end| format!("{stem}.{end}"))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

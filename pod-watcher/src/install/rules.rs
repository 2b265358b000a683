//! Our rules in the networks of this node's pods, taken out when we go for good: what they redirect to goes as well, and a pod that still
//! was in the mesh would reach nobody any more.
//!
//! Which pods those are is read from their statuses: of a pod that has none, rules are not ours, even if they look so.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use mesh_net::Netns;
use mesh_net::capture::{Error, Mode, Session};
use mesh_net::procfs;
use serde_json::Value;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Networks without our rules now, whether or not they had any.
    pub clear: usize,
    /// What could not be done.
    pub failed: Vec<String>,
}

/// Takes the rules out of the network of every pod that has a status in this directory. Blocking; to be called when nobody writes rules
/// any more.
pub fn take_out(status_dir: &Path) -> io::Result<Cleared> {
    let (mut cleared, mut seen) = (Cleared::default(), BTreeSet::new());
    let ours = uids(status_dir)?;
    if ours.is_empty() {
        return Ok(cleared);
    }
    // Where pid 1 may not be looked at, our own is the node's (hostNetwork).
    let host = procfs::host_netns().or_else(|_| Netns::current().map(|own| own.id()).map_err(io::Error::other))?;
    for process in procfs::pods()? {
        if process.netns == host || !ours.contains(&process.uid.to_string()) || !seen.insert(process.netns) {
            continue;
        }
        match take_out_of(process.pid) {
            Ok(()) => cleared.clear += 1,
            Err(error) => cleared.failed.push(format!("pod {}: {error}", process.uid)),
        }
    }
    Ok(cleared)
}

/// The pods that have a status: `pods/UID.json`, and of static pods what is written there of their processes' uid.
fn uids(status_dir: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match std::fs::read_dir(status_dir.join("pods")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        let entry = entry?;
        let Some(uid) = entry.file_name().to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned)
        else {
            continue;
        };
        found.insert(uid);
        // One that cannot be read has its name all the same.
        let status: Option<Value> =
            std::fs::read(entry.path()).ok().and_then(|text| serde_json::from_slice(&text).ok());
        found.extend(status.and_then(|status| Some(status["static_uid"].as_str()?.to_owned())));
    }
    Ok(found)
}

fn take_out_of(pid: u32) -> Result<(), String> {
    let netns = procfs::open_netns(pid).map_err(|error| mesh_daemon::causes(&error))?;
    // An owned table that we have left behind is ours to take over; a kernel without owned tables has plain ones.
    let removed = Session::open(&netns, Mode::Owned)
        .or_else(|error| match error {
            Error::OwnedUnsupported => Session::open(&netns, Mode::Plain),
            error => Err(error),
        })
        .and_then(|mut session| session.remove());
    removed.map_err(|error| mesh_daemon::causes(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_pod_is_looked_for_by_the_uid_that_its_processes_run_under() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(uids(dir.path()).expect("no status at all"), BTreeSet::new());
        std::fs::create_dir(dir.path().join("pods")).expect("directory");
        for (name, text) in [
            ("u1.json", r#"{"pod": "shop/cart"}"#),
            ("u2.json", r#"{"pod": "shop/registry-n1", "static_uid": "hash"}"#),
            ("u3.json", "cut sho"),
            ("u4.tmp", "{}"),
        ] {
            std::fs::write(dir.path().join("pods").join(name), text).expect("written");
        }
        assert_eq!(uids(dir.path()).expect("listed"), ["u1", "u2", "hash", "u3"].map(str::to_owned).into());
    }
}

//! Our rules in the networks of this node's pods, taken out when we go for good: what they redirect to goes as well, and a pod that still
//! was in the mesh would reach nobody any more.

use std::collections::BTreeSet;
use std::io;

use mesh_net::capture::{Error, Mode, Session};
use mesh_net::procfs;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Networks without our rules now, whether or not they had any.
    pub clear: usize,
    /// What could not be done.
    pub failed: Vec<String>,
}

/// Takes the rules out of the network of every process of a pod. Blocking; to be called when nobody writes rules any more.
pub fn take_out() -> io::Result<Cleared> {
    let (mut cleared, mut seen) = (Cleared::default(), BTreeSet::new());
    let host = procfs::host_netns()?;
    for process in procfs::pods()?.into_iter().filter(|process| process.netns != host) {
        if !seen.insert(process.netns) {
            continue;
        }
        match take_out_of(process.pid) {
            Ok(()) => cleared.clear += 1,
            Err(error) => cleared.failed.push(format!("pod {}: {error}", process.uid)),
        }
    }
    Ok(cleared)
}

fn take_out_of(pid: u32) -> Result<(), String> {
    let netns = procfs::open_netns(pid).map_err(|error| crate::sandbox::chain(&error))?;
    // An owned table that we have left behind is ours to take over; a kernel without owned tables has plain ones.
    let removed = Session::open(&netns, Mode::Owned)
        .or_else(|error| match error {
            Error::OwnedUnsupported => Session::open(&netns, Mode::Plain),
            error => Err(error),
        })
        .and_then(|mut session| session.remove());
    removed.map_err(|error| crate::sandbox::chain(&error))
}

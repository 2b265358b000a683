//! Reasons that take a worker's end to bring about. Its counters go with it, so each has a count of its own, from the worker that lives.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::mesh::WORKER_UID;
use lab::pod::ECHO;
use lab::{Lab, Signal, wait};

use super::ledger::{End, Ledger, told};
use super::{Pods, alone, both, equal, load, reasons_in, scope};
use crate::support::CHANGE;
use crate::talk::{self, at};

/// Descriptors of the worker whose pods are to run out of places: it needs some hundreds for itself, and a pod may take half of the rest.
const DESCRIPTORS: u64 = 1_500;
/// Attempts after the last place is taken.
const MORE: usize = 20;
/// By now a place should have been refused.
const MOST: usize = 2_000;

/// The far worker is killed: what the near one saw of it. The reasons met.
pub(super) fn tunnel_closed(lab: &Lab, pods: &Pods) -> Result<Vec<String>> {
    let before = told(lab, 1)?;
    let mut ledger = Ledger::default();
    let streams = load::open(&pods.cart, at(&pods.far, ECHO))?;
    lab.mesh().worker_child(2)?.signal(Signal::KILL);
    for stream in streams {
        load::cut(&stream)?;
        let [caller, _] = both("cart", "far");
        ledger.moved(caller, scope("far"), load::SAID, load::SAID, End(Some(("RESET", "TunnelClosed"))));
    }
    Ok(reasons_in(&equal(lab, 1, &before, &ledger)?).collect())
}

/// A worker with few descriptors gives each pod few places: what is beyond is refused at once, at the caller's end alone.
pub(super) fn overloaded(lab: &Lab, pods: &Pods) -> Result<Vec<String>> {
    let (supervisor, old) = (lab.mesh().worker(1), lab.mesh().worker_child(1)?);
    // As its own user: a root without CAP_SYS_RESOURCE may not (prlimit(2)).
    let output = Command::new("prlimit")
        .args([format!("--pid={}", supervisor.pid()), format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}")])
        .uid(WORKER_UID)
        .gid(WORKER_UID)
        .output()
        .context("prlimit, of util-linux")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    old.signal(Signal::KILL);
    wait::until_true("another worker", CHANGE, || lab.mesh().worker_child(1).is_ok_and(|new| new != old))?;
    lab.mesh().wait_ready(1)?;
    let (to, before) = (at(&pods.near, ECHO), told(lab, 1)?);
    let mut ledger = Ledger::default();
    let (mut open, mut refused) = (Vec::new(), 0);
    for n in 0..MOST {
        // A refusal is a reset right after the handshake: the connect itself may see it already.
        match talk::connect(&pods.cart, to[n % to.len()])?.and_then(|stream| talk::say(&stream).map(|()| stream)) {
            Ok(stream) => open.push(stream),
            Err(_) => {
                ledger.refused(alone(1, "outbound", "cart", "unknown"), "OVERLOAD", "Overloaded");
                refused += 1;
            }
        }
        if refused == MORE {
            break;
        }
    }
    ensure!(refused == MORE && !open.is_empty(), "{} connections open, {refused} refused", open.len());
    for stream in open {
        drop(stream);
        let bytes = load::SAID;
        both("cart", "near").into_iter().for_each(|seen| ledger.moved(seen, scope("near"), bytes, bytes, End::DONE));
    }
    Ok(reasons_in(&equal(lab, 1, &before, &ledger)?).collect())
}

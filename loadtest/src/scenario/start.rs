//! A worker starts: until it is ready, and until it has a certificate for each identity of its node.

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::{Lab, wait};

use super::context::certificates as certificates_of;
use super::{Context, Figure, Paths, Planes, Scenario, Sized, pods};

/// Identities, as the peer was measured with.
const IDENTITIES: usize = 110;
/// Longest until all certificates are there: the peer takes 5 s.
const CERTIFIED: Duration = Duration::from_secs(30);

/// The scenarios of this file.
pub(super) fn all() -> Vec<Scenario> {
    vec![ready(), certificates()]
}

fn ready() -> Scenario {
    Scenario {
        name: "start-ready".into(),
        about: "a worker is started anew: from exec until it says it is ready".into(),
        paths: Paths::Node,
        planes: Planes::Mesh,
        rounds: Sized { whole: 5, quick: 2 },
        takes: Sized { whole: Duration::from_millis(600), quick: Duration::from_millis(600) },
        sample: Box::new(|cx| {
            let mesh = cx.plane.lab().mesh();
            mesh.worker(1).kill()?;
            let start = Instant::now();
            mesh.worker(1).restart()?;
            mesh.wait_ready(1)?;
            Ok(vec![Figure::new("ready", "ms", start.elapsed().as_secs_f64() * 1e3)])
        }),
    }
}

fn certificates() -> Scenario {
    Scenario {
        name: format!("certificates-{IDENTITIES}"),
        about: format!(
            "{IDENTITIES} identities on a node: from exec of a fresh worker until it has all their certificates"
        ),
        paths: Paths::Node,
        planes: Planes::Mesh,
        rounds: Sized { whole: 1, quick: 1 },
        takes: Sized { whole: Duration::from_secs(40), quick: Duration::from_secs(30) },
        sample: Box::new(|cx| {
            let lab = cx.plane.lab();
            // The bench's own pods have identities too.
            let more = IDENTITIES.saturating_sub(certificates_of(lab)?.wanted);
            let pods = pods::add(cx, lab, more, |number| format!("account-{number}"))?;
            let times = (0..cx.sized(3, 1)).map(|_| fresh_worker(cx, lab)).collect::<Result<Vec<_>>>();
            pods::remove(lab, pods)?;
            Ok(times?.into_iter().map(|time| Figure::new("ready", "ms", time.as_secs_f64() * 1e3)).collect())
        }),
    }
}

/// Ends both, for the keeper holds the certificates for the next worker. How long until a worker that got none has all.
fn fresh_worker(cx: &Context<'_>, lab: &Lab) -> Result<Duration> {
    let mesh = lab.mesh();
    mesh.worker(1).kill()?;
    let took = fresh_keeper(cx, lab).and_then(|()| {
        let start = Instant::now();
        mesh.worker(1).restart()?;
        wait::until_true("all certificates", CERTIFIED.min(cx.left()?), || certified(lab) >= IDENTITIES)?;
        Ok(start.elapsed())
    });
    if took.is_err() {
        mesh.worker(1).restart()?; // what comes next needs one
    }
    mesh.wait_ready(1)?;
    took
}

/// Returns when the new one listens: the socket's file, which a killed one leaves behind, is another.
fn fresh_keeper(cx: &Context<'_>, lab: &Lab) -> Result<()> {
    let keeper = lab.mesh().keeper(1);
    let socket = lab.node(1).init().root("/run/node-proxy/keeper.sock");
    let made = || std::fs::metadata(&socket).ok().map(|file| (file.ino(), file.ctime(), file.ctime_nsec()));
    keeper.kill()?;
    let before = made();
    keeper.restart()?;
    wait::until_true("the keeper to listen", CERTIFIED.min(cx.left()?), || {
        made().is_some_and(|now| Some(now) != before)
    })
}

/// Certificates the worker of node 1 has; none while it does not answer.
fn certified(lab: &Lab) -> usize {
    certificates_of(lab).map_or(0, |certificates| certificates.there)
}

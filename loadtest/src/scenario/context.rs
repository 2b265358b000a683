//! What a scenario is given: a plane, a path, its time, and clients that it can start in pods.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, PodHandle, Process, User, wait};

use crate::measure::load::Mark;
use crate::path::{Path, Side};
use crate::plane::Plane;
use crate::traffic::{ANSWERED, END, GO, READY, Report, Spec, Work};

/// Numbers of clients, for this process.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// One sample's surroundings.
pub struct Context<'a> {
    /// The plane.
    pub plane: &'a dyn Plane,
    /// The path.
    pub path: Path,
    /// Small numbers are enough.
    pub quick: bool,
    /// When the scenario must be over.
    pub deadline: Instant,
    pub(crate) labs: &'a [String],
    /// What a reader of this sample's figures must know.
    pub(crate) notes: RefCell<Vec<String>>,
    /// The largest share of a core that other load took, as far as the sample looked.
    pub(crate) foreign: Cell<Option<f64>>,
}

/// A client that was started in a pod. Dropping it ends it.
pub struct Client {
    process: Process,
    spec: Spec,
    lasts: Duration,
}

impl Context<'_> {
    /// What is left of the scenario's time, or why there is none.
    pub fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "the scenario's time is over");
        Ok(left)
    }

    /// Something a reader of this sample's figures must know.
    pub fn note(&self, text: String) {
        self.notes.borrow_mut().push(text);
    }

    /// This one, or the small one of `--quick`.
    pub fn sized<T>(&self, whole: T, quick: T) -> T {
        if self.quick { quick } else { whole }
    }

    /// Puts the server and every proxy of the path on its core; clients pin themselves.
    pub fn pin(&self) -> Result<()> {
        let Path { place, layout, .. } = self.path;
        for side in [Side::Client, Side::Server] {
            for pid in self.plane.proxies(place, side)? {
                crate::measure::cores::pin(&pid, layout.core(side))?;
            }
        }
        let server = self.plane.pods().server_process(place).id();
        crate::measure::cores::pin(&server, layout.core(Side::Server))
    }

    /// Starts a client in a pod towards a port of this path; returns when its connections stand.
    pub fn client(&self, pod: &PodHandle, port: u16, work: Work) -> Result<Client> {
        let to = self.plane.target(self.path.place, self.path.family, port)?;
        self.client_to(pod, to, work)
    }

    /// The same towards any address.
    pub fn client_to(&self, pod: &PodHandle, to: SocketAddr, work: Work) -> Result<Client> {
        let lasts = match &work {
            Work::Exchange { lasts, .. } | Work::Connect { lasts, .. } | Work::Bulk { lasts, .. } => *lasts,
            Work::Hold { .. } | Work::First { .. } => Duration::ZERO,
        };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let spec = Spec { id, core: self.path.layout.core(Side::Client), to, work };
        let program = pod.program("bench", &["culvert-loadtest", "client"]).args([serde_json::to_string(&spec)?]);
        let program = program.as_user(User::root()).with_stdin();
        let client = Client { process: pod.spawn(program)?, spec, lasts };
        let stands = client.process.wait_stdout(READY, self.left()?.min(Duration::from_secs(40)));
        stands.with_context(|| format!("{:?} to {to}", client.spec.work))?;
        Ok(client)
    }

    /// Waits until the mesh of this plane, if there is one, has a certificate for each pod of node 1: `more` and the bench's own.
    pub fn wait_for_certificates(&self, more: usize) -> Result<()> {
        let lab = self.plane.lab();
        if !lab.has_mesh() {
            return Ok(());
        }
        wait::until_true("a certificate for each pod", self.left()?.min(Duration::from_secs(20)), || {
            certificates(lab).is_ok_and(|Certificates { wanted, there }| there >= more && there == wanted)
        })
    }

    /// Looks at the machine while `work` is done: other load in that time is what counts for this sample.
    pub fn watched<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mark = Mark::now(self.labs)?;
        let result = work()?;
        let foreign = mark.foreign_since(self.labs)?;
        self.foreign.set(Some(self.foreign.get().map_or(foreign, |before| before.max(foreign))));
        Ok(result)
    }
}

/// What the worker of node 1 has for the pods that are there; those of pods that went stay with it for a while and do not count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Certificates {
    /// Identities of pods that are there.
    pub wanted: usize,
    /// Of these, with a certificate.
    pub there: usize,
}

/// Asks the worker of node 1.
pub(super) fn certificates(lab: &Lab) -> Result<Certificates> {
    let answer = lab.mesh().admin(1, &["certificates"])?;
    let all = answer.as_array().context("a list of certificates")?;
    let wanted: Vec<_> = all.iter().filter(|one| one["wanted"] == true).collect();
    let there = wanted.iter().filter(|one| one["serial"].is_string()).count();
    Ok(Certificates { wanted: wanted.len(), there })
}

impl Client {
    /// Lets it begin.
    pub fn begin(&self) -> Result<()> {
        self.process.write_line(GO)
    }

    /// Waits until a first connection has had its answer.
    pub fn answered(&self, at_most: Duration) -> Result<()> {
        self.process.wait_stdout(ANSWERED, at_most.min(Duration::from_secs(25)))
    }

    /// Tells a client that holds a connection to end.
    pub fn end(&self) -> Result<()> {
        self.process.write_line(END)
    }

    /// Waits for its report. The deadline is its own time and what it may spend waiting for answers that never come.
    pub fn report(self, at_most: Duration) -> Result<Report> {
        let deadline = (self.lasts + Duration::from_secs(25)).min(at_most);
        let exit = self.process.wait(deadline)?;
        let out = self.process.stdout();
        ensure!(exit.success(), "{} ended with {exit:?}: {}", self.process.name(), self.process.tail(3));
        let line = out.lines().last().context("a client that prints nothing")?;
        let report: Report = serde_json::from_str(line).with_context(|| format!("a client's report: {line}"))?;
        ensure!(report.id == self.spec.id, "the report of client {} for {}", report.id, self.spec.id);
        Ok(report)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.process.is_alive() {
            let _ = self.process.kill(); // on the way of another error, or it ends with its lab
        }
    }
}

//! One pod's netns: everything that is done there, one thing after the other, on blocking threads.
//!
//! A task owns the namespace's handles. Jobs come in order and are answered in order; between them it audits: at once when the
//! kernel says that something changed, and every three seconds in any case. It decides nothing: what it finds goes to the node.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_api::link::worker::LISTENERS;
use mesh_daemon::{causes, tasks};
use mesh_model::{Exclusions, Mark, Reason};
use mesh_net::capture::{self, Drift, Found, Mode, Monitor, Session, Spec, Stage};
use mesh_net::diag::{Diag, Listener};
use mesh_net::{Netns, NetnsId};
use tokio::sync::{mpsc, oneshot, watch};

use crate::enrol::Failure;
use crate::metrics::labels::DriftKind;

/// Behind the notifications, for what they do not tell.
const AUDIT: Duration = Duration::from_secs(3);
/// After an audit that a notification asked for: a pod that changes its rules in a loop gets at most 100 audits a second.
const AUDIT_PAUSE: Duration = Duration::from_millis(10);
/// Jobs of one pod: an enrolment has three, one after the other; the rest is room for people who ask.
const JOBS: usize = 32;

/// What is to be done.
#[derive(Debug)]
pub enum Job {
    /// Write the rules and read them back.
    Apply {
        /// Echoed.
        epoch: u32,
        /// Which.
        spec: Spec,
    },
    /// Remove them.
    Remove {
        /// Echoed.
        epoch: u32,
    },
    /// Are all our listeners there, with the mark by which rules know their packets?
    Listeners {
        /// Echoed.
        epoch: u32,
        /// The pod's.
        mark: Mark,
    },
    /// What is there? For a pod that was there before us.
    Read,
    /// For people.
    Show(oneshot::Sender<Result<Shown, String>>),
}

/// Rules as text, and what each counted: (packets, bytes).
pub type Shown = (String, BTreeMap<String, (u64, u64)>);

/// What came of it.
#[derive(Debug)]
pub enum Done {
    /// [`Job::Apply`].
    Applied {
        /// Of the job.
        epoch: u32,
        /// Of the job.
        spec: Spec,
        /// Read back as written, or why not.
        result: Result<(), Failure>,
    },
    /// [`Job::Remove`].
    Removed {
        /// Of the job.
        epoch: u32,
        /// Gone, or why not.
        result: Result<(), Failure>,
    },
    /// [`Job::Listeners`].
    Listeners {
        /// Of the job.
        epoch: u32,
        /// All there. What cannot be read counts as not there.
        all: bool,
    },
    /// [`Job::Read`].
    Read(Result<Option<Found>, Failure>),
    /// An audit.
    Audited {
        /// Jobs done before it: whoever has sent more since knows that this is old.
        jobs: u64,
        /// What differs; empty is fine.
        drift: Vec<Difference>,
        /// Whether all listeners are there.
        listeners: bool,
        /// Who is known to have changed something. `None`: nobody said so, it was time to look.
        by: Option<String>,
        /// What each rule counted: (packets, bytes).
        counts: BTreeMap<String, (u64, u64)>,
    },
}

/// One thing that an audit found.
#[derive(Debug)]
pub struct Difference {
    /// For counting.
    pub kind: DriftKind,
    /// For people.
    pub text: String,
}

/// The node's end. Dropping it ends the task and lets go of the namespace.
#[derive(Debug)]
pub struct Sandbox {
    /// Which netns.
    pub id: NetnsId,
    /// Tells this sandbox's answers from those of an earlier one of the same pod.
    pub serial: u64,
    netns: Netns,
    exclusions: watch::Sender<Exclusions>,
    jobs: mpsc::Sender<Job>,
    sent: u64,
}

/// What every sandbox needs to know.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// How tables are made.
    pub mode: Mode,
    /// Our own netns, which is the node's: never to be touched.
    pub host: NetnsId,
    /// That of pid 1, should it be another: never to be touched either.
    pub pid1: NetnsId,
    /// Most flows of a pod, of each family, that may go on beside the mesh.
    pub flows: u32,
    /// Whether a worker of the release before takes connections on this node, as far as is known.
    pub former_serves: Arc<AtomicBool>,
}

impl Kernel {
    /// Whether this is no pod's.
    pub fn is_host(&self, id: NetnsId) -> bool {
        id == self.host || id == self.pid1
    }
}

/// Where a sandbox's answers go.
pub type Report = Arc<dyn Fn(Done) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

impl Sandbox {
    /// Starts the task.
    pub fn open(
        netns: Netns,
        serial: u64,
        kernel: Kernel,
        exclusions: Exclusions,
        group: &tasks::Handle,
        report: Report,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel(JOBS);
        let (wanted, excluded) = watch::channel(exclusions.clone());
        let id = netns.id();
        let inside = Inside { netns: netns.try_clone()?, kernel, exclusions, session: None, may_give_way: false };
        group.spawn("sandbox", run(inside, queue, excluded, report));
        Ok(Self { id, serial, netns, exclusions: wanted, jobs, sent: 0 })
    }

    /// From now on the pod excludes this; of several the latest counts, and none is lost.
    pub fn exclude(&self, exclusions: Exclusions) {
        self.exclusions.send_replace(exclusions);
    }

    /// Queues a job; `false` when the queue is full or the task has died: the caller's deadline then says so.
    pub fn send(&mut self, job: Job) -> bool {
        let sent = self.jobs.try_send(job);
        match &sent {
            Ok(()) => self.sent += 1,
            Err(error) => tracing::error!(netns = %self.id, %error, "job for a pod's netns lost"),
        }
        sent.is_ok()
    }

    /// Whether an audit saw what the last job left.
    pub fn is_current(&self, jobs: u64) -> bool {
        jobs == self.sent
    }

    /// The netns, for a keeper.
    pub fn netns(&self) -> std::io::Result<OwnedFd> {
        Ok(self.netns.try_clone()?.into_fd())
    }
}

/// What lives on the blocking side.
struct Inside {
    netns: Netns,
    kernel: Kernel,
    exclusions: Exclusions,
    session: Option<Session>,
    /// The last audit found nobody who needs the rules of the release before.
    may_give_way: bool,
}

async fn run(
    mut inside: Inside,
    mut jobs: mpsc::Receiver<Job>,
    mut excluded: watch::Receiver<Exclusions>,
    report: Report,
) {
    let mut done = 0;
    let mut audit = false;
    let mut monitor: Option<Monitor> = None;
    let mut timer = tokio::time::interval(AUDIT);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Dropped half-way: a job stays in its queue, a notification in its socket, a tick comes again.
        let by = tokio::select! {
            biased;
            job = jobs.recv() => {
                let Some(job) = job else { return };
                let Some((back, answer)) = blocking(inside, move |inside| inside.work(job)).await else { return };
                inside = back;
                done += 1;
                // A keeper has spoken: what it did to the listeners may be what the rules wait for.
                if matches!(answer, Some(Done::Listeners { .. })) {
                    timer.reset_immediately();
                }
                audit = inside.audits(&answer, audit);
                if audit && monitor.is_none() {
                    monitor = inside.watch();
                }
                if let Some(answer) = answer {
                    report(answer).await;
                }
                continue;
            }
            Ok(()) = excluded.changed() => {
                let wanted = excluded.borrow_and_update().clone();
                let Some((back, written)) = blocking(inside, move |inside| inside.exclude(wanted)).await else { return };
                inside = back;
                if let Err(error) = written {
                    let (netns, error) = (inside.netns.id(), causes(&error));
                    tracing::warn!(%netns, error, "what a pod excludes cannot be written; the next audit finds it");
                }
                continue;
            }
            by = changed(&mut monitor), if audit => match by {
                Foreign::By(name) => Some(name),
                Foreign::No => continue,
            },
            _ = timer.tick(), if audit => None,
        };
        let pause = by.is_some();
        let Some((back, answer)) = blocking(inside, move |inside| inside.audit(done, by)).await else { return };
        inside = back;
        report(answer).await;
        if pause {
            tokio::time::sleep(AUDIT_PAUSE).await;
        }
    }
}

/// Runs on the blocking pool. `None`: the work panicked, which has been logged; the pod's deadlines and audits say the rest.
async fn blocking<T: Send + 'static>(
    mut inside: Inside,
    work: impl FnOnce(&mut Inside) -> T + Send + 'static,
) -> Option<(Inside, T)> {
    let id = inside.netns.id();
    let ran = tokio::task::spawn_blocking(move || {
        let answer = work(&mut inside);
        (inside, answer)
    });
    ran.await.inspect_err(|error| tracing::error!(netns = %id, %error, "work in a pod's netns ended badly")).ok()
}

enum Foreign {
    By(String),
    No,
}

async fn changed(monitor: &mut Option<Monitor>) -> Foreign {
    let Some(watching) = monitor else { return std::future::pending().await };
    match watching.changed().await {
        Ok(change) if change.own => Foreign::No,
        Ok(change) => Foreign::By(match change.by {
            Some(by) if by.name.is_empty() => format!("process {}", by.pid),
            Some(by) => format!("{} (process {})", by.name, by.pid),
            None => "an unknown process".to_owned(),
        }),
        Err(error) => {
            tracing::warn!(%error, "notifications of a pod's netns ended; its timer goes on");
            *monitor = None;
            Foreign::No
        }
    }
}

impl Inside {
    fn work(&mut self, job: Job) -> Option<Done> {
        match job {
            Job::Apply { epoch, spec } => Some(Done::Applied { epoch, spec, result: self.apply(&spec) }),
            Job::Remove { epoch } => {
                let result = self.session().and_then(|session| session.remove()).map_err(|error| failure(&error));
                Some(Done::Removed { epoch, result })
            }
            Job::Listeners { epoch, mark } => Some(Done::Listeners { epoch, all: self.listeners(Some(mark)) }),
            Job::Read => Some(Done::Read(self.read().map_err(|error| failure(&error)))),
            Job::Show(reply) => {
                let shown = self.session().and_then(|session| Ok((session.render()?, session.counters()?)));
                // Whoever asked may have gone.
                let _ = reply.send(shown.map_err(|error| causes(&error)));
                None
            }
        }
    }

    fn apply(&mut self, spec: &Spec) -> Result<(), Failure> {
        let session = self.session().map_err(|error| failure(&error))?;
        session.apply(spec).map_err(|error| failure(&error))?;
        // What counts is what is there, not what was sent.
        match session.read().map_err(|error| failure(&error))? {
            Some(found) if found.drift.is_empty() => {
                session.hold_neighbours();
                Ok(())
            }
            found => {
                let drift: Vec<String> =
                    found.into_iter().flat_map(|found| found.drift).map(|drift| drift.to_string()).collect();
                Err(Failure {
                    reason: Reason::Kernel,
                    message: format!("rules read back differ from what was written: {}", drift.join(", ")),
                    next: "look for another program that changes nf_tables in pods",
                })
            }
        }
    }

    /// What is there. Of a change that was under way when its maker ended, the part that cuts nothing is done: who was learning had let
    /// everything pass, who was letting go still captured. The pod may have come to exclude something else while nobody was here to write it: that is no stranger's change.
    fn read(&mut self) -> Result<Option<Found>, capture::Error> {
        let session = self.session()?;
        let found = session.read()?;
        let settled = found.as_ref().and_then(|found| found.spec).and_then(|spec| match spec.stage {
            Stage::Learn => Some(Spec { stage: Stage::Drain, ..spec }),
            Stage::Part => Some(Spec { stage: Stage::Redirect, ..spec }),
            Stage::Deny | Stage::Redirect | Stage::Drain => None,
        });
        if let Some(spec) = settled {
            session.apply(&spec)?;
            return session.read();
        }
        if let Some(Found { spec: Some(spec), drift, .. }) = &found
            && !drift.is_empty()
            && session.only_exclusions_differ()?
        {
            session.apply(spec)?;
            return session.read();
        }
        Ok(found)
    }

    fn exclude(&mut self, exclusions: Exclusions) -> Result<(), capture::Error> {
        self.exclusions = exclusions.clone();
        let session = self.session()?;
        session.exclude(exclusions);
        match session.spec() {
            // Rules of the release before get them when they give way.
            Some(spec) if !session.is_former() => session.apply(&spec).map(drop),
            _ => Ok(()),
        }
    }

    fn audit(&mut self, jobs: u64, by: Option<String>) -> Done {
        let one = |kind, text| vec![Difference { kind, text }];
        let (drift, counts) = match self.session().and_then(|session| session.read()) {
            Ok(Some(Found { spec: _, drift, counts })) => {
                let of = |drift: &Drift| Difference { kind: drift.into(), text: drift.to_string() };
                (drift.iter().map(of).collect(), counts)
            }
            Ok(None) => (one(DriftKind::Table, "table inet culvert is gone".to_owned()), BTreeMap::new()),
            Err(error) => (one(DriftKind::Unreadable, causes(&error)), BTreeMap::new()),
        };
        if let Some(session) = &mut self.session {
            session.hold_neighbours();
        }
        if let Err(error) = self.session().and_then(Session::sweep) {
            tracing::warn!(netns = %self.netns.id(), error = causes(&error), "flows that have ended stay known");
        }
        let listeners = self.listeners(self.session.as_ref().and_then(Session::spec).map(|spec| spec.mark));
        if self.is_former() && !self.gives_way(listeners) {
            return Done::Audited { jobs, drift: Vec::new(), listeners: self.listeners(None), by, counts };
        }
        Done::Audited { jobs, drift, listeners, by, counts }
    }

    /// Whether rules of the release before may go: the listeners have the marks that rules of now know, and no worker of that release
    /// accepts, for where a connection that is not translated wants to go it could not tell. Seen twice: a worker that is asked to stop
    /// hears of it a moment after its keeper.
    fn gives_way(&mut self, listeners: bool) -> bool {
        let may = listeners && !self.kernel.former_serves.load(Ordering::Relaxed);
        std::mem::replace(&mut self.may_give_way, may) && may
    }

    fn is_former(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_former)
    }

    /// Audits make sense while redirect is what should be there.
    fn audits(&self, done: &Option<Done>, before: bool) -> bool {
        let stage = |spec: &Spec| spec.stage == capture::Stage::Redirect;
        match done {
            Some(Done::Applied { spec, result: Ok(()), .. }) => stage(spec),
            Some(Done::Read(Ok(Some(found)))) => found.spec.as_ref().is_some_and(stage),
            Some(Done::Removed { .. } | Done::Read(_)) => false,
            Some(Done::Applied { .. } | Done::Listeners { .. } | Done::Audited { .. }) | None => before,
        }
    }

    fn watch(&mut self) -> Option<Monitor> {
        let opened = Monitor::open(&self.netns).map(|mut monitor| {
            if let Some(session) = &self.session {
                monitor.known(session);
            }
            monitor
        });
        opened
            .inspect_err(|error| {
                tracing::warn!(error = causes(error), "no notifications of a pod's netns; its timer audits")
            })
            .ok()
    }

    fn listeners(&self, mark: Option<Mark>) -> bool {
        let read = self.netns.run(|| Diag::open().and_then(|mut diag| diag.listeners()));
        let ours = |listener: &Listener, port: u16| {
            let Listener { address, mark: has } = *listener;
            let at = address.port() == port && address.is_ipv6() && address.ip().is_unspecified();
            at && mark.is_none_or(|mark| mark.value() == has & Mark::MASK)
        };
        match read {
            Ok(Ok(found)) => LISTENERS.iter().all(|port| found.iter().any(|listener| ours(listener, *port))),
            Ok(Err(error)) => {
                tracing::warn!(netns = %self.netns.id(), %error, "listeners of a pod cannot be read");
                false
            }
            Err(error) => {
                tracing::warn!(netns = %self.netns.id(), error = causes(&error), "netns of a pod cannot be entered");
                false
            }
        }
    }

    fn session(&mut self) -> Result<&mut Session, capture::Error> {
        if self.kernel.is_host(self.netns.id()) {
            return Err(capture::Error::HostNetns(self.netns.id()));
        }
        if self.session.is_none() {
            let mut session = Session::open_in(&self.netns, self.kernel.mode, self.kernel.host)?;
            session.exclude(self.exclusions.clone());
            session.limit(self.kernel.flows);
            self.session = Some(session);
        }
        Ok(self.session.as_mut().expect("filled above"))
    }
}

fn failure(error: &capture::Error) -> Failure {
    let (reason, next) = match error {
        capture::Error::HostNetns(_) => {
            (Reason::Conflict, "this is the node's own network: the pod should be hostNetwork")
        }
        capture::Error::OwnedByOther { .. } => (Reason::Conflict, "stop the other pod-watcher on this node"),
        capture::Error::TooManyFlows { .. } => (
            Reason::Overloaded,
            "wait until the pod has fewer connections, start it anew, or raise --flow-limit of pod-watcher",
        ),
        capture::Error::OwnedUnsupported => (Reason::Kernel, "start pod-watcher with --table-mode plain"),
        _ => (Reason::Kernel, "see the log of pod-watcher on this node, and the kernel's nf_tables modules"),
    };
    Failure { reason, message: format!("capture rules: {}", causes(error)), next }
}

//! Programs the lab started: signals, waiting, logs, restart.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

pub use crate::pid::Pid;
use crate::spawn::{self, Place, Program, Started};
use crate::state::Dir;
use crate::wait;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Exit code.
    Code(i32),
    /// Ended by this signal.
    Signal(i32),
    /// It is gone, but it was not this process's child (a lab that was attached to).
    Unknown,
}

impl Exit {
    /// Exit code 0.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }
}

impl From<std::process::ExitStatus> for Exit {
    fn from(status: std::process::ExitStatus) -> Exit {
        use std::os::unix::process::ExitStatusExt;
        status.code().map(Exit::Code).or(status.signal().map(Exit::Signal)).unwrap_or(Exit::Unknown)
    }
}

/// Children of this process that run in nodes. One table for the whole process: the kernel lets the pid 1 of a node end
/// only when each of them has been reaped, so whoever takes a lab down must be able to.
static CHILDREN: Mutex<Option<HashMap<Pid, Arc<Mutex<Child>>>>> = Mutex::new(None);

fn children() -> MutexGuard<'static, Option<HashMap<Pid, Arc<Mutex<Child>>>>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a child into the table.
pub(crate) fn adopt(child: Child) -> Result<Pid> {
    let pid = Pid::of(child.id())?;
    children().get_or_insert_default().insert(pid, Arc::new(Mutex::new(child)));
    Ok(pid)
}

/// The child's standard input, once.
pub(crate) fn take_stdin(pid: Pid) -> Option<std::process::ChildStdin> {
    let child = children().as_ref()?.get(&pid)?.clone();
    child.lock().unwrap_or_else(PoisonError::into_inner).stdin.take()
}

fn try_wait(pid: Pid) -> Option<Exit> {
    let child = children().as_ref().and_then(|c| c.get(&pid).cloned());
    match child {
        Some(child) => child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten().map(Exit::from),
        None => (!pid.is_alive()).then_some(Exit::Unknown),
    }
}

/// Reaps every child that has ended; what it ended with stays readable.
pub(crate) fn reap_ended() {
    let all: Vec<Pid> = children().iter().flat_map(|c| c.keys().copied()).collect();
    for pid in all {
        try_wait(pid);
    }
}

/// A program of the lab that was started and may be started again.
#[derive(Clone)]
pub struct Process {
    shared: Arc<Shared>,
}

struct Shared {
    program: Program,
    at: Place,
    lab: Dir,
    now: Mutex<Started>,
}

/// What is recorded about a process, so that a later `culvert-lab` finds it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) program: Program,
    pub(crate) at: Place,
    pub(crate) pid: Pid,
}

/// Every recorded program of a lab, by its name.
pub(crate) fn recorded(lab: &Dir) -> BTreeMap<String, Process> {
    let records: Vec<Record> = lab.read_all("processes");
    records.into_iter().map(|record| (record.program.name.clone(), Process::recorded(record, lab.clone()))).collect()
}

impl Process {
    pub(crate) fn started(program: Program, at: Place, lab: Dir, now: Started) -> Process {
        let process = Process { shared: Arc::new(Shared { program, at, lab, now: Mutex::new(now) }) };
        process.record();
        process
    }

    pub(crate) fn recorded(record: Record, lab: Dir) -> Process {
        let Record { program, at, pid } = record;
        let now = Started { pid, out_from: 0, log_from: 0 };
        Process { shared: Arc::new(Shared { program, at, lab, now: Mutex::new(now) }) }
    }

    fn record(&self) {
        let Shared { program, at, lab, .. } = &*self.shared;
        // A lab that is being taken down has no place for records any more: not an error.
        let _ = lab.write(
            format!("processes/{}.json", program.name),
            &Record { program: program.clone(), at: at.clone(), pid: self.id() },
        );
    }

    /// Its name in the lab, also of its log files.
    pub fn name(&self) -> &str {
        &self.shared.program.name
    }

    /// The process that runs, or ran last.
    pub fn id(&self) -> Pid {
        self.now().pid
    }

    fn now(&self) -> Started {
        *self.shared.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pid as the machine counts it.
    pub fn pid(&self) -> u32 {
        self.id().pid
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        self.id().is_alive()
    }

    /// Sends a signal; an error if it no longer runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.id().signal(signal) {
            Ok(())
        } else {
            bail!("signal {} to {}: it has ended", signal.as_raw(), self.name())
        }
    }

    /// `SIGKILL`, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        self.id().signal(Signal::KILL);
        self.wait(Duration::from_secs(5)).map(drop)
    }

    /// `SIGTERM`, waits, then `SIGKILL`: what kubelet does.
    pub fn stop(&self, grace: Duration) -> Result<Exit> {
        self.id().signal(Signal::TERM);
        self.wait(grace).or_else(|_| {
            self.id().signal(Signal::KILL);
            self.wait(Duration::from_secs(5))
        })
    }

    /// Waits for its end.
    pub fn wait(&self, deadline: Duration) -> Result<Exit> {
        let pid = self.id();
        // Noticed at once; the rest is the moment until it can be reaped.
        pid.wait_end(deadline);
        wait::until(&format!("{} (pid {}) to end", self.name(), pid.pid), Duration::from_millis(50), || try_wait(pid))
            .with_context(|| format!("after {:.1} s", deadline.as_secs_f64()))
    }

    /// Starts it again after it has ended (it is killed first if it has not); the logs go on in the same files.
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        let now = spawn::start(&self.shared.lab, &self.shared.at, &self.shared.program)?;
        *self.shared.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.record();
        Ok(())
    }

    /// Forgets the record of a process that has ended.
    pub(crate) fn forget(&self) {
        let _ = fs::remove_file(self.shared.lab.join(format!("processes/{}.json", self.name())));
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        read_lossy(&self.shared.lab.join(format!("logs/{}.log", self.name())))
    }

    /// What it wrote to standard output.
    pub fn stdout(&self) -> String {
        read_lossy(&self.shared.lab.join(format!("logs/{}.out", self.name())))
    }

    /// Where its log files are, without `.log` and `.out`.
    pub fn log_base(&self) -> PathBuf {
        self.shared.lab.join(format!("logs/{}", self.name()))
    }

    /// Waits until the log (standard error) holds `text`, written since its last start; its last lines are in the error if it never does.
    pub fn wait_log(&self, text: &str, deadline: Duration) -> Result<()> {
        self.wait_for(text, deadline, || since(self.log(), self.now().log_from))
    }

    /// The same for standard output.
    pub fn wait_stdout(&self, text: &str, deadline: Duration) -> Result<()> {
        self.wait_for(text, deadline, || since(self.stdout(), self.now().out_from))
    }

    fn wait_for(&self, text: &str, deadline: Duration, read: impl Fn() -> String) -> Result<()> {
        wait::until(&format!("{} to print {text:?}", self.name()), deadline, || {
            let seen = read().contains(text);
            // One more look after its end: it may have printed and ended in between.
            if !seen && !self.is_alive() { Some(read().contains(text)) } else { seen.then_some(true) }
        })
        .and_then(|seen| if seen { Ok(()) } else { bail!("{} ended without printing {text:?}", self.name()) })
        .with_context(|| format!("its last lines:\n{}", self.tail(15)))
    }

    /// The last lines of the log.
    pub fn tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Writes a line to its standard input (programs started with [`crate::Program::with_stdin`]).
    pub fn write_line(&self, line: &str) -> Result<()> {
        use std::io::Write;
        let pid = self.id();
        let child = children().as_ref().and_then(|c| c.get(&pid).cloned());
        let child = child.with_context(|| format!("{} was not started by this process", self.name()))?;
        let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
        let stdin = child.stdin.as_mut().with_context(|| format!("{} has no standard input", self.name()))?;
        stdin.write_all(format!("{line}\n").as_bytes()).with_context(|| format!("write to {}", self.name()))
    }

    /// Closes its standard input.
    pub fn close_stdin(&self) {
        drop(take_stdin(self.id()));
    }
}

fn since(text: String, from: u64) -> String {
    text.get(from as usize..).map(str::to_owned).unwrap_or(text)
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

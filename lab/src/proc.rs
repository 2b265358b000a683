//! Processes of the lab: which they are (pid and start time, never a pid alone), signals, waiting, logs, restart.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::wait;

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pid {
    /// The pid as the machine (not the node) counts it.
    pub pid: u32,
    /// Start time in clock ticks since boot: `/proc/PID/stat`, field 22.
    pub start: u64,
}

impl Pid {
    /// The process that has this pid now.
    pub fn of(pid: u32) -> Result<Pid> {
        let Stat { start, .. } = stat(pid).with_context(|| format!("read /proc/{pid}/stat"))?;
        Ok(Pid { pid, start })
    }

    /// The calling process.
    pub fn current() -> Result<Pid> {
        Pid::of(std::process::id())
    }

    /// Whether it still runs. A zombie does not, unless only its first thread is one: others may still be ending, and with
    /// them a whole pid namespace.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_ok_and(|s| s.start == self.start && s.state != 'X' && (s.state != 'Z' || s.threads > 1))
    }

    /// Sends a signal, if it is still this process. Whether it was.
    pub fn signal(&self, signal: Signal) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) else { return false };
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
        // The pidfd is bound to one process; the start time read after it was opened says whether it is ours.
        self.is_alive() && pidfd_send_signal(&fd, signal).is_ok()
    }

    /// Waits for its end by the kernel's own notice, exact to the moment; whether it came in time.
    pub(crate) fn wait_end(&self, deadline: Duration) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) else { return true };
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
        if !self.is_alive() {
            return true;
        }
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(_) if left.is_zero() => return false,
                Err(_) => {} // interrupted by a signal
            }
        }
    }

    /// A field of `/proc/PID/status`, as text.
    pub fn status(&self, field: &str) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
    }

    /// Proportional memory in bytes, from `smaps_rollup`.
    pub fn pss(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).ok()?;
        let line = text.lines().find(|l| l.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// Number of open descriptors.
    pub fn fds(&self) -> Option<usize> {
        Some(fs::read_dir(format!("/proc/{}/fd", self.pid)).ok()?.count())
    }

    /// The processes whose parent this is.
    pub fn children(&self) -> Vec<Pid> {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return Vec::new() };
        let lists = tasks.flatten().filter_map(|t| fs::read_to_string(t.path().join("children")).ok());
        lists
            .flat_map(|l| l.split_whitespace().filter_map(|p| Pid::of(p.parse().ok()?).ok()).collect::<Vec<_>>())
            .collect()
    }

    /// One of its namespaces, as a path that can be opened from outside.
    pub fn ns(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.pid))
    }

    /// A path inside its mount namespace, as seen from outside.
    pub fn root(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        Path::new(&format!("/proc/{}/root", self.pid)).join(path.strip_prefix("/").unwrap_or(path))
    }
}

struct Stat {
    state: char,
    threads: u32,
    start: u64,
}

fn stat(pid: u32) -> std::io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command name may hold spaces and parentheses; the fields follow the last one, the state being field 3.
    let fields: Vec<&str> = text.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let number = |field: usize| fields.get(field - 3).and_then(|s| s.parse::<u64>().ok()).unwrap_or(0);
    let state = fields.first().and_then(|s| s.chars().next()).unwrap_or('?');
    Ok(Stat { state, threads: number(20) as u32, start: number(22) })
}

/// Living processes of a lab, by the lab's name in their environment or on their command line: to look for leftovers, never
/// to decide whom to kill.
pub(crate) fn of_lab(name: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let (variable, path) = (format!("CULVERT_LAB={name}"), format!("{}/{name}\"", crate::state::ROOT));
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let is_of_lab = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|v| v == variable.as_bytes())
            || (command.windows(9).any(|w| w == b"node-init")
                && command.windows(path.len()).any(|w| w == path.as_bytes()))
    };
    pids.filter(is_of_lab).collect()
}

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
    program: crate::Program,
    at: crate::spawn::Place,
    lab: crate::state::Dir,
    now: Mutex<Pid>,
}

/// What is recorded about a process, so that a later `culvert-lab` finds it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) program: crate::Program,
    pub(crate) at: crate::spawn::Place,
    pub(crate) pid: Pid,
}

impl Process {
    pub(crate) fn started(
        program: crate::Program,
        at: crate::spawn::Place,
        lab: crate::state::Dir,
        pid: Pid,
    ) -> Process {
        let process = Process { shared: Arc::new(Shared { program, at, lab, now: Mutex::new(pid) }) };
        process.record();
        process
    }

    pub(crate) fn recorded(record: Record, lab: crate::state::Dir) -> Process {
        Process {
            shared: Arc::new(Shared { program: record.program, at: record.at, lab, now: Mutex::new(record.pid) }),
        }
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
        let pid = crate::spawn::start(&self.shared.lab, &self.shared.at, &self.shared.program)?;
        *self.shared.now.lock().unwrap_or_else(PoisonError::into_inner) = pid;
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

    /// Waits until the log (standard error) holds `text`; its last lines are in the error if it never does.
    pub fn wait_log(&self, text: &str, deadline: Duration) -> Result<()> {
        self.wait_for(text, deadline, || self.log())
    }

    /// The same for standard output.
    pub fn wait_stdout(&self, text: &str, deadline: Duration) -> Result<()> {
        self.wait_for(text, deadline, || self.stdout())
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

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let me = Pid::current().expect("own stat");
        assert!(me.is_alive());
        let other = Pid { start: me.start + 1, ..me };
        assert!(!other.is_alive() && !other.signal(Signal::TERM));
    }
}

//! Which process: pid and start time together, never a pid alone; what /proc tells of it, signals, its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

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

    /// Whether every thread of it stands still after `SIGSTOP`: the signal is sent before it has reached them all.
    pub fn is_stopped(&self) -> bool {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return false };
        let state = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
        tasks.flatten().all(|task| state(task).is_some_and(|text| text.contains("\nState:\tT")))
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

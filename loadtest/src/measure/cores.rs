//! Which core a process may run on.

use std::fs;

use anyhow::{Context, Result};
use lab::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Puts every thread of a process on one core.
pub fn pin(pid: &Pid, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    let dir = format!("/proc/{}/task", pid.pid);
    for task in fs::read_dir(&dir).with_context(|| format!("read {dir}"))?.flatten() {
        let thread =
            task.file_name().to_str().and_then(|name| name.parse().ok()).and_then(rustix::process::Pid::from_raw);
        match sched_setaffinity(thread, &cores) {
            // It ended between the listing and here.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("put process {} on core {core}", pid.pid)),
        }
    }
    Ok(())
}

/// Cores of the machine.
pub fn count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

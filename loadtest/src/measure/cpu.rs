//! CPU time by the scheduler's own clock: nanoseconds each thread was on a core, system calls and the softirqs that ran in them
//! included. Not by ticks, which miss what runs in between.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::Pid;

/// Time the threads of these processes have been on a core. A thread that has ended takes its time with it; the proxies' threads
/// live as long as they do.
pub fn used(pids: &[Pid]) -> Result<Duration> {
    pids.iter().map(|pid| of_process(pid.pid)).sum()
}

/// The same for this process.
pub fn own() -> Result<Duration> {
    of_process(std::process::id())
}

fn of_process(pid: u32) -> Result<Duration> {
    let dir = format!("/proc/{pid}/task");
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(&dir).with_context(|| format!("read {dir}"))?.flatten() {
        // A thread may end between the listing and the reading.
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        sum += parse(&text).with_context(|| format!("schedstat of process {pid}: {text:?}"))?;
    }
    Ok(sum)
}

/// The first field: nanoseconds on a core (Documentation/scheduler/sched-stats.rst).
fn parse(text: &str) -> Option<Duration> {
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_field_is_the_time_on_a_core() {
        assert_eq!(parse("1500 72636 4\n"), Some(Duration::from_nanos(1500)));
        assert_eq!((parse(""), parse("x 1 2")), (None, None));
    }

    #[test]
    fn work_of_this_process_shows() {
        let before = own().expect("own schedstat");
        let mut sum = 0_u64;
        while own().expect("own schedstat") < before + Duration::from_millis(2) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(sum > 0);
    }
}

//! Whether the machine did something else meanwhile: time its cores were not idle, less the time of the bench's own labs and of
//! this process. Time that a hypervisor took away counts too.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::cgroup;

use super::cpu;

/// Other load above this share of one core spoils a sample. Idle time is counted in ticks of 10 ms, two of which are 4 % of the
/// shortest sample.
pub const THRESHOLD: f64 = 0.10;
/// The kernel's unit of /proc/stat, USER_HZ, is the same on every Linux machine of today.
const TICK: Duration = Duration::from_millis(10);

/// A moment.
pub struct Mark {
    at: Instant,
    idle: Duration,
    cores: u32,
    ours: Duration,
}

impl Mark {
    /// Now, for the labs of these names.
    pub fn now(labs: &[String]) -> Result<Mark> {
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let (idle, cores) = parse(&text).context("a line `cpu` in /proc/stat")?;
        let ours: Duration = labs.iter().filter_map(|lab| cgroup::cpu_used(lab)).sum();
        Ok(Mark { at: Instant::now(), idle, cores, ours: ours + cpu::own()? })
    }

    /// Other load since, as a share of one core.
    pub fn foreign_since(&self, labs: &[String]) -> Result<f64> {
        let now = Mark::now(labs)?;
        let elapsed = now.at - self.at;
        let busy = (elapsed * self.cores).saturating_sub(now.idle.saturating_sub(self.idle));
        let foreign = busy.saturating_sub(now.ours.saturating_sub(self.ours));
        Ok(foreign.as_secs_f64() / elapsed.as_secs_f64().max(1e-6))
    }
}

/// Idle time of all cores (waiting for disks included), and their number.
fn parse(text: &str) -> Option<(Duration, u32)> {
    let all = text.lines().find(|line| line.starts_with("cpu "))?;
    let fields: Vec<u32> = all.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    let [_, _, _, idle, waiting, ..] = fields[..] else { return None };
    let cores = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    Some((TICK * (idle + waiting), u32::try_from(cores).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_of_all_cores_are_idle() {
        let text = "cpu  10 0 5 300 7 0 1 2 0 0\ncpu0 5 0 3 150 3 0 1 1 0 0\ncpu1 5 0 2 150 4 0 0 1 0 0\nintr 5\n";
        assert_eq!(parse(text), Some((Duration::from_millis(3070), 2)));
        assert_eq!(parse("intr 5\n"), None);
    }
}

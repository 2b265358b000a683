//! The standard metrics of a process, by the names that Prometheus' own clients use, and which build it is.
//!
//! Read at each scrape and never kept: what /proc and the kernel's clocks say. Nothing here needs a privilege: the files of a process
//! are its own also where it is not dumpable (proc(5): the descriptor list is open to threads of the same process).

use std::fs;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, Opts, Registry};
use rustix::process::Resource;

/// This build: all crates carry the workspace's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Ticks of a second in /proc/PID/stat: the kernel's USER_HZ, 100 on all machines that we build for (asm-generic/param.h). Asking
/// rustix, also for a clock, may read the auxiliary vector by prctl, which our seccomp filters refuse (seen).
const USER_HZ: f64 = 100.0;

/// What a process uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system CPU time since its start, in steps of 10 ms (stat, fields 14 and 15).
    pub cpu: Duration,
    /// Resident memory in bytes (proc(5), status, VmRSS).
    pub resident_bytes: u64,
    /// Virtual memory in bytes (VmSize).
    pub virtual_bytes: u64,
    /// Open descriptors; the one that counts them is not counted.
    pub open_fds: u64,
    /// Most descriptors it may open (RLIMIT_NOFILE, soft).
    pub max_fds: u64,
    /// When it started, in seconds since the epoch (stat, field 22, after the boot time of /proc/stat).
    pub start_seconds: f64,
    /// Its threads.
    pub threads: u64,
}

impl Usage {
    /// Of this process. What cannot be read is zero: a gauge that is missing would look like a process that is gone.
    pub fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        Self {
            cpu: Duration::from_secs_f64((field(&stat, 14) + field(&stat, 15)) as f64 / USER_HZ),
            resident_bytes: line(&status, "VmRSS:") * 1024,
            virtual_bytes: line(&status, "VmSize:") * 1024,
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1)) as u64,
            // No limit is a very large one.
            max_fds: rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            start_seconds: boot_seconds() + field(&stat, 22) as f64 / USER_HZ,
            threads: line(&status, "Threads:"),
        }
    }
}

/// The number behind a name of /proc/PID/status; kilobytes are 1024 bytes (proc(5)).
fn line(status: &str, name: &str) -> u64 {
    let rest = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    rest.split_ascii_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The n-th field of /proc/PID/stat, counted from 1 as in proc(5). The second is a name in parentheses that may hold anything.
fn field(stat: &str, n: usize) -> u64 {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_ascii_whitespace().nth(n - 3).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// When the machine started, in seconds since the epoch.
fn boot_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or(0.0)
}

/// A gauge and what of the usage it shows.
type Reading = (Gauge, fn(&Usage) -> f64);

/// Reads [`Usage`] when it is gathered.
struct Process {
    cpu: prometheus::Counter,
    gauges: [Reading; 6],
}

impl Process {
    fn new() -> prometheus::Result<Self> {
        let gauge =
            |name: &str, help: &str, of: fn(&Usage) -> f64| Ok::<_, prometheus::Error>((Gauge::new(name, help)?, of));
        Ok(Self {
            cpu: prometheus::Counter::new("process_cpu_seconds_total", "User and system CPU time spent, in seconds.")?,
            gauges: [
                gauge("process_resident_memory_bytes", "Resident memory, in bytes.", |usage| {
                    usage.resident_bytes as f64
                })?,
                gauge("process_virtual_memory_bytes", "Virtual memory, in bytes.", |usage| usage.virtual_bytes as f64)?,
                gauge("process_open_fds", "Open file descriptors.", |usage| usage.open_fds as f64)?,
                gauge("process_max_fds", "Most file descriptors that may be open.", |usage| usage.max_fds as f64)?,
                gauge(
                    "process_start_time_seconds",
                    "When the process started, in seconds since the epoch.",
                    |usage| usage.start_seconds,
                )?,
                gauge("process_threads", "Threads of the process.", |usage| usage.threads as f64)?,
            ],
        })
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.cpu.desc().into_iter().chain(self.gauges.iter().flat_map(|(gauge, _)| gauge.desc())).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let usage = Usage::now();
        // Two scrapes at once: a step back by the older reading is left out.
        self.cpu.inc_by((usage.cpu.as_secs_f64() - self.cpu.get()).max(0.0));
        for (gauge, of) in &self.gauges {
            gauge.set(of(&usage));
        }
        let gauges = self.gauges.iter().flat_map(|(gauge, _)| gauge.collect());
        self.cpu.collect().into_iter().chain(gauges).collect()
    }
}

/// Adds the process's metrics, `culvert_build_info` and what its log has lost to a registry; nothing happens where they are already there.
pub fn register(registry: &Registry) -> prometheus::Result<()> {
    let info = GaugeVec::new(Opts::new("culvert_build_info", "The build that runs; always 1."), &["version"])?;
    info.with_label_values(&[VERSION]).set(1.0);
    let lost = crate::stderr::LOST.clone();
    for metric in [Box::new(Process::new()?) as Box<dyn Collector>, Box::new(info), Box::new(lost)] {
        match registry.register(metric) {
            Err(prometheus::Error::AlreadyReg) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn what_the_process_uses_is_seen() {
        // Other tests of this process open and close as well: what they give up meanwhile may hide it once, not every time.
        let looks = || {
            let before = Usage::now();
            let held: Vec<File> = (0..50).map(|_| File::open("/proc/self/statm").expect("own file")).collect();
            let filled = std::hint::black_box(vec![1_u8; 64 << 20]);
            let after = Usage::now();
            drop((held, filled));
            let more = (after.open_fds, after.resident_bytes);
            (more.0 >= before.open_fds + 40 && more.1 >= before.resident_bytes + (48 << 20)).then_some((before, after))
        };
        let (before, after) = (0..20).find_map(|_| looks()).expect("what is held is seen");
        let spent = std::time::Instant::now();
        while Usage::now().cpu <= before.cpu {
            assert!(spent.elapsed() < Duration::from_secs(10), "CPU time stands still");
        }
        assert!(after.max_fds >= after.open_fds && after.threads >= 1, "{after:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert!((now - after.start_seconds).abs() < 3600.0, "{now} {after:?}");
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_is_no_field() {
        let stat = format!("7 (a) b) S {}", (4..=30).map(|n| n.to_string()).collect::<Vec<_>>().join(" "));
        assert_eq!((field(&stat, 20), field(&stat, 22)), (20, 22));
        assert_eq!(field("", 22), 0);
    }

    #[test]
    fn registering_twice_is_no_error_and_every_name_is_there_once() {
        let registry = Registry::new();
        register(&registry).expect("first");
        register(&registry).expect("second");
        let names: Vec<String> = registry.gather().iter().map(|family| family.name().to_owned()).collect();
        let expected = [
            "culvert_build_info",
            "culvert_log_lines_lost_total",
            "process_cpu_seconds_total",
            "process_max_fds",
            "process_open_fds",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
            "process_threads",
            "process_virtual_memory_bytes",
        ];
        assert_eq!(names, expected);
    }
}

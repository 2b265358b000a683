//! Whether a daemon grows: its resident memory over time, and the slope of a line through it.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pid};

/// What is held at first use is there by then.
const WARM: Duration = Duration::from_secs(300);
/// Most that a daemon may grow.
const MOST_PERCENT: f64 = 1.0;
/// In this time.
const PER: f64 = 600.0;

struct Daemon {
    name: String,
    pid: Pid,
    /// Seconds and bytes.
    samples: Vec<(f64, f64)>,
}

pub(super) struct Growth(Vec<Daemon>);

impl Growth {
    pub(super) fn of(lab: &Lab) -> Result<Growth> {
        Ok(Growth(daemons(lab)?.into_iter().map(|(name, pid)| Daemon { name, pid, samples: Vec::new() }).collect()))
    }

    /// Notes everybody's memory; fails when a daemon has ended.
    pub(super) fn sample(&mut self, since: Duration) -> Result<()> {
        for Daemon { name, pid, samples } in &mut self.0 {
            let bytes = resident(pid).with_context(|| format!("{name} has ended"))?;
            samples.push((since.as_secs_f64(), bytes));
        }
        Ok(())
    }

    pub(super) fn now(&self) -> String {
        let last = |daemon: &Daemon| {
            let bytes = daemon.samples.last().map_or(0.0, |(_, bytes)| *bytes);
            format!("{} {:.1}", daemon.name, bytes / f64::from(1 << 20))
        };
        format!("MiB: {}", self.0.iter().map(last).collect::<Vec<_>>().join(", "))
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!("{:<18} {:>9} {:>9} {:>16}\n", "daemon", "first MiB", "last MiB", "% per 10 minutes");
        for daemon in &self.0 {
            let at = |sample: Option<&(f64, f64)>| sample.map_or(0.0, |(_, bytes)| bytes / f64::from(1 << 20));
            let (first, last) = (at(daemon.samples.first()), at(daemon.samples.last()));
            let _ = writeln!(text, "{:<18} {first:>9.1} {last:>9.1} {:>16.2}", daemon.name, daemon.slope());
        }
        text
    }

    pub(super) fn judge(&self) -> Result<()> {
        let grown = self.0.iter().filter(|daemon| daemon.slope() >= MOST_PERCENT);
        let grown: Vec<String> = grown.map(|daemon| format!("{} by {:.2} %", daemon.name, daemon.slope())).collect();
        ensure!(grown.is_empty(), "grown in 10 minutes: {}", grown.join(", "));
        Ok(())
    }
}

impl Daemon {
    /// Per cent of its mean in ten minutes, once warm; over the second half of a run that is too short for that.
    fn slope(&self) -> f64 {
        let whole = self.samples.last().map_or(0.0, |(at, _)| *at);
        let from = WARM.as_secs_f64().min(whole / 2.0);
        let warm: Vec<(f64, f64)> = self.samples.iter().copied().filter(|(at, _)| *at >= from).collect();
        slope(&warm)
    }
}

/// Least squares.
fn slope(samples: &[(f64, f64)]) -> f64 {
    let count = samples.len() as f64;
    let (x, y) = samples.iter().fold((0.0, 0.0), |(x, y), (a, b)| (x + a / count, y + b / count));
    let over: f64 = samples.iter().map(|(a, b)| (a - x) * (b - y)).sum();
    let under: f64 = samples.iter().map(|(a, _)| (a - x) * (a - x)).sum();
    if under > 0.0 && y > 0.0 { over / under * PER / y * 100.0 } else { 0.0 }
}

/// Every daemon of the mesh, by name.
pub(super) fn daemons(lab: &Lab) -> Result<Vec<(String, Pid)>> {
    let mesh = lab.mesh();
    let mut all = vec![("control-plane".to_owned(), mesh.control_plane().id())];
    for node in lab.nodes() {
        let index = node.index();
        all.push((format!("pod-watcher-{index}"), mesh.watcher(index).id()));
        all.push((format!("keeper-{index}"), mesh.keeper(index).id()));
        all.push((format!("worker-{index}"), mesh.worker_child(index)?));
    }
    Ok(all)
}

fn resident(pid: &Pid) -> Option<f64> {
    let text = pid.status("VmRSS")?;
    let kib: f64 = text.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kib * 1024.0)
}

#[test]
fn a_line_through_growth_has_its_slope_and_one_through_noise_has_none() {
    let growing: Vec<(f64, f64)> = (0..100).map(|n| (f64::from(n) * 6.0, 1000.0 + f64::from(n))).collect();
    assert!((slope(&growing) - 100.0 / 1049.5 * 100.0).abs() < 0.1, "{}", slope(&growing));
    let noise: Vec<(f64, f64)> = (0..100).map(|n| (f64::from(n), 1000.0 + f64::from(n % 2))).collect();
    assert!(slope(&noise).abs() < 0.1);
}

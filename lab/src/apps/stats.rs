//! What an app counts, in a file that anyone may read at any time.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Connections accepted and bytes received by a pod's servers, since the file was made (it outlives a restart).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Connections accepted.
    pub connections: u64,
    /// Bytes received.
    pub bytes: u64,
    /// The same by port.
    pub ports: BTreeMap<u16, PortStats>,
}

/// Counts of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStats {
    /// Connections accepted.
    pub connections: u64,
    /// Bytes received.
    pub bytes: u64,
}

/// Bytes of a line: `port connections bytes\n`, each right-aligned, so that one positioned write replaces it whole.
const LINE: usize = 5 + 1 + 20 + 1 + 20 + 1;

impl Stats {
    /// Reads the file; what is not there counts as zero.
    pub fn read(path: &Path) -> Stats {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut stats = Stats::default();
        for line in text.lines() {
            let mut fields = line.split_whitespace().map(|f| f.parse::<u64>().unwrap_or(0));
            let (Some(port), Some(connections), Some(bytes)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            stats.connections += connections;
            stats.bytes += bytes;
            stats.ports.insert(port as u16, PortStats { connections, bytes });
        }
        stats
    }

    /// Counts of a port.
    pub fn port(&self, port: u16) -> PortStats {
        self.ports.get(&port).copied().unwrap_or_default()
    }
}

/// The writing side: one line per port, rewritten in place at each event.
pub(crate) struct Counter {
    file: Option<File>,
    lines: Mutex<Vec<(u16, PortStats)>>,
}

impl Counter {
    /// Counts into `path`, going on from what it holds; into nothing when there is no path.
    pub(crate) fn open(path: Option<&Path>, ports: &[u16]) -> Result<Counter> {
        let Some(path) = path else { return Ok(Counter { file: None, lines: Mutex::default() }) };
        let old = Stats::read(path);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        let counter =
            Counter { file: Some(file), lines: Mutex::new(ports.iter().map(|p| (*p, old.port(*p))).collect()) };
        for port in ports {
            counter.add(*port, 0, 0);
        }
        Ok(counter)
    }

    pub(crate) fn add(&self, port: u16, connections: u64, bytes: u64) {
        let Some(file) = &self.file else { return };
        let mut lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(index) = lines.iter().position(|(p, _)| *p == port) else { return };
        let stats = &mut lines[index].1;
        stats.connections += connections;
        stats.bytes += bytes;
        let line = format!("{port:>5} {:>20} {:>20}\n", stats.connections, stats.bytes);
        // A count that cannot be written must not look like a quiet app.
        if let Err(error) = file.write_all_at(line.as_bytes(), (index * LINE) as u64) {
            eprintln!("count: {error}");
            std::process::exit(3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_on_after_a_restart() {
        let path = std::env::temp_dir().join(format!("culvert-lab-stats-{}", std::process::id()));
        let counter = Counter::open(Some(&path), &[7000, 80]).expect("a file");
        counter.add(80, 1, 10);
        counter.add(7000, 1, 5);
        drop(counter);
        let counter = Counter::open(Some(&path), &[7000, 80]).expect("a file");
        counter.add(80, 1, 0);
        let stats = Stats::read(&path);
        std::fs::remove_file(&path).expect("made above");
        assert_eq!((stats.connections, stats.bytes), (3, 15));
        assert_eq!(stats.port(80), PortStats { connections: 2, bytes: 10 });
    }
}

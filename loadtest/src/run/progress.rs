//! What a person sees while a run goes on: one line on standard error per step.

use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Says how far it is.
pub(super) struct Progress {
    terminal: bool,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress { terminal: std::io::stderr().is_terminal() }
    }

    /// A line that stays.
    pub(super) fn say(&self, text: &str) {
        let mut err = std::io::stderr().lock();
        let _ = match self.terminal {
            true => writeln!(err, "\r\x1b[K{text}"),
            false => writeln!(err, "{text}"),
        };
    }

    /// A step; on a terminal it takes the place of the one before, elsewhere only a scenario's first is written.
    pub(super) fn step(&self, text: &str, first: bool, left: Duration) {
        let mut err = std::io::stderr().lock();
        let left = match left.as_secs() {
            seconds @ 0..120 => format!("{seconds} s"),
            seconds => format!("{} min", seconds.div_ceil(60)),
        };
        let _ = match (self.terminal, first) {
            (true, _) => write!(err, "\r\x1b[K{text} · about {left} left").and_then(|()| err.flush()),
            (false, true) => writeln!(err, "{text} · about {left} left"),
            (false, false) => Ok(()),
        };
    }
}

//! Standard error as a place that takes what it can: a reader that has stopped, or a full disk, costs lines and never time.
//!
//! In a pod it is a pipe, and whoever should read it may stand still. A line goes out only where the pipe has room for it (poll(2):
//! writable means room for `PIPE_BUF` bytes, and as many go in at once, pipe(7)); else it is left out and counted, and the next one
//! that goes out is preceded by how many there were. It needs no thread, so that it fits a process that may have none besides its own.
//! A pipe that another process writes to as well can fill between the question and the write: a supervisor is silent while its child runs.

use std::io::{self, Write as _};
use std::sync::{LazyLock, Mutex, OnceLock};

use prometheus::IntCounter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

use crate::log_format::Format;

/// As many bytes as a pipe takes as one (`PIPE_BUF` of Linux).
const PIECE: usize = 4096;

/// Lines of this process that nobody took; a metric of every daemon.
pub(crate) static LOST: LazyLock<IntCounter> = LazyLock::new(|| {
    IntCounter::new("culvert_log_lines_lost_total", "Lines of the daemon's own log that standard error did not take.")
        .expect("a constant name")
});
/// Locked while a line goes out: threads that both found room would together need more.
static STATE: Mutex<State> = Mutex::new(State { told: 0, half: false });
static FORMAT: OnceLock<Format> = OnceLock::new();

struct State {
    /// Lines of [`LOST`] that were told of.
    told: u64,
    /// The last thing that went out is the beginning of a line.
    half: bool,
}

/// How lines look, so that what is said here looks alike.
pub(crate) fn looks_like(format: Format) {
    let _ = FORMAT.set(format); // the first one stays, as the log's does
}

/// One per event.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lossy;

impl<'a> MakeWriter<'a> for Lossy {
    type Writer = Lossy;

    fn make_writer(&'a self) -> Lossy {
        Lossy
    }
}

impl io::Write for Lossy {
    /// A whole line, as `tracing_subscriber` hands it over. Never an error: there is nowhere to tell of it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Ok(mut state) = STATE.lock() else { return Ok(line.len()) };
        let missing = LOST.get() - state.told;
        if missing > 0 && state.put(note(missing, FORMAT.get().copied().unwrap_or_default()).as_bytes()) {
            state.told += missing;
        }
        if state.told < LOST.get() || !state.put(line) {
            LOST.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    /// Whether all of it went out. Of a line longer than a piece a part may, where its reader stops half-way: the next begins a new one.
    fn put(&mut self, line: &[u8]) -> bool {
        let stderr = io::stderr();
        let out = |piece: &[u8]| has_room(&stderr) && stderr.lock().write_all(piece).is_ok();
        if self.half && !out(b"\n") {
            return false;
        }
        self.half = false;
        let mut pieces = line.chunks(PIECE);
        let Some(first) = pieces.next() else { return true };
        if !out(first) {
            return false;
        }
        self.half = !pieces.all(out);
        !self.half
    }
}

/// One line in the form of the others.
fn note(missing: u64, format: Format) -> String {
    let text = format!("{missing} log lines were lost here: nobody took them");
    match format {
        Format::Text => text + "\n",
        Format::Json => format!("{{\"level\":\"WARN\",\"message\":\"{text}\",\"lost\":{missing}}}\n"),
    }
}

fn has_room(stderr: &io::Stderr) -> bool {
    let mut asked = [PollFd::new(stderr, PollFlags::OUT)];
    matches!(poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
        && asked[0].revents().contains(PollFlags::OUT)
}

#[cfg(test)]
mod tests;

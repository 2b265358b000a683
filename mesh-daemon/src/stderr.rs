//! Standard error as a place that takes what it can: a reader that has stopped, or a full disk, costs lines and never time.
//!
//! In a pod it is a pipe, and whoever should read it may stand still. A line goes out only where the pipe has room for it (poll(2):
//! writable means room for `PIPE_BUF` bytes, and as many go in at once, pipe(7)); else it is left out and counted, and the next one
//! that goes out is preceded by how many there were. It needs no thread, so that it fits a process that may have none besides its own.

use std::io::{self, Write as _};
use std::sync::{LazyLock, Mutex};

use prometheus::IntCounter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

/// As many bytes as a pipe takes as one (`PIPE_BUF` of Linux).
const PIECE: usize = 4096;

/// Lines of this process that nobody took; a metric of every daemon.
pub(crate) static LOST: LazyLock<IntCounter> = LazyLock::new(|| {
    IntCounter::new("culvert_log_lines_lost_total", "Lines of the daemon's own log that standard error did not take.")
        .expect("a constant name")
});
/// Lines of [`LOST`] that were told of. Locked while a line goes out: threads that both found room would together need more.
static TOLD: Mutex<u64> = Mutex::new(0);

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
        let Ok(mut told) = TOLD.lock() else { return Ok(line.len()) };
        let missing = LOST.get() - *told;
        if missing > 0 && put(format!("{missing} log lines were lost here: nobody took them\n").as_bytes()) {
            *told += missing;
        }
        if *told < LOST.get() || !put(line) {
            LOST.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether all of it went out. Of a line longer than a piece a part may, where its reader stops half-way.
fn put(line: &[u8]) -> bool {
    let stderr = io::stderr();
    line.chunks(PIECE).all(|piece| has_room(&stderr) && stderr.lock().write_all(piece).is_ok())
}

fn has_room(stderr: &io::Stderr) -> bool {
    let mut asked = [PollFd::new(stderr, PollFlags::OUT)];
    matches!(poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
        && asked[0].revents().contains(PollFlags::OUT)
}

#[cfg(test)]
mod tests;

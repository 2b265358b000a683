//! Where the text goes: standard output or a file, and what happens when it does not take it.
//!
//! A write may fail in the middle of a line (a disk fills up byte by byte). The rest of that line is kept and goes out first as soon
//! as writing works again, so that no line is ever cut, or joined to another. Lines that come in between are lost and counted. Only
//! the writer's own thread calls this; it may stand still in a write for as long as the reader does.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags};

/// What became of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// Written whole.
    pub written: u64,
    /// Gone.
    pub lost: u64,
}

/// Something that takes bytes as far as it can.
pub trait Sink: Send {
    /// As [`io::Write::write`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// How long it is, for a file that could be cut short by a rotation.
    fn len(&self) -> Option<u64>;
    /// Waits until it may take bytes again, for one that is in non-blocking mode.
    fn wait(&self);
    /// Opens it again under its name.
    fn reopen(&mut self) -> io::Result<()>;
}

/// The output.
pub struct Output {
    sink: Box<dyn Sink>,
    // The rest of a line whose beginning is written, with its line end, and the length of the file at that moment.
    rest: Vec<u8>,
    length_at_cut: Option<u64>,
    // Lines lost since writing failed first; `None`: it works.
    outage: Option<u64>,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("rest", &self.rest.len()).field("outage", &self.outage).finish_non_exhaustive()
    }
}

impl Output {
    /// Standard output, whatever it is: a pipe, a file, a terminal.
    pub fn stdout() -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self::of(Descriptor { file, path: None }))
    }

    /// Appends to the file at `path`, which may also be a FIFO.
    pub fn file(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(Self::of(Descriptor { file, path: Some(path) }))
    }

    /// Any other.
    pub fn of(sink: impl Sink + 'static) -> Self {
        Self { sink: Box::new(sink), rest: Vec::new(), length_at_cut: None, outage: None }
    }

    /// Writes whole lines, `lines` of them; tells what became of them and of an earlier one that was cut.
    pub fn write(&mut self, batch: &[u8], lines: u64) -> Fate {
        let mut fate = Fate::default();
        if self.cut_short_since() {
            // The beginning is gone with the rest of the file: half a line at its new beginning would be nobody's.
            self.forget_rest(&mut fate);
        }
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            let (done, error) = self.push(&rest);
            if let Some(error) = error {
                self.rest = rest[done..].to_vec();
                self.length_at_cut = self.sink.len();
                fate.lost += lines;
                self.failed(&error, lines);
                return fate;
            }
            fate.written += 1;
        }
        let (done, error) = self.push(batch);
        let Some(error) = error else {
            fate.written += lines;
            self.works();
            return fate;
        };
        let whole = batch[..done].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let written = count_lines(&batch[..whole]);
        let mut lost = lines.saturating_sub(written);
        if whole < done {
            let end = batch[done..].iter().position(|byte| *byte == b'\n').map_or(batch.len(), |at| done + at + 1);
            self.rest = batch[done..end].to_vec();
            self.length_at_cut = self.sink.len();
            lost = lost.saturating_sub(1);
        }
        fate.written += written;
        fate.lost += lost;
        self.failed(&error, lost);
        fate
    }

    /// Opens the file again under its name. Where that fails the old one goes on being written.
    pub fn reopen(&mut self) -> Fate {
        let mut fate = Fate::default();
        match self.sink.reopen() {
            // The beginning of a cut line stays in the old file.
            Ok(()) => self.forget_rest(&mut fate),
            Err(error) => tracing::warn!(%error, "the access log's file cannot be opened again; the old one is kept"),
        }
        fate
    }

    /// As many bytes as it takes.
    fn push(&mut self, bytes: &[u8]) -> (usize, Option<io::Error>) {
        let mut done = 0;
        while done < bytes.len() {
            match self.sink.write(&bytes[done..]) {
                Ok(0) => return (done, Some(io::ErrorKind::WriteZero.into())),
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A pipe that somebody else has set to non-blocking: its reader is behind, which is no failure.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.sink.wait(),
                Err(error) => return (done, Some(error)),
            }
        }
        (done, None)
    }

    fn cut_short_since(&self) -> bool {
        !self.rest.is_empty() && matches!((self.length_at_cut, self.sink.len()), (Some(then), Some(now)) if now < then)
    }

    fn forget_rest(&mut self, fate: &mut Fate) {
        if !std::mem::take(&mut self.rest).is_empty() {
            fate.lost += 1;
        }
    }

    fn failed(&mut self, error: &io::Error, lost: u64) {
        if self.outage.is_none() {
            tracing::warn!(%error, "the access log cannot be written; lines are lost");
        }
        self.outage = Some(self.outage.unwrap_or(0) + lost);
    }

    fn works(&mut self) {
        if let Some(lost) = self.outage.take() {
            tracing::info!(lost, "the access log can be written again");
        }
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// A descriptor, and its name when it has one.
struct Descriptor {
    file: File,
    path: Option<PathBuf>,
}

impl Sink for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn len(&self) -> Option<u64> {
        self.file.metadata().ok().filter(|meta| meta.is_file()).map(|meta| meta.len())
    }

    fn wait(&self) {
        // An error here comes back from the next write; there is no deadline because there is nothing else to do.
        let _ = rustix::event::poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], None);
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.file = open(path)?;
        }
        Ok(())
    }
}

fn open(path: &std::path::Path) -> io::Result<File> {
    // A FIFO that is opened for reading too never waits for a reader (fifo(7)) and does not break when its reader goes away.
    let fifo = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
    OpenOptions::new().append(true).read(fifo).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests;

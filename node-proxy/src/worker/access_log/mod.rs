//! The access log: one line per connection when it has ended, and on demand one when it was set up.
//!
//! The hot path asks the [`filter`](filter::Filters) and the [`sampling`](thin::Sampling), then pushes a box that the connection's
//! record had anyway onto a bounded queue. All else happens on a thread of its own ([`writer`]): the rate cap, the text, the write.
//! Whatever becomes of the disk or the reader, a connection never waits; lines that are lost are counted by [`Cause`](counters::Cause).

mod args;
mod clock;
mod counters;
mod filter;
mod line;
mod output;
mod queue;
mod render;
mod thin;
mod writer;

use std::sync::Arc;

pub use args::{AccessLogArgs, AccessLogFormat};
pub use clock::timestamp;
pub use counters::Counters;
pub use line::{Event, Line, Outcome};
pub use output::Output;
pub use writer::Writer;

use filter::Filters;
use queue::Queue;
use thin::Sampling;

/// Where lines go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog(Option<Arc<Log>>);

#[derive(Debug)]
struct Log {
    queue: Arc<Queue>,
    filters: Filters,
    sampling: Sampling,
    starts: bool,
    counters: Counters,
}

impl AccessLog {
    /// Starts the writer as the flags say; an output that cannot be opened is an error here, at start.
    pub fn start(args: &AccessLogArgs, counters: Counters) -> Result<(Self, Writer), CannotStart> {
        let output = match (&args.format, &args.file) {
            (AccessLogFormat::Off, _) => return Ok((Self(None), Writer::none())),
            (_, Some(path)) => Output::file(path.clone())
                .map_err(|source| CannotStart::File { path: path.display().to_string(), source })?,
            (_, None) => Output::stdout()?,
        };
        Ok(Self::start_with(args, output, counters)?)
    }

    fn start_with(args: &AccessLogArgs, output: Output, counters: Counters) -> std::io::Result<(Self, Writer)> {
        let queue = Arc::new(Queue::default());
        let writer = Writer::start(args, queue.clone(), output, counters.clone())?;
        let (filters, sampling) = (Filters::any_of(args.filter.clone()), Sampling::of(&args.sample));
        Ok((Self(Some(Arc::new(Log { queue, filters, sampling, starts: args.start, counters }))), writer))
    }

    /// Whether lines are wanted for connections that were set up; they cost a copy.
    pub fn wants_starts(&self) -> bool {
        self.0.as_ref().is_some_and(|log| log.starts)
    }

    /// Hands a line over; never waits.
    pub fn line(&self, line: Box<Line>) {
        let Some(log) = &self.0 else { return };
        if !log.filters.pass(&line) {
            return;
        }
        if !log.sampling.keeps(&line) {
            return log.counters.sampled.inc();
        }
        if log.queue.push(line).is_err() {
            log.counters.queue_full.inc();
        }
    }

    /// Opens the file again under its name: a rotation has moved it away. Nothing to do for standard output.
    pub fn reopen(&self) {
        if let Some(log) = &self.0 {
            log.queue.reopen();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // The writer ends when it has written what is there.
        self.queue.close();
    }
}

/// The access log cannot be written as asked.
#[derive(Debug, thiserror::Error)]
pub enum CannotStart {
    /// `--access-log-file`.
    #[error("--access-log-file {path}: {source}")]
    File {
        /// As given.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// No thread, or standard output is closed.
    #[error("start the access log's writer: {0}")]
    Thread(#[from] std::io::Error),
}

/// What a test sees of the lines that were handed over.
#[cfg(test)]
#[derive(Debug)]
pub struct Captured(Arc<Queue>);

#[cfg(test)]
impl Captured {
    /// The next line, when there is one.
    pub fn try_recv(&self) -> Option<Box<Line>> {
        self.0.pop()
    }
}

#[cfg(test)]
impl AccessLog {
    /// A log whose lines a test takes.
    pub fn captured() -> (Self, Captured) {
        let queue = Arc::new(Queue::default());
        let log = Log {
            queue: queue.clone(),
            filters: Filters::default(),
            sampling: Sampling::of(&[]),
            starts: false,
            counters: Counters::unregistered(),
        };
        (Self(Some(Arc::new(log))), Captured(queue))
    }
}

#[cfg(test)]
mod tests;

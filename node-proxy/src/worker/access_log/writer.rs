//! The writer's thread: takes what waits, caps it, renders it, and writes up to 64 KiB at once.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::args::AccessLogArgs;
use super::counters::Counters;
use super::output::{Fate, Output};
use super::queue::{Next, Queue};
use super::render::Renderer;
use super::thin::Cap;

/// A batch is written when it has grown to this: 64 KiB (a pipe's capacity, pipe(7)) less room for one more line.
const FULL: usize = 60 * 1024;

/// The writing thread; waited for at the end of the process so that the last lines are out.
#[derive(Debug)]
pub struct Writer(Option<Receiver<()>>);

impl Writer {
    /// Starts it.
    pub fn start(args: &AccessLogArgs, queue: Arc<Queue>, output: Output, counters: Counters) -> std::io::Result<Self> {
        let (done, ended) = sync_channel(1);
        let work = Work {
            renderer: Renderer::new(args.format),
            cap: Cap::new(args.rate, args.burst),
            output,
            counters,
            text: String::with_capacity(FULL + 4096),
            lines: 0,
        };
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            work.run(&queue);
            drop(done);
        })?;
        Ok(Self(Some(ended)))
    }

    /// Of a log that is off.
    pub fn none() -> Self {
        Self(None)
    }

    /// Waits until every line is written, up to the deadline: a reader that stands still must not keep the process alive. All
    /// [`AccessLog`](super::AccessLog)s must have been dropped, else this waits for them.
    pub fn finish(self, deadline: Duration) {
        let Some(ended) = self.0 else { return };
        // Nothing is ever sent: the thread drops its sender when it has ended.
        if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(deadline) {
            tracing::warn!("the access log's reader stands still; its last lines are lost");
        }
    }
}

struct Work {
    renderer: Renderer,
    cap: Cap,
    output: Output,
    counters: Counters,
    // The batch, and how many lines are in it.
    text: String,
    lines: u64,
}

impl Work {
    fn run(mut self, queue: &Queue) {
        let mut taken = Vec::new();
        while let Next::Write { reopen } = queue.take(&mut taken) {
            if reopen {
                let fate = self.output.reopen();
                self.count(fate);
            }
            // Room is given back write by write: a line counts as waiting until it is written.
            let mut room = 0;
            for line in taken.drain(..) {
                room += 1;
                if !self.cap.takes(line.made) {
                    self.counters.rate.inc();
                    continue;
                }
                self.renderer.render(&line, &mut self.text);
                self.lines += 1;
                if self.text.len() >= FULL {
                    self.write();
                    queue.done(std::mem::take(&mut room));
                }
            }
            self.write();
            queue.done(room);
        }
    }

    fn write(&mut self) {
        if self.lines > 0 {
            let fate = self.output.write(self.text.as_bytes(), self.lines);
            self.count(fate);
        }
        self.text.clear();
        self.lines = 0;
    }

    fn count(&self, fate: Fate) {
        self.counters.written.inc_by(fate.written);
        self.counters.write_failed.inc_by(fate.lost);
    }
}

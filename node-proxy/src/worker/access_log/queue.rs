//! The bounded queue between connections and the writer.
//!
//! A push is a short lock and a move of a pointer. The writer is woken by the first line and by a full batch, not by every line: at
//! load a wake-up costs more than the push.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::line::Line;

/// Lines that may wait, those that are being written among them: about two seconds of 4,000 connections per second, 8 MB at most.
pub const CAPACITY: usize = 8192;
/// So many lines wake the writer at once: about 64 KiB of JSON.
pub const BATCH: usize = 100;
/// The longest that a line waits for others to share its write.
pub const LINGER: Duration = Duration::from_millis(100);

/// Lines as they are handed over: a push moves a pointer, not 400 bytes, under the lock.
pub type Lines = Vec<Box<Line>>;

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Lines,
    // Taken by the writer and not yet written.
    taken: usize,
    reopen: bool,
    closed: bool,
}

/// There was no room.
#[derive(Debug)]
pub struct Full;

/// What the writer is to do next.
#[derive(Debug)]
pub enum Next {
    /// Write these; and before that, open the output again.
    Write {
        /// See [`Queue::reopen`].
        reopen: bool,
    },
    /// Nothing comes any more.
    End,
}

impl Queue {
    /// Puts a line at the end, or refuses it.
    pub fn push(&self, line: Box<Line>) -> Result<(), Full> {
        let mut state = self.lock();
        if state.lines.len() + state.taken >= CAPACITY || state.closed {
            return Err(Full);
        }
        state.lines.push(line);
        let wake = matches!(state.lines.len(), 1 | BATCH);
        drop(state);
        if wake {
            self.news.notify_one();
        }
        Ok(())
    }

    /// Waits for lines and swaps them into `lines`, which must be empty.
    pub fn take(&self, lines: &mut Lines) -> Next {
        let mut state = self.lock();
        let nothing = |state: &mut State| state.lines.is_empty() && !state.closed && !state.reopen;
        state = self.news.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
        let few = |state: &mut State| state.lines.len() < BATCH && !state.closed && !state.reopen;
        state = self.news.wait_timeout_while(state, LINGER, few).unwrap_or_else(PoisonError::into_inner).0;
        std::mem::swap(&mut state.lines, lines);
        state.taken = lines.len();
        let reopen = std::mem::take(&mut state.reopen);
        if lines.is_empty() && state.closed && !reopen { Next::End } else { Next::Write { reopen } }
    }

    /// So many of those that were taken need no room any more.
    pub fn done(&self, lines: usize) {
        let mut state = self.lock();
        state.taken = state.taken.saturating_sub(lines);
    }

    /// The writer is to open its output again.
    pub fn reopen(&self) {
        self.lock().reopen = true;
        self.news.notify_one();
    }

    /// Nothing comes any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.news.notify_one();
    }

    /// One line, for a test.
    #[cfg(test)]
    pub fn pop(&self) -> Option<Box<Line>> {
        let mut state = self.lock();
        (!state.lines.is_empty()).then(|| state.lines.remove(0))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

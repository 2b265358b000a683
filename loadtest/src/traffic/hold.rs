//! Connections that are held open in silence; when they are cut, the moments are noted.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

use super::poll::{Poll, Ready};
use super::{END, Report, dial, ready, told};

/// Connections opened at a time: enough to keep every hop busy, far below any backlog.
const AT_ONCE: usize = 16;
const INPUT: u64 = u64::MAX;

/// Runs [`super::Work::Hold`].
pub(super) fn run(to: SocketAddr, connections: usize) -> Result<Report> {
    let start = Instant::now();
    let (open, mut report) = (open(to, connections)?, Report::default());
    report.done = open.len() as u64;
    let mut open: Vec<Option<TcpStream>> = open.into_iter().map(Some).collect();
    report.seconds = start.elapsed().as_secs_f64();
    let mut poll = Poll::new()?;
    for (number, stream) in open.iter().flatten().enumerate() {
        stream.set_nonblocking(true)?;
        poll.add(stream, number as u64, Ready::IN)?;
    }
    ready()?;
    // The rest of the input by epoll: `end`, or the end of whoever holds the other side.
    poll.add(std::io::stdin(), INPUT, Ready::IN)?;
    let (mut events, mut cut, mut first, mut last) = (Vec::new(), 0_u64, 0, 0);
    'held: while cut < report.done {
        poll.wait(None, &mut events)?;
        for (number, _) in &events {
            if *number == INPUT {
                let told = told()?;
                anyhow::ensure!(told.is_empty() || told == END, "told {told:?}");
                break 'held;
            }
            let number = *number as usize;
            if open[number].as_mut().is_some_and(ended) {
                last = now();
                first = if cut == 0 { last } else { first };
                cut += 1;
                open[number] = None; // closed, so epoll forgets it
            }
        }
    }
    report.cut = (cut > 0).then_some((cut, first, last));
    Ok(report)
}

fn open(to: SocketAddr, connections: usize) -> Result<Vec<TcpStream>> {
    let (left, made) = (AtomicUsize::new(connections), Mutex::new(Vec::with_capacity(connections)));
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            while take() {
                let mut stream = dial(to)?;
                stream.write_all(&[0x55]).context("send")?;
                stream.read_exact(&mut [0]).context("receive")?;
                made.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..AT_ONCE.min(connections)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
    })?;
    Ok(made.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Whether the other end is gone; silence is not.
fn ended(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(got) => got == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the same for every process of the machine.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

//! Exchanges on open connections: one, blocking; or many, by epoll, as fast as answers come or at a fixed rate.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::latency::Times;
use super::pace::Pace;
use super::poll::{Poll, Ready, ticked, ticker};
use super::{Report, SILENCE, dial, over, ready};

/// Exchanges before the clock starts: rules are matched, tunnels stand, buffers have their size.
const WARM: usize = 20;
/// Number of the timer among the sockets.
const TIMER: u64 = u64::MAX;

/// One connection, closed loop.
pub(super) fn one(to: SocketAddr, size: usize, lasts: Duration) -> Result<Report> {
    let mut stream = dial(to)?;
    let mut buffer = vec![0x55; size];
    let mut exchange = || -> Result<()> {
        stream.write_all(&buffer).context("send")?;
        stream.read_exact(&mut buffer).context("receive")
    };
    (0..WARM).try_for_each(|_| exchange())?;
    ready()?;
    let (mut times, start) = (Times::new()?, Instant::now());
    let (mut done, mut before) = (0, start);
    while !over(start, lasts) {
        exchange()?;
        let now = Instant::now();
        times.add(now - before);
        (done, before) = (done + 1, now);
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Report { done, seconds, bytes: done * size as u64, latency: times.latency(), ..Report::default() })
}

struct Connection {
    stream: TcpStream,
    /// Since when an answer is due, and how much of it is still to come.
    asked: Option<(Instant, usize)>,
}

/// Many connections.
pub(super) fn many(
    to: SocketAddr,
    size: usize,
    connections: usize,
    lasts: Duration,
    rate: Option<f64>,
) -> Result<Report> {
    let mut poll = Poll::new()?;
    let mut buffer = vec![0x55; size.max(64)];
    let mut all = Vec::with_capacity(connections);
    for number in 0..connections {
        let mut stream = dial(to)?;
        for _ in 0..3 {
            stream.write_all(&buffer[..size]).context("send")?;
            stream.read_exact(&mut buffer[..size]).context("receive")?;
        }
        stream.set_nonblocking(true)?;
        poll.add(&stream, number as u64, Ready::IN)?;
        all.push(Connection { stream, asked: None });
    }
    ready()?;
    let start = Instant::now();
    let mut pace = rate.map(|rate| Pace::new(rate, lasts));
    let timer = pace.as_ref().map(|pace| ticker(pace.period())).transpose()?;
    if let Some(timer) = &timer {
        poll.add(timer, TIMER, Ready::IN)?;
    }
    // Those with nothing to do; without a rate there is always something.
    let mut free: Vec<usize> = (0..connections).rev().collect();
    let (mut times, mut report, mut events) = (Times::new()?, Report::default(), Vec::new());
    let mut asking = 0_usize;
    loop {
        let now = Instant::now();
        match &mut pace {
            Some(pace) => {
                pace.advance(now - start);
                while let Some(number) = free.pop() {
                    let Some(due) = pace.take() else {
                        free.push(number);
                        break;
                    };
                    all[number].ask(&buffer[..size], start + due)?;
                    asking += 1;
                }
            }
            None if now - start < lasts => {
                for number in free.drain(..) {
                    all[number].ask(&buffer[..size], Instant::now())?;
                    asking += 1;
                }
            }
            None => {}
        }
        if now - start >= lasts && (asking == 0 || now - start >= lasts + SILENCE) {
            break;
        }
        poll.wait(Some(Duration::from_millis(100)), &mut events)?;
        for (number, _) in &events {
            match (&timer, *number) {
                (Some(timer), TIMER) => ticked(timer),
                (_, number) => {
                    let number = number as usize;
                    if let Some(asked) = all[number].answered(&mut buffer)? {
                        times.add(asked.elapsed());
                        report.done += 1;
                        asking -= 1;
                        free.push(number);
                    }
                }
            }
        }
    }
    // What was due and never came to be asked, or never came back, is a failure: it must not just be missing.
    let unasked = pace.as_ref().map_or(0, Pace::left);
    if unasked + asking > 0 {
        report.fail(format!("{unasked} exchanges never begun, {asking} never answered"));
        report.failed = (unasked + asking) as u64;
    }
    report.seconds = start.elapsed().as_secs_f64();
    report.bytes = report.done * size as u64;
    report.latency = times.latency();
    Ok(report)
}

impl Connection {
    /// Sends; there is never more than one request on its way, so it always fits.
    fn ask(&mut self, request: &[u8], due: Instant) -> Result<()> {
        let sent = self.stream.write(request).context("send")?;
        anyhow::ensure!(sent == request.len(), "{sent} of {} bytes fit into an idle connection", request.len());
        self.asked = Some((due, request.len()));
        Ok(())
    }

    /// Reads; since when the answer was due, if it is complete.
    fn answered(&mut self, buffer: &mut [u8]) -> Result<Option<Instant>> {
        match self.stream.read(buffer) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(got) => {
                let Some((due, left)) = &mut self.asked else { bail!("{got} bytes that nobody asked for") };
                *left = left.checked_sub(got).context("more bytes than asked for")?;
                let due = *due;
                let whole = *left == 0;
                if whole {
                    self.asked = None;
                }
                Ok(whole.then_some(due))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("receive"),
        }
    }
}

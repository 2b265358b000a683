//! Short connections: connect, request, answer, close. The client closes first, as most clients do.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::latency::Times;
use super::pace::Pace;
use super::poll::{Poll, Ready, ticked, ticker};
use super::{ANSWERED, Report, SILENCE, dial, now, over, ready, say, told};

const TIMER: u64 = u64::MAX;
/// Failures in a row after which it is no use to go on.
const HOPELESS: u64 = 1000;

/// [`super::Work::Connect`]
pub(super) struct Plan {
    pub(super) size: usize,
    pub(super) at_once: usize,
    pub(super) lasts: Duration,
    pub(super) rate: Option<f64>,
    pub(super) limit: Option<u64>,
    pub(super) block: Option<u64>,
}

/// The very first one, which may have to wait for a tunnel to be set up. Then stays until told to end: of many such clients none
/// shall have the others' ends in its time.
pub(super) fn first(to: SocketAddr, size: usize) -> Result<Report> {
    let (mut buffer, mut times) = (vec![0x55; size], Times::new()?);
    ready()?;
    let (begun, start) = (now(), Instant::now());
    let mut stream = dial(to)?;
    stream.write_all(&buffer).context("send")?;
    stream.read_exact(&mut buffer).context("receive")?;
    times.add(start.elapsed());
    let (answered, seconds) = (now(), start.elapsed().as_secs_f64());
    say(ANSWERED)?;
    told()?; // to end, or whoever would tell is gone
    let span = Some((begun, answered));
    Ok(Report { done: 1, bytes: size as u64, seconds, latency: times.latency(), span, ..Report::default() })
}

/// One at a time, blocking.
pub(super) fn one(to: SocketAddr, size: usize, lasts: Duration) -> Result<Report> {
    let mut buffer = vec![0x55; size];
    let mut connection = || -> Result<()> {
        let mut stream = dial(to)?;
        stream.write_all(&buffer).context("send")?;
        stream.read_exact(&mut buffer).context("receive")
    };
    connection()?;
    ready()?;
    let (mut times, mut report, start) = (Times::new()?, Report::default(), Instant::now());
    while !over(start, lasts) && report.failed < HOPELESS {
        let begun = Instant::now();
        match connection() {
            Ok(()) => {
                times.add(begun.elapsed());
                report.done += 1;
            }
            Err(error) => report.fail(format!("{error:#}")),
        }
    }
    report.seconds = start.elapsed().as_secs_f64();
    report.bytes = report.done * size as u64;
    report.latency = times.latency();
    Ok(report)
}

/// One that is open.
struct Open {
    stream: Socket,
    due: Instant,
    left: Option<usize>,
}

/// Many at a time, by epoll.
pub(super) fn many(to: SocketAddr, plan: &Plan) -> Result<Report> {
    {
        let mut first = dial(to)?;
        first.write_all(&[0x55]).and_then(|()| first.read_exact(&mut [0])).context("a first connection")?;
    }
    ready()?;
    Run::new(to, plan)?.finish()
}

struct Run<'a> {
    to: SocketAddr,
    plan: &'a Plan,
    poll: Poll,
    slots: Vec<Option<Open>>,
    free: Vec<usize>,
    begun: u64,
    start: Instant,
    pace: Option<Pace>,
    times: Times,
    report: Report,
    buffer: Vec<u8>,
    block_since: Instant,
}

impl Run<'_> {
    fn new(to: SocketAddr, plan: &Plan) -> Result<Run<'_>> {
        Ok(Run {
            to,
            plan,
            poll: Poll::new()?,
            slots: (0..plan.at_once).map(|_| None).collect(),
            free: (0..plan.at_once).rev().collect(),
            begun: 0,
            start: Instant::now(),
            pace: plan.rate.map(|rate| Pace::new(rate, plan.lasts)),
            times: Times::new()?,
            report: Report::default(),
            buffer: vec![0x55; plan.size],
            block_since: Instant::now(),
        })
    }

    fn finish(mut self) -> Result<Report> {
        let timer = self.pace.as_ref().map(|pace| ticker(pace.period())).transpose()?;
        if let Some(timer) = &timer {
            self.poll.add(timer, TIMER, Ready::IN)?;
        }
        let mut events = Vec::new();
        loop {
            self.begin_what_is_due()?;
            let over = over(self.start, self.plan.lasts) || self.plan.limit.is_some_and(|limit| self.begun >= limit);
            let idle = self.free.len() == self.slots.len();
            let late = over && self.start.elapsed() >= self.plan.lasts + SILENCE;
            if (over && idle) || late || self.report.failed >= HOPELESS {
                break;
            }
            self.poll.wait(Some(Duration::from_millis(100)), &mut events)?;
            for (number, ready) in &events {
                match (&timer, *number) {
                    (Some(timer), TIMER) => ticked(timer),
                    (_, number) => self.go_on(number as usize, *ready)?,
                }
            }
        }
        let unbegun = self.pace.as_ref().map_or(0, Pace::left);
        let unanswered = self.slots.len() - self.free.len();
        if unbegun + unanswered > 0 {
            self.report.fail(format!("{unbegun} connections never begun, {unanswered} never answered"));
            self.report.failed += (unbegun + unanswered) as u64 - 1;
        }
        self.close_block();
        self.report.seconds = self.start.elapsed().as_secs_f64();
        self.report.bytes = self.report.done * self.plan.size as u64;
        self.report.latency = self.times.latency();
        Ok(self.report)
    }

    fn begin_what_is_due(&mut self) -> Result<()> {
        if let Some(pace) = &mut self.pace {
            pace.advance(self.start.elapsed());
        }
        while let Some(number) = self.free.pop() {
            let limited = self.plan.limit.is_some_and(|limit| self.begun >= limit);
            let due = match &mut self.pace {
                _ if limited => None,
                Some(pace) => pace.take().map(|due| self.start + due),
                None => (!over(self.start, self.plan.lasts)).then(Instant::now),
            };
            let Some(due) = due else {
                self.free.push(number);
                return Ok(());
            };
            self.begun += 1;
            match begin(self.to) {
                Ok(stream) => {
                    self.poll.add(&stream, number as u64, Ready::OUT)?;
                    self.slots[number] = Some(Open { stream, due, left: None });
                }
                Err(error) => {
                    self.report.fail(error);
                    self.free.push(number);
                    return Ok(()); // whatever is short may be there again after the next events
                }
            }
        }
        Ok(())
    }

    fn go_on(&mut self, number: usize, ready: Ready) -> Result<()> {
        let Some(open) = &mut self.slots[number] else { return Ok(()) };
        let step = open.step(&mut self.buffer, ready);
        match step {
            Ok(Step::Sent) => self.poll.change(&open.stream, number as u64, Ready::IN)?,
            Ok(Step::More) => {}
            Ok(Step::Whole) => {
                let due = open.due;
                self.slots[number] = None; // closes it
                self.free.push(number);
                self.times.add(due.elapsed());
                self.report.done += 1;
                self.count_block();
            }
            Err(error) => {
                self.slots[number] = None;
                self.free.push(number);
                self.report.fail(format!("{error:#}"));
            }
        }
        Ok(())
    }

    fn count_block(&mut self) {
        if let Some(block) = self.plan.block
            && self.report.done.is_multiple_of(block)
        {
            self.report.blocks.push(block as f64 / self.block_since.elapsed().as_secs_f64());
            self.block_since = Instant::now();
        }
    }

    /// The rate of a block that did not come to its end, which is the one that tells of a collapse.
    fn close_block(&mut self) {
        if let (Some(block), Some(limit)) = (self.plan.block, self.plan.limit)
            && self.report.done < limit
        {
            let done = self.report.done % block;
            self.report.blocks.push(done as f64 / self.block_since.elapsed().as_secs_f64());
        }
    }
}

fn begin(to: SocketAddr) -> std::io::Result<Socket> {
    let stream = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    stream.set_tcp_nodelay(true)?;
    match stream.connect(&to.into()) {
        Ok(()) => Ok(stream),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Ok(stream),
        Err(error) => Err(error),
    }
}

enum Step {
    Sent,
    More,
    Whole,
}

impl Open {
    fn step(&mut self, buffer: &mut [u8], ready: Ready) -> Result<Step> {
        let Some(left) = &mut self.left else {
            if ready.intersects(Ready::ERR | Ready::HUP)
                && let Some(error) = self.stream.take_error()?
            {
                return Err(error).context("connect");
            }
            let sent = (&self.stream).write(buffer).context("send")?;
            anyhow::ensure!(sent == buffer.len(), "a request was cut");
            self.left = Some(buffer.len());
            return Ok(Step::Sent);
        };
        match (&self.stream).read(buffer) {
            Ok(0) => anyhow::bail!("closed before the answer"),
            Ok(got) => {
                *left = left.checked_sub(got).context("more bytes than asked for")?;
                Ok(if *left == 0 { Step::Whole } else { Step::More })
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Step::More),
            Err(error) => Err(error).context("receive"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Echoes on so many connections; later ones end without an answer.
    fn server(answered: usize) -> SocketAddr {
        let listener = TcpListener::bind("[::1]:0").expect("a listener");
        let at = listener.local_addr().expect("its address");
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (mut stream, mut buffer) = (stream.expect("a connection"), [0; 8]);
                // Whoever is not answered may be gone.
                let _ = stream.read_exact(&mut buffer);
                if number < answered {
                    stream.write_all(&buffer).expect("the client waits");
                }
            }
        });
        at
    }

    fn blocks(answered: usize) -> Report {
        let plan =
            Plan { size: 8, at_once: 2, lasts: Duration::from_secs(20), rate: None, limit: Some(100), block: Some(10) };
        Run::new(server(answered), &plan).expect("a run").finish().expect("its report")
    }

    #[test]
    fn a_part_that_does_not_come_to_its_end_has_a_rate_too() {
        let whole = blocks(100);
        assert_eq!((whole.done, whole.failed, whole.blocks.len()), (100, 0, 10));
        let collapsed = blocks(25);
        assert_eq!((collapsed.done, collapsed.failed, collapsed.blocks.len()), (25, 75, 3));
        let stopped = blocks(30);
        assert_eq!((stopped.done, stopped.blocks.len(), stopped.blocks[3]), (30, 4, 0.0));
    }
}

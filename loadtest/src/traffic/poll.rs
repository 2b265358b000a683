//! Readiness of many sockets: epoll, level-triggered, each with a number.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

pub(super) use epoll::EventFlags as Ready;

/// What is watched.
pub(super) struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    /// Nothing yet.
    pub(super) fn new() -> Result<Poll> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("make an epoll")?;
        Ok(Poll { epoll, events: Vec::with_capacity(256) })
    }

    /// Watches a socket for `ready`, under a number.
    pub(super) fn add(&self, socket: impl AsFd, number: u64, ready: Ready) -> Result<()> {
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(number), ready).context("watch a socket")
    }

    /// Watches it for something else from now on.
    pub(super) fn change(&self, socket: impl AsFd, number: u64, ready: Ready) -> Result<()> {
        epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(number), ready).context("watch a socket")
    }

    /// Waits until something is ready, at most so long; (number, what) of each.
    pub(super) fn wait(&mut self, at_most: Option<Duration>, into: &mut Vec<(u64, Ready)>) -> Result<()> {
        let timeout = at_most.map(timespec);
        self.events.clear();
        into.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error).context("wait for sockets"),
        }
        into.extend(self.events.iter().map(|event| (event.data.u64(), event.flags)));
        Ok(())
    }
}

/// A timer that becomes readable every `period`: epoll's own timeout counts milliseconds.
pub(super) fn ticker(period: Duration) -> Result<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
        .context("make a timer")?;
    let every = Itimerspec { it_interval: timespec(period), it_value: timespec(period) };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every).context("start a timer")?;
    Ok(timer)
}

/// Takes note of a ticker's ticks; how many there were does not matter, the clock says what is due.
pub(super) fn ticked(timer: &OwnedFd) {
    let mut count = [0; 8];
    let _ = rustix::io::read(timer, &mut count); // nothing to read: it was no tick
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

//! As many bytes as go. Only what has arrived counts: upwards the server's own count, downwards what was read here.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::poll::{Poll, Ready};
use super::{Report, SILENCE, dial, over, ready};

/// Bytes per call: below it the calls cost, above it nothing is gained (measured with direct copies of 16 KiB to 1 MiB).
pub(super) const CHUNK: usize = 256 * 1024;

/// Runs [`super::Work::Bulk`].
pub(super) fn run(to: SocketAddr, streams: usize, down: bool, lasts: Duration) -> Result<Report> {
    let mut all: Vec<TcpStream> = (0..streams).map(|_| dial(to)).collect::<Result<_>>()?;
    let mut poll = Poll::new()?;
    for (number, stream) in all.iter_mut().enumerate() {
        if !down {
            stream.write_all(&[0x55]).context("send")?; // the way stands before the clock runs
        }
        stream.set_nonblocking(true)?;
        poll.add(&*stream, number as u64, if down { Ready::IN } else { Ready::OUT })?;
    }
    ready()?;
    if down { read(&mut poll, all, lasts) } else { write(&mut poll, all, lasts) }
}

fn read(poll: &mut Poll, mut all: Vec<TcpStream>, lasts: Duration) -> Result<Report> {
    let (mut buffer, mut events) = (vec![0; CHUNK], Vec::new());
    let start = Instant::now();
    for stream in &mut all {
        stream.write_all(&[1]).context("ask the source to begin")?;
    }
    let (mut bytes, mut last) = (0, start);
    while !over(start, lasts) {
        poll.wait(Some(Duration::from_millis(10)), &mut events)?;
        for (number, _) in &events {
            match all[*number as usize].read(&mut buffer) {
                Ok(0) => bail!("the source ended"),
                Ok(got) => (bytes, last) = (bytes + got as u64, Instant::now()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("receive"),
            }
        }
        anyhow::ensure!(last.elapsed() < SILENCE, "the source has been silent for {} s", SILENCE.as_secs());
    }
    Ok(Report { done: 1, bytes, seconds: start.elapsed().as_secs_f64(), ..Report::default() })
}

fn write(poll: &mut Poll, mut all: Vec<TcpStream>, lasts: Duration) -> Result<Report> {
    let (buffer, mut events) = (vec![0x55; CHUNK], Vec::new());
    let (start, mut sent) = (Instant::now(), all.len() as u64);
    let mut last = start;
    while !over(start, lasts) {
        poll.wait(Some(Duration::from_millis(10)), &mut events)?;
        for (number, _) in &events {
            match all[*number as usize].write(&buffer) {
                Ok(wrote) => (sent, last) = (sent + wrote as u64, Instant::now()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("send"),
            }
        }
        anyhow::ensure!(last.elapsed() < SILENCE, "the sink has taken nothing for {} s", SILENCE.as_secs());
    }
    // What is still on its way belongs to the time it needs: the clock runs until the sink has counted it.
    let mut bytes = 0;
    for stream in &all {
        stream.shutdown(Shutdown::Write).context("end the input")?;
        stream.set_nonblocking(false)?;
    }
    for stream in &mut all {
        let mut count = [0; 8];
        stream.read_exact(&mut count).context("read the sink's count")?;
        bytes += u64::from_be_bytes(count);
    }
    anyhow::ensure!(bytes == sent, "{sent} bytes were sent and {bytes} arrived");
    Ok(Report { done: 1, bytes, seconds: start.elapsed().as_secs_f64(), ..Report::default() })
}

//! `culvert-lab client probe`: attempts at a steady rate, as long as the test lasts, counted per phase.
//!
//! The rate is kept by a timer, not by the answers: an attempt that hangs does not slow the next ones down. A line on
//! standard input starts the next phase; its end ends the prober, which then prints the report.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::task::LocalSet;
use tokio::time::MissedTickBehavior;

use super::{SocketOptions, dial, outcome, resolve};

/// Attempt at a steady rate.
#[derive(Debug, Args)]
pub struct Probe {
    /// HOST:PORT, or several
    #[arg(required = true)]
    to: Vec<String>,
    /// Attempts per second, over all targets
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// What to say on each connection
    #[arg(long, default_value = "probe")]
    send: String,
    /// Succeed only when the same comes back (an echo server); else being connected and having written is enough
    #[arg(long)]
    echo: bool,
    /// Milliseconds for each attempt in all
    #[arg(long, default_value_t = 1000)]
    timeout: u64,
}

#[derive(Default)]
struct Phase {
    name: String,
    attempts: u64,
    outcomes: BTreeMap<&'static str, u64>,
    last_ok: Option<Instant>,
    longest_gap: Duration,
    slowest: Duration,
}

/// Most attempts in flight; more means the targets swallow them, and the rest is counted as skipped.
const IN_FLIGHT: usize = 4000;

pub(crate) async fn run(args: Probe) -> Result<Value> {
    let mut targets = Vec::new();
    for to in &args.to {
        targets.push(resolve(to).await?[0]);
    }
    LocalSet::new().run_until(probe(args, targets)).await
}

async fn probe(args: Probe, targets: Vec<SocketAddr>) -> Result<Value> {
    let Probe { rate, send, echo, timeout, .. } = args;
    let phases = Rc::new(RefCell::new(vec![Phase { name: "start".into(), ..Phase::default() }]));
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (send, flying, mut n) = (Rc::new(send), Rc::new(()), 0);
    super::server::say_ready()?;
    loop {
        tokio::select! {
            // A line not read to its end stays in the reader's buffer.
            line = commands.next_line() => match line? {
                Some(name) => {
                    phases.borrow_mut().push(Phase { name, ..Phase::default() });
                    super::server::say_ready()?;
                }
                None => break,
            },
            _ = tick.tick() => {
                let to = targets[n % targets.len()];
                n += 1;
                let index = phases.borrow().len() - 1;
                phases.borrow_mut()[index].attempts += 1;
                if Rc::strong_count(&flying) > IN_FLIGHT {
                    *phases.borrow_mut()[index].outcomes.entry("skipped").or_default() += 1;
                    continue;
                }
                let (phases, send, guard) = (phases.clone(), send.clone(), flying.clone());
                let deadline = Duration::from_millis(timeout);
                tokio::task::spawn_local(async move {
                    let start = Instant::now();
                    let one = tokio::time::timeout(deadline, attempt(to, &send, echo)).await;
                    let result = one.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
                    phases.borrow_mut()[index].count(result, start);
                    drop(guard);
                });
            }
        }
    }
    // What is in flight has its own deadline.
    while Rc::strong_count(&flying) > 1 {
        tick.tick().await;
    }
    let phases = phases.borrow();
    let list: Vec<Value> = phases.iter().filter(|p| p.attempts > 0).map(Phase::report).collect();
    let total = |name: &str| phases.iter().filter_map(|p| p.outcomes.get(name)).sum::<u64>();
    let attempts: u64 = phases.iter().map(|p| p.attempts).sum();
    Ok(json!({ "ok": total("ok"), "attempts": attempts, "phases": list }))
}

async fn attempt(to: SocketAddr, send: &str, echo: bool) -> std::io::Result<()> {
    let mut stream = dial(to, SocketOptions::default(), Duration::from_secs(60)).await?;
    stream.write_all(send.as_bytes()).await?;
    if echo {
        let mut answer = vec![0; send.len()];
        stream.read_exact(&mut answer).await?;
        return match answer == send.as_bytes() {
            true => Ok(()),
            false => Err(std::io::ErrorKind::InvalidData.into()),
        };
    }
    // A refusal after the handshake shows as a reset or an early end.
    let mut byte = [0];
    match tokio::time::timeout(Duration::from_millis(200), stream.read(&mut byte)).await {
        Ok(Ok(0)) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        Ok(Ok(_)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(error),
    }
}

impl Phase {
    fn count(&mut self, result: std::io::Result<()>, start: Instant) {
        match result {
            Ok(()) => {
                let now = Instant::now();
                self.longest_gap = self.longest_gap.max(now - self.last_ok.unwrap_or(now));
                self.last_ok = Some(now);
                self.slowest = self.slowest.max(now - start);
                *self.outcomes.entry("ok").or_default() += 1;
            }
            Err(error) => *self.outcomes.entry(outcome(&error)).or_default() += 1,
        }
    }

    fn report(&self) -> Value {
        json!({
            "phase": self.name, "attempts": self.attempts, "outcomes": self.outcomes,
            "longest_gap_ms": self.longest_gap.as_secs_f64() * 1e3, "slowest_ok_ms": self.slowest.as_secs_f64() * 1e3,
        })
    }
}

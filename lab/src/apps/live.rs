//! `culvert-lab client live`: one connection for as long as the test lasts, busy or idle, and exactly how and when it ended.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::{SocketOptions, dial, outcome, resolve};

/// Keep one connection alive.
#[derive(Debug, Args)]
pub struct Live {
    /// HOST:PORT of an echo server
    to: String,
    /// Milliseconds between two messages; 0: idle, speaks only when told to by a line on standard input
    #[arg(long, default_value_t = 10)]
    interval: u64,
    /// Bytes of each message
    #[arg(long, default_value_t = 16)]
    size: usize,
    /// Source port
    #[arg(long)]
    source_port: Option<u16>,
}

/// Prints `ready` when connected and answered once; then for each line of input `ok` or how the connection failed; at the
/// end the report, `ended_ns` being the wall clock at which the end was seen.
pub(crate) async fn run(args: Live) -> Result<Value> {
    let Live { to, interval, size, source_port } = args;
    let to = resolve(&to).await?[0];
    let stream = dial(to, SocketOptions { source_port, mark: None }, Duration::from_secs(5))
        .await
        .with_context(|| format!("connect to {to}"))?;
    let local = stream.local_addr()?;
    let (mut from, mut writer) = stream.into_split();
    let message = vec![b'l'; size.max(1)];
    let mut answer = vec![0; size.max(1)];
    writer.write_all(&message).await?;
    tokio::time::timeout(Duration::from_secs(5), from.read_exact(&mut answer))
        .await
        .context("no first answer in 5 s")??;
    super::server::say_ready()?;
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    let mut tick = tokio::time::interval(Duration::from_millis(interval.max(1)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut sent, mut received) = (1u64, size as u64);
    let mut buffer = vec![0; 16 << 10];
    let ended = loop {
        tokio::select! {
            biased; // the connection's end is the news; nothing may hide it
            read = from.read(&mut buffer) => match read {
                Ok(0) => break "eof",
                Ok(n) => received += n as u64,
                Err(error) => break outcome(&error),
            },
            // A line not read to its end stays in the reader's buffer.
            line = commands.next_line() => match line? {
                None => break "stopped",
                Some(_) => match writer.write_all(&message).await {
                    Ok(()) => sent += 1,
                    Err(error) => break outcome(&error),
                },
            },
            _ = tick.tick(), if interval > 0 => match writer.write_all(&message).await {
                Ok(()) => sent += 1,
                Err(error) => break outcome(&error),
            },
        }
    };
    let ended_ns = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_nanos() as u64).unwrap_or(0);
    if ended == "stopped" {
        // Everything said must still come back before the connection counts as whole.
        writer.shutdown().await?;
        let rest = async {
            while let Ok(n @ 1..) = from.read(&mut buffer).await {
                received += n as u64;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), rest).await;
    }
    Ok(json!({
        "ok": u8::from(ended == "stopped" && received == sent * size.max(1) as u64), "ended": ended, "ended_ns": ended_ns,
        "sent": sent, "received_bytes": received, "local": local.to_string(),
    }))
}

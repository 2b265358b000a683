//! `culvert-lab client`: clients that end by themselves and print one JSON report. The long-running ones are in `probe`
//! and `live`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{SocketOptions, block_on, bulk, dial, live, outcome, probe, resolve, unmapped};

/// What a client does.
#[derive(Debug, Subcommand)]
pub enum Client {
    /// Connect N times; say something, read the answer
    Connect(Connect),
    /// Move bytes both ways with checksums and half-close (server: bulk)
    Bulk(Bulk),
    /// Time round trips on one connection, and new connections (server: echo)
    Latency(Latency),
    /// Attempt at a steady rate until standard input ends, counted per phase
    Probe(probe::Probe),
    /// Keep one connection alive until standard input ends; tell how it ended (server: echo)
    Live(live::Live),
    /// Send one datagram and wait for the answer (server: udp-echo)
    Udp {
        /// HOST:PORT
        to: String,
    },
}

/// Connect N times.
#[derive(Debug, Args)]
pub struct Connect {
    /// HOST:PORT; each address of a name is tried in turn
    to: String,
    /// How often
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// What to say
    #[arg(long, default_value = "")]
    send: String,
    /// Bytes to wait for; 0: read to the end, as many as were sent when absent
    #[arg(long)]
    expect: Option<usize>,
    /// Milliseconds for each attempt in all
    #[arg(long, default_value_t = 3000)]
    timeout: u64,
    /// Source port
    #[arg(long)]
    source_port: Option<u16>,
    /// Packet marks to set, one attempt each (0x539, 42): needs NET_RAW or NET_ADMIN
    #[arg(long, value_parser = number, num_args = 1.., value_delimiter = ',')]
    marks: Vec<u32>,
    /// This many random marks as well
    #[arg(long, default_value_t = 0)]
    random_marks: u32,
}

/// Move bytes both ways.
#[derive(Debug, Args)]
pub struct Bulk {
    /// HOST:PORT of a bulk server
    to: String,
    /// Bytes to send
    #[arg(long, default_value_t = 10_000_000)]
    up: u64,
    /// Bytes to get
    #[arg(long, default_value_t = 10_000_000)]
    down: u64,
    /// Most bytes a second each way
    #[arg(long)]
    rate: Option<std::num::NonZeroU64>,
    /// Text sent first in clear, to be looked for on the wire
    #[arg(long, default_value = "")]
    marker: String,
    /// Source port
    #[arg(long)]
    source_port: Option<u16>,
}

/// Time round trips.
#[derive(Debug, Args)]
pub struct Latency {
    /// HOST:PORT of an echo server
    to: String,
    /// Round trips on one connection
    #[arg(long, default_value_t = 2000)]
    count: u32,
    /// New connections, each with one round trip
    #[arg(long, default_value_t = 200)]
    connections: u32,
}

fn number(text: &str) -> Result<u32, std::num::ParseIntError> {
    text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u32::from_str_radix(hex, 16))
}

/// Runs a client and prints its report.
pub fn run(client: Client) -> Result<()> {
    let report = block_on(async move {
        match client {
            Client::Connect(args) => connect(args).await,
            Client::Bulk(Bulk { to, up, down, rate, marker, source_port }) => {
                let options = SocketOptions { source_port, mark: None };
                let run = async {
                    let to = resolve(&to).await?[0];
                    let stream = dial(to, options, Duration::from_secs(5)).await?;
                    bulk::run(stream, up, down, bulk::Rate(rate), marker.as_bytes()).await
                };
                let done = tokio::time::timeout(Duration::from_secs(50), run).await;
                Ok(done
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("not done after 50 s")))
                    .unwrap_or_else(|error| json!({ "ok": 0, "error": format!("{error:#}") })))
            }
            Client::Latency(args) => latency(args).await,
            Client::Probe(args) => probe::run(args).await,
            Client::Live(args) => live::run(args).await,
            Client::Udp { to } => udp(&to).await,
        }
    })?;
    crate::out::say(&report.to_string())?;
    // tokio's reader of standard input may still sit in its thread.
    std::process::exit(0)
}

async fn connect(args: Connect) -> Result<Value> {
    let Connect { to, count, send, expect, timeout, source_port, mut marks, random_marks } = args;
    let targets = resolve(&to).await?;
    marks.extend((0..random_marks).map(|_| rand::random::<u32>()));
    let attempts: Vec<Option<u32>> = match marks.is_empty() {
        true => vec![None; count as usize],
        false => marks.into_iter().map(Some).collect(),
    };
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut times, mut text, mut ok_marks, mut peers) =
        (Vec::new(), String::new(), Vec::new(), BTreeMap::<String, u32>::new());
    for (n, mark) in attempts.into_iter().enumerate() {
        let start = Instant::now();
        let to = targets[n % targets.len()];
        let deadline = Duration::from_millis(timeout);
        let one = tokio::time::timeout(deadline, attempt(to, SocketOptions { source_port, mark }, &send, expect)).await;
        match one.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(answer) => {
                *outcomes.entry("ok").or_default() += 1;
                times.push(start.elapsed().as_micros() as u64);
                text = String::from_utf8_lossy(&answer).into_owned();
                *peers.entry(text.clone()).or_default() += 1;
                ok_marks.extend(mark);
            }
            Err(error) => *outcomes.entry(outcome(&error)).or_default() += 1,
        }
    }
    let ok = outcomes.get("ok").copied().unwrap_or(0);
    peers.retain(|text, _| text.len() < 200);
    Ok(
        json!({ "ok": ok, "outcomes": outcomes, "text": text, "texts": peers, "us": quantiles(times), "ok_marks": ok_marks }),
    )
}

async fn attempt(
    to: std::net::SocketAddr,
    options: SocketOptions,
    send: &str,
    expect: Option<usize>,
) -> std::io::Result<Vec<u8>> {
    let mut stream = dial(to, options, Duration::from_secs(60)).await?;
    stream.write_all(send.as_bytes()).await?;
    let mut answer = Vec::new();
    match expect.unwrap_or(send.len()) {
        0 if expect.is_none() => {}
        0 => {
            stream.shutdown().await?;
            stream.read_to_end(&mut answer).await?;
        }
        n => {
            answer.resize(n, 0);
            stream.read_exact(&mut answer).await?;
        }
    }
    Ok(answer)
}

async fn latency(args: Latency) -> Result<Value> {
    let Latency { to, count, connections } = args;
    let to = resolve(&to).await?[0];
    let deadline = Duration::from_secs(5);
    let mut stream = dial(to, SocketOptions::default(), deadline).await?;
    let mut byte = [0];
    let mut trips = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let start = Instant::now();
        stream.write_all(b"x").await?;
        tokio::time::timeout(deadline, stream.read_exact(&mut byte)).await??;
        trips.push(start.elapsed().as_micros() as u64);
    }
    let mut opens = Vec::with_capacity(connections as usize);
    for _ in 0..connections {
        let start = Instant::now();
        tokio::time::timeout(deadline, attempt(to, SocketOptions::default(), "x", Some(1))).await??;
        opens.push(start.elapsed().as_micros() as u64);
    }
    Ok(json!({ "ok": 1, "round_trip_us": quantiles(trips), "connection_us": quantiles(opens) }))
}

async fn udp(to: &str) -> Result<Value> {
    let to = resolve(to).await?[0];
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = tokio::net::UdpSocket::bind(any).await?;
    socket.send_to(b"ping", to).await?;
    let mut buffer = [0; 16];
    let answer = tokio::time::timeout(Duration::from_secs(2), socket.recv_from(&mut buffer)).await;
    let ok = matches!(&answer, Ok(Ok((4, from))) if unmapped(*from) == to);
    Ok(json!({ "ok": u8::from(ok) }))
}

/// p50, p99 and the largest of a list.
pub(crate) fn quantiles(mut values: Vec<u64>) -> Value {
    values.sort_unstable();
    let at = |q: usize| values.get((values.len() * q / 100).min(values.len().saturating_sub(1))).copied();
    json!({ "p50": at(50), "p99": at(99), "max": values.last() })
}

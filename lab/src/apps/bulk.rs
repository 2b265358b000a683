//! Bulk both ways on one connection, checksummed, with half-close: the hardest ordinary thing to ask of a proxy.
//!
//! Client: 24 bytes (down length, seed, marker length), marker, then the upload, then the end of its half. Server: at once
//! the download; after the client's end 16 bytes (bytes received, checksum), then its own end. Each side checks the other.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const BLOCK: usize = 64 << 10;
/// A marker is for finding on the wire; longer ones are a mistake.
const MARKER_MAX: u64 = 1024;

/// A stream of bytes that no proxy can have made up: xorshift of a seed.
pub(crate) struct Pattern(u64);

impl Pattern {
    pub(crate) fn new(seed: u64) -> Pattern {
        Pattern(seed | 1)
    }

    fn fill(&mut self, block: &mut [u8]) {
        for chunk in block.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Position-dependent checksum (FNV-1a over 64-bit words): swapped, lost and doubled blocks show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sum {
    state: u64,
    pub(crate) bytes: u64,
    carry: Vec<u8>,
}

impl Sum {
    pub(crate) fn new() -> Sum {
        Sum { state: 0xcbf2_9ce4_8422_2325, bytes: 0, carry: Vec::new() }
    }

    fn word(&mut self, word: [u8; 8]) {
        self.state = (self.state ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5);
    }

    pub(crate) fn add(&mut self, mut data: &[u8]) {
        self.bytes += data.len() as u64;
        if !self.carry.is_empty() {
            let take = data.len().min(8 - self.carry.len());
            self.carry.extend_from_slice(&data[..take]);
            data = &data[take..];
            match <[u8; 8]>::try_from(self.carry.as_slice()) {
                Ok(word) => {
                    self.word(word);
                    self.carry.clear();
                }
                Err(_) => return,
            }
        }
        let (words, rest) = data.as_chunks::<8>();
        words.iter().for_each(|w| self.word(*w));
        self.carry.extend_from_slice(rest);
    }

    pub(crate) fn value(&self) -> u64 {
        let mut end = self.clone();
        let mut last = [0; 8];
        last[..end.carry.len()].copy_from_slice(&end.carry);
        end.word(last);
        end.state
    }
}

/// Bytes a second, for bulk that has to last: each side of the client waits until its next block is due.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rate(pub(crate) Option<NonZeroU64>);

impl Rate {
    async fn due(self, start: Instant, bytes: u64) {
        if let Some(rate) = self.0 {
            let since = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
            tokio::time::sleep_until((start + since).into()).await;
        }
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), length: u64, seed: u64, rate: Rate) -> std::io::Result<u64> {
    let start = Instant::now();
    let (mut pattern, mut sum, mut block, mut left) = (Pattern::new(seed), Sum::new(), vec![0; BLOCK], length);
    while left > 0 {
        rate.due(start, length - left).await;
        let n = left.min(BLOCK as u64) as usize;
        pattern.fill(&mut block[..n]);
        sum.add(&block[..n]);
        to.write_all(&block[..n]).await?;
        left -= n as u64;
    }
    Ok(sum.value())
}

async fn receive(
    from: &mut (impl AsyncRead + Unpin),
    limit: u64,
    rate: Rate,
    count: impl Fn(u64),
) -> std::io::Result<Sum> {
    let start = Instant::now();
    let (mut sum, mut block) = (Sum::new(), vec![0; BLOCK]);
    while sum.bytes < limit {
        rate.due(start, sum.bytes).await;
        let want = (limit - sum.bytes).min(BLOCK as u64) as usize;
        let n = from.read(&mut block[..want]).await?;
        if n == 0 {
            break;
        }
        count(n as u64);
        sum.add(&block[..n]);
    }
    Ok(sum)
}

/// The server's side.
pub(crate) async fn serve(stream: TcpStream, count: impl Fn(u64)) -> Result<()> {
    let (mut from, mut to) = stream.into_split();
    let (down, seed, marker) = (from.read_u64().await?, from.read_u64().await?, from.read_u64().await?);
    ensure!(marker <= MARKER_MAX, "marker of {marker} bytes");
    from.read_exact(&mut vec![0; marker as usize]).await?;
    count(24 + marker);
    let (_, sum) = tokio::try_join!(
        send(&mut to, down, seed, Rate::default()),
        receive(&mut from, u64::MAX, Rate::default(), count)
    )?;
    to.write_u64(sum.bytes).await?;
    to.write_u64(sum.value()).await?;
    Ok(to.shutdown().await?)
}

/// The client's side: what was moved and whether it was right.
pub(crate) async fn run(stream: TcpStream, up: u64, down: u64, rate: Rate, marker: &[u8]) -> Result<Value> {
    let start = Instant::now();
    let seed: u64 = rand::random();
    let (mut from, mut to) = stream.into_split();
    let upload = async {
        to.write_u64(down).await?;
        to.write_u64(seed).await?;
        to.write_u64(marker.len() as u64).await?;
        to.write_all(marker).await?;
        let sum = send(&mut to, up, !seed, rate).await?;
        to.shutdown().await?;
        std::io::Result::Ok(sum)
    };
    let (sent, received) =
        tokio::try_join!(upload, receive(&mut from, down, rate, |_| ())).context("move the bytes")?;
    let (mut pattern, mut expected, mut left) = (Pattern::new(seed), Sum::new(), down);
    let mut block = vec![0; BLOCK];
    while left > 0 {
        let n = left.min(BLOCK as u64) as usize;
        pattern.fill(&mut block[..n]);
        expected.add(&block[..n]);
        left -= n as u64;
    }
    ensure!(received.bytes == down, "download ended after {} of {down} bytes", received.bytes);
    ensure!(received.value() == expected.value(), "the download's checksum is wrong");
    let (bytes, sum) = (from.read_u64().await.context("read the server's count")?, from.read_u64().await?);
    ensure!(
        bytes == up && sum == sent,
        "the server got {bytes} of {up} bytes, checksum {}",
        if sum == sent { "right" } else { "wrong" }
    );
    ensure!(from.read(&mut [0]).await? == 0, "more came than the server sent");
    Ok(json!({ "ok": 1, "up": up, "down": down, "seconds": start.elapsed().as_secs_f64() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_does_not_depend_on_how_bytes_are_cut_but_on_their_order() {
        let data: Vec<u8> = (0..1000u32).map(|n| (n * 7) as u8).collect();
        let whole = |cuts: &[usize]| {
            let mut sum = Sum::new();
            let mut at = 0;
            for cut in cuts.iter().copied().chain([data.len()]) {
                sum.add(&data[at..cut]);
                at = cut;
            }
            sum.value()
        };
        assert_eq!(whole(&[]), whole(&[1, 2, 9, 500, 501]));
        let mut swapped = Sum::new();
        swapped.add(&data[8..16]);
        swapped.add(&data[..8]);
        swapped.add(&data[16..]);
        assert_ne!(whole(&[]), swapped.value());
    }
}

//! Peers that stay: one that has ended its half and waits, and one that never reads what it is sent.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use lab::PodHandle;
use lab::pod::{ECHO, HOLD};

const PATIENCE: Duration = Duration::from_secs(5);
/// Most that a stalled reader sends: far above what every buffer on the way holds.
const MOST: usize = 32 << 20;

/// An idler and a stalled reader for each address of a pod, until dropped.
pub(super) struct Held {
    _streams: Vec<TcpStream>,
}

impl Held {
    pub(super) fn open(from: &PodHandle, to: &PodHandle) -> Result<Held> {
        let mut streams = Vec::new();
        for ip in to.ips() {
            let connect =
                |port| from.in_netns(|| Ok(TcpStream::connect_timeout(&SocketAddr::new(ip, port), PATIENCE)?));
            // A server that says nothing and keeps its half: half-closed and idle.
            if let Ok(idler) = connect(HOLD) {
                idler.shutdown(Shutdown::Write)?;
                streams.push(idler);
            }
            // What it sends comes back, and it reads none of it: every buffer fills, and stays so.
            let mut stalled = connect(ECHO)?;
            stalled.set_write_timeout(Some(Duration::from_millis(300)))?;
            let chunk = vec![0; 256 << 10];
            let mut sent = 0;
            while sent < MOST {
                match stalled.write(&chunk) {
                    Ok(count) => sent += count,
                    Err(_) => break,
                }
            }
            streams.push(stalled);
        }
        Ok(Held { _streams: streams })
    }
}

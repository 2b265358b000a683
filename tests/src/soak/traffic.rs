//! Peers that stay: one that has ended its half and waits for a server that does not, and one that never reads what it is sent.

use std::io::Write;
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::pod::ECHO;
use lab::{PodHandle, wait};

const PATIENCE: Duration = Duration::from_secs(5);
/// Most that a stalled reader sends: far above what every buffer on the way holds.
const MOST: usize = 32 << 20;

/// A half-closed idler and a stalled reader for each address of a pod.
pub(super) struct Held {
    clients: Vec<TcpStream>,
    halves: Halves,
}

/// The servers' ends of half-closed connections whose clients have gone; these end last.
pub(super) struct Halves {
    _servers: Vec<TcpStream>,
}

impl Held {
    pub(super) fn open(from: &PodHandle, to: &PodHandle) -> Result<Held> {
        let (mut clients, mut servers) = (Vec::new(), Vec::new());
        // Of this test, in the pod: no server of the lab keeps its half when its client has ended its own.
        let listener = to.in_netns(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?))?;
        listener.set_nonblocking(true)?;
        let half = listener.local_addr()?.port();
        for ip in to.ips() {
            let connect =
                |port| from.in_netns(|| Ok(TcpStream::connect_timeout(&SocketAddr::new(ip, port), PATIENCE)?));
            let idler = connect(half)?;
            idler.shutdown(Shutdown::Write)?;
            let served = wait::until("a connection to be half-closed", PATIENCE, || listener.accept().ok());
            servers.push(served.with_context(|| format!("{} to {}", from.key(), to.key()))?.0);
            clients.push(idler);
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
            clients.push(stalled);
        }
        Ok(Held { clients, halves: Halves { _servers: servers } })
    }

    /// The clients go.
    pub(super) fn leave(self) -> Halves {
        drop(self.clients);
        self.halves
    }
}

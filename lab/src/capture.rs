//! What crosses the fabric, seen with eyes of our own: every frame that arrives from a node, by addresses and ports, its
//! payload counted and searched for markers. This is how "encrypted" is shown and not believed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};
use serde::Serialize;

use crate::{ns, plan, wait};

/// Bytes of receive buffer: a burst of 10 MB both ways while this thread waits for a core.
const BUFFER: usize = 128 << 20;
/// Largest frame: a veth carries unsegmented TCP of up to 64 KiB.
const FRAME: usize = 80 << 10;

/// One direction of one conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// Frames with payload.
    pub packets: u64,
    /// Bytes of payload, headers not counted.
    pub payload: u64,
    /// How often a marker was seen in clear.
    pub markers: u64,
}

/// Sender and receiver of a flow, and whether it was TCP (else UDP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Ends {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// TCP or UDP.
    pub tcp: bool,
}

impl Ends {
    /// Whether both of these addresses take part, in any direction.
    pub fn between(&self, a: &[IpAddr], b: &[IpAddr]) -> bool {
        let (from, to) = (self.from.ip(), self.to.ip());
        (a.contains(&from) && b.contains(&to)) || (b.contains(&from) && a.contains(&to))
    }

    /// Whether one end has this port.
    pub fn has_port(&self, port: u16) -> bool {
        self.from.port() == port || self.to.port() == port
    }
}

/// A running capture.
pub struct Capture {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    flows: BTreeMap<Ends, Flow>,
    tails: BTreeMap<Ends, Vec<u8>>,
    markers: Vec<Vec<u8>>,
}

impl Capture {
    /// Starts reading in the network namespace at `netns`.
    pub(crate) fn start(netns: &Path, markers: &[&[u8]]) -> Result<Capture> {
        let all = 0x0003u16.to_be(); // ETH_P_ALL
        let protocol = rustix::net::Protocol::from_raw(std::num::NonZero::new(u32::from(all)).context("not zero")?);
        let socket = ns::in_netns(netns, || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(protocol))?)
        })
        .context("open a packet socket on the fabric")?;
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER); // smaller only means sooner full
        let markers: Vec<Vec<u8>> = markers.iter().map(|m| m.to_vec()).filter(|m| !m.is_empty()).collect();
        let seen = Arc::new(Mutex::new(Seen { markers, ..Seen::default() }));
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::Builder::new().name("lab-capture".into()).spawn({
            let (stop, rounds, seen) = (stop.clone(), rounds.clone(), seen.clone());
            move || {
                let mut frame = vec![0; FRAME];
                let pace = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
                while !stop.load(Ordering::Relaxed) {
                    while let Ok((n, _)) = recv(&socket, frame.as_mut_slice(), RecvFlags::empty()) {
                        seen.lock().unwrap_or_else(PoisonError::into_inner).frame(&frame[..n]);
                    }
                    rounds.fetch_add(1, Ordering::Release); // the queue was empty just now
                    let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&pace));
                }
            }
        })?;
        Ok(Capture { stop, seen, rounds, thread: Some(thread) })
    }

    /// Every flow seen until now: what had crossed the fabric before the call is in it.
    pub fn flows(&self) -> Result<BTreeMap<Ends, Flow>> {
        // Two rounds: the first may have begun before the call.
        let goal = self.rounds.load(Ordering::Acquire) + 2;
        wait::until_true("the capture to catch up", Duration::from_secs(20), || {
            self.rounds.load(Ordering::Acquire) >= goal
        })?;
        Ok(self.seen.lock().unwrap_or_else(PoisonError::into_inner).flows.clone())
    }

    /// Starts counting anew.
    pub fn clear(&self) -> Result<()> {
        self.flows()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.flows.clear();
        seen.tails.clear();
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn frame(&mut self, frame: &[u8]) {
        // Frames from a node are addressed to the fabric's port; the same packet leaving towards the other node is not.
        let from_node = frame.len() > 6 && frame[..5] == plan::port_mac(0)[..5];
        if !from_node {
            return;
        }
        let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return };
        let (from, to): (IpAddr, IpAddr) = match &packet.net {
            Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            _ => return,
        };
        let (tcp, source, destination, payload) = match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => (true, tcp.source_port(), tcp.destination_port(), tcp.payload()),
            Some(TransportSlice::Udp(udp)) => (false, udp.source_port(), udp.destination_port(), udp.payload()),
            _ => return,
        };
        let ends = Ends { from: SocketAddr::new(from, source), to: SocketAddr::new(to, destination), tcp };
        let flow = self.flows.entry(ends).or_default();
        if payload.is_empty() {
            return;
        }
        flow.packets += 1;
        flow.payload += payload.len() as u64;
        let Some(longest) = self.markers.iter().map(Vec::len).max() else { return };
        // With the end of the segment before, so that a marker cut in two is found.
        let tail = self.tails.entry(ends).or_default();
        let old = tail.len();
        tail.extend_from_slice(payload);
        for marker in &self.markers {
            flow.markers += occurrences(tail, marker, old) as u64;
        }
        let keep = tail.len().min(longest - 1);
        tail.drain(..tail.len() - keep);
    }
}

/// How often `marker` occurs in `data`, ending after position `from`.
fn occurrences(data: &[u8], marker: &[u8], from: usize) -> usize {
    let start = from.saturating_sub(marker.len() - 1);
    let first = marker[0];
    let mut found = 0;
    for (at, byte) in data.iter().enumerate().skip(start) {
        if *byte == first && data[at..].starts_with(marker) && at + marker.len() > from {
            found += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn frame(mac: [u8; 6], payload: &[u8]) -> Vec<u8> {
        let builder =
            PacketBuilder::ethernet2([2; 6], mac).ipv4([198, 18, 1, 2], [198, 18, 2, 3], 64).tcp(4000, 15008, 1, 1000);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).expect("a vector takes it");
        bytes
    }

    #[test]
    fn a_marker_cut_over_two_segments_is_found_once_and_leaving_frames_are_not_counted() {
        let mut seen = Seen { markers: vec![b"secret".to_vec()], ..Seen::default() };
        seen.frame(&frame(plan::port_mac(1), b"xxsec"));
        seen.frame(&frame(plan::port_mac(1), b"ret secret"));
        seen.frame(&frame([0x02, 9, 9, 9, 9, 9], b"secret"));
        let flow = seen.flows.values().next().expect("one flow");
        assert_eq!((seen.flows.len(), flow.packets, flow.payload, flow.markers), (1, 2, 15, 2));
    }
}

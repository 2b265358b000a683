//! What crosses the fabric beside the mesh's tunnels, for the promise that nothing does: every payload byte that arrives from a node,
//! by who sent it to whom. Apart from `capture`, which searches whole frames: this one runs under every test, so the kernel keeps tunnels
//! away from it and hands over headers alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};
use socket2::{SockFilter, Socket};

use crate::capture::Ends;
use crate::{ns, plan, wait};

/// Port of the tunnels.
pub const TUNNEL: u16 = 15008;
/// Bytes of receive buffer. A frame costs its full size here, however little of it is read: a burst of 64 KiB frames while the reader
/// waits for a core.
const BUFFER: usize = 256 << 20;
/// What is kept of a frame: Ethernet, the longest IPv4 and TCP headers, and some payload to show.
const SNAP: usize = 14 + 60 + 60 + SHOWN;
/// Bytes of a flow's first payload that are kept, to say what it was.
const SHOWN: usize = 48;
/// Flows that are told apart; a test with more of them beside the tunnels fails by that.
const MOST: usize = 50_000;

/// One direction of one conversation that is not a tunnel's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Frames with payload.
    pub packets: u64,
    /// Bytes of payload.
    pub payload: u64,
    /// The first bytes.
    pub first: Vec<u8>,
}

/// A running watch.
pub struct Watch {
    socket: Arc<Socket>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    flows: BTreeMap<Ends, Beside>,
    overflow: bool,
}

impl Watch {
    /// Starts reading in the network namespace at `netns`.
    pub(crate) fn start(netns: &Path) -> Result<Watch> {
        let all = 0x0003u16.to_be(); // ETH_P_ALL
        let protocol = rustix::net::Protocol::from_raw(std::num::NonZero::new(u32::from(all)).context("not zero")?);
        let socket = ns::in_netns(netns, || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(protocol))?)
        })
        .context("open a packet socket on the fabric")?;
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).context("a large receive buffer")?;
        let socket = Socket::from(socket);
        socket.attach_filter(&filter()).context("attach the filter")?;
        let socket = Arc::new(socket);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::Builder::new().name("lab-watch".into()).spawn({
            let (socket, stop, rounds, seen) = (socket.clone(), stop.clone(), rounds.clone(), seen.clone());
            move || {
                let mut frame = [0; SNAP];
                let pace = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                while !stop.load(Ordering::Relaxed) {
                    while let Ok((n, _)) = recv(&*socket, frame.as_mut_slice(), RecvFlags::empty()) {
                        lock(&seen).frame(&frame[..n.min(SNAP)]);
                    }
                    rounds.fetch_add(1, Ordering::Release); // the queue was empty just now
                    let _ = poll(&mut [PollFd::new(&*socket, PollFlags::IN)], Some(&pace));
                }
            }
        })?;
        Ok(Watch { socket, stop, seen, rounds, thread: Some(thread) })
    }

    /// Every flow with payload beside the tunnels until now: what had crossed the fabric before the call is in it.
    pub fn beside(&self) -> Result<BTreeMap<Ends, Beside>> {
        // Two rounds: the first may have begun before the call.
        let goal = self.rounds.load(Ordering::Acquire) + 2;
        wait::until_true("the watch to catch up", Duration::from_secs(20), || {
            self.rounds.load(Ordering::Acquire) >= goal
        })?;
        let seen = lock(&self.seen);
        ensure!(!seen.overflow, "more than {MOST} flows crossed the fabric beside the tunnels");
        Ok(seen.flows.clone())
    }
}

/// The packet socket, for its statistics: packets that it dropped were not seen.
impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn frame(&mut self, frame: &[u8]) {
        let Some(Part { ends, payload, shown }) = part(frame) else { return };
        if payload == 0 || (ends.tcp && ends.has_port(TUNNEL)) {
            return;
        }
        if self.flows.len() >= MOST && !self.flows.contains_key(&ends) {
            self.overflow = true;
            return;
        }
        let flow = self.flows.entry(ends).or_default();
        if flow.packets == 0 {
            flow.first = shown.to_vec();
        }
        flow.packets += 1;
        flow.payload += payload as u64;
    }
}

/// What a frame carries for the layer above TCP or UDP.
struct Part<'f> {
    ends: Ends,
    payload: usize,
    shown: &'f [u8],
}

/// Reads the headers of a frame that may be cut after them: lengths are those that the headers tell. Fragments after the first are no
/// part: their ports are unknown, and nothing in a lab fragments.
fn part(frame: &[u8]) -> Option<Part<'_>> {
    // Frames from a node are addressed to the fabric's port; the same packet leaving towards the other node is not.
    if frame.get(..5)? != &plan::port_mac(0)[..5] {
        return None;
    }
    let half = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let (from, to, protocol, above, length): (IpAddr, IpAddr, u8, usize, usize) = match half(12)? {
        0x0800 => {
            let header = usize::from(frame.get(14)? & 0xf) * 4;
            if half(20)? & 0x1fff != 0 {
                return None;
            }
            let address = |at: usize| <[u8; 4]>::try_from(frame.get(at..at + 4)?).ok();
            let length = usize::from(half(16)?).checked_sub(header)?;
            (address(26)?.into(), address(30)?.into(), *frame.get(23)?, 14 + header, length)
        }
        0x86dd => {
            let address = |at: usize| <[u8; 16]>::try_from(frame.get(at..at + 16)?).ok();
            (address(22)?.into(), address(38)?.into(), *frame.get(20)?, 54, usize::from(half(18)?))
        }
        _ => return None,
    };
    let header = match protocol {
        6 => usize::from(frame.get(above + 12)? >> 4) * 4,
        17 => 8,
        _ => return None,
    };
    let ends = Ends {
        from: SocketAddr::new(from, half(above)?),
        to: SocketAddr::new(to, half(above + 2)?),
        tcp: protocol == 6,
    };
    let payload = length.checked_sub(header)?;
    let begin = (above + header).min(frame.len());
    let shown = &frame[begin..frame.len().min(begin + payload.min(SHOWN))];
    Some(Part { ends, payload, shown })
}

/// Classic BPF: frames that arrive from a node, but for those of tunnels, cut to [`SNAP`] bytes. What it does not understand is let
/// through: it is there for speed, [`Seen::frame`] decides.
fn filter() -> Vec<SockFilter> {
    const LD_W: u16 = 0x20;
    const LD_H: u16 = 0x28;
    const LD_B: u16 = 0x30;
    const LD_H_X: u16 = 0x48;
    const LDX_IP_HEADER: u16 = 0xb1;
    const JEQ: u16 = 0x15;
    const JSET: u16 = 0x45;
    const RET: u16 = 0x06;
    let mac = plan::port_mac(0);
    let word = u32::from_be_bytes([mac[0], mac[1], mac[2], mac[3]]);
    let port = u32::from(TUNNEL);
    // (code, lines to skip if true, if false, value). Line 22 takes a frame, line 23 drops it.
    let lines: [(u16, u8, u8, u32); 24] = [
        (LD_W, 0, 0, 0),
        (JEQ, 0, 21, word), // 1: else 23
        (LD_B, 0, 0, 4),
        (JEQ, 0, 19, u32::from(mac[4])), // 3: else 23
        (LD_H, 0, 0, 12),
        (JEQ, 0, 9, 0x0800), // 5: else 15
        (LD_B, 0, 0, 23),
        (JEQ, 0, 14, 6), // 7: else 22
        (LD_H, 0, 0, 20),
        (JSET, 12, 0, 0x1fff), // 9: a later fragment: 22
        (LDX_IP_HEADER, 0, 0, 14),
        (LD_H_X, 0, 0, 14),
        (JEQ, 10, 0, port), // 12: 23
        (LD_H_X, 0, 0, 16),
        (JEQ, 8, 7, port),   // 14: 23, else 22
        (JEQ, 0, 6, 0x86dd), // 15: else 22
        (LD_B, 0, 0, 20),
        (JEQ, 0, 4, 6), // 17: else 22
        (LD_H, 0, 0, 54),
        (JEQ, 3, 0, port), // 19: 23
        (LD_H, 0, 0, 56),
        (JEQ, 1, 0, port), // 21: 23, else 22
        (RET, 0, 0, SNAP as u32),
        (RET, 0, 0, 0),
    ];
    lines.iter().map(|(code, yes, no, value)| SockFilter::new(*code, *yes, *no, *value)).collect()
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn tcp(v6: bool, port: u16, payload: &[u8]) -> Vec<u8> {
        let eth = PacketBuilder::ethernet2([2; 6], plan::port_mac(1));
        let mut bytes = Vec::new();
        let ip = match v6 {
            true => eth.ipv6([0xfd; 16], [0xfe; 16], 64),
            false => eth.ipv4([198, 18, 1, 2], [198, 18, 2, 3], 64),
        };
        ip.tcp(4000, port, 1, 1000).write(&mut bytes, payload).expect("a vector takes it");
        bytes
    }

    #[test]
    fn payload_of_cut_frames_is_counted_by_their_headers_and_tunnels_are_not() {
        let mut seen = Seen::default();
        for v6 in [false, true] {
            for (port, payload) in [(8080, 1000), (8080, 0), (TUNNEL, 1000)] {
                let frame = tcp(v6, port, &vec![b'x'; payload]);
                seen.frame(&frame[..frame.len().min(SNAP)]);
            }
        }
        assert_eq!(seen.flows.len(), 2);
        for (ends, flow) in &seen.flows {
            assert_eq!((ends.to.port(), flow.packets, flow.payload), (8080, 1, 1000));
            assert_eq!(flow.first, [b'x'; SHOWN]);
        }
    }

    #[test]
    fn a_frame_that_leaves_or_is_cut_anywhere_is_no_part_and_no_panic() {
        let frame = tcp(false, 8080, b"hello");
        for end in 0..frame.len() {
            let _ = part(&frame[..end]);
        }
        let mut leaving = frame;
        leaving[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
        assert!(part(&leaving).is_none());
    }
}

//! What is asked of connected TCP sockets, and what the kernel says of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// `struct tcp_info` of linux/tcp.h as far as it is read here. The kernel fills as much as it is given room for.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct TcpInfo {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    scales: u8,
    flags: u8,
    rto: u32,
    ato: u32,
    snd_mss: u32,
    rcv_mss: u32,
    unacked: u32,
    sacked: u32,
    lost: u32,
    retrans: u32,
    fackets: u32,
    last_data_sent: u32,
    last_ack_sent: u32,
    last_data_recv: u32,
    last_ack_recv: u32,
    pmtu: u32,
    rcv_ssthresh: u32,
    rtt: u32,
    rttvar: u32,
    snd_ssthresh: u32,
    snd_cwnd: u32,
    advmss: u32,
    reordering: u32,
    rcv_rtt: u32,
    rcv_space: u32,
    total_retrans: u32,
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    notsent_bytes: u32,
}

fn tcp_info(fd: &impl AsFd) -> io::Result<TcpInfo> {
    let mut info = TcpInfo::default();
    let mut size = libc::socklen_t::try_from(size_of::<TcpInfo>()).expect("a few hundred bytes");
    // SAFETY: the descriptor is open for the whole call (borrowed); `info` is valid for writes of `size` bytes, and any bytes are a
    // valid value of it.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut size,
        )
    };
    if rc == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

/// Whether the peer's kernel has not acknowledged all that was written.
pub fn unacknowledged(fd: &impl AsFd) -> io::Result<bool> {
    let info = tcp_info(fd)?;
    Ok(info.unacked > 0 || info.notsent_bytes > 0)
}

/// Whether some of what was written has not been sent even once: a reset drops that.
pub fn unsent(fd: &impl AsFd) -> io::Result<bool> {
    Ok(tcp_info(fd)?.notsent_bytes > 0)
}

/// When a peer that says nothing is given up (tcp(7)): probes begin after `idle`, `interval` apart, and `count` go unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// TCP_KEEPIDLE.
    pub idle: Duration,
    /// TCP_KEEPINTVL.
    pub interval: Duration,
    /// TCP_KEEPCNT.
    pub count: u32,
}

impl Keepalive {
    /// How long a dead peer goes unnoticed.
    pub fn patience(&self) -> Duration {
        self.idle + self.interval * self.count
    }
}

/// Has the kernel ask an idle peer whether it is still there. On a listener: for every connection that it accepts.
pub fn keepalive(fd: &impl AsFd, settings: Keepalive) -> io::Result<()> {
    let Keepalive { idle, interval, count } = settings;
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(count);
    SockRef::from(fd).set_tcp_keepalive(&keepalive)
}

/// Leaves urgent bytes where they were in the stream: without it each would be taken out and lost. On a listener: for every
/// connection that it accepts.
pub fn urgent_inline(fd: &impl AsFd) -> io::Result<()> {
    SockRef::from(fd).set_out_of_band_inline(true)
}

/// How it stands with what was written and not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outstanding {
    /// All is acknowledged.
    Nothing,
    /// Sent, and the peer has acknowledged nothing at all for so long.
    InFlight(Duration),
    /// Not sent: the peer has no room, and so many probes of ours in a row were not answered. The same time.
    NoRoom(u32, Duration),
}

/// Asks the kernel. TCP_USER_TIMEOUT would do this by itself, but gives up peers as well that are there and do not read.
pub fn outstanding(fd: &impl AsFd) -> io::Result<Outstanding> {
    let info = tcp_info(fd)?;
    let silent = Duration::from_millis(info.last_ack_recv.into());
    Ok(match (info.unacked, info.notsent_bytes) {
        (0, 0) => Outstanding::Nothing,
        (0, _) => Outstanding::NoRoom(info.probes.into(), silent),
        _ => Outstanding::InFlight(silent),
    })
}

/// How many connections wait in a listener for someone to accept them.
pub fn waiting(listener: &impl AsFd) -> io::Result<u32> {
    // tcp(7) does not say so, tcp_get_info() in the kernel does: of a listener this field is its accept queue.
    tcp_info(listener).map(|info| info.unacked)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair(address: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(address).expect("bind");
        urgent_inline(&listener).expect("listener");
        let far = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (far, listener.accept().expect("accept").0)
    }

    #[test]
    fn a_listener_tells_how_many_wait_in_it() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("bind");
            assert_eq!(waiting(&listener).expect("asked"), 0);
            let to = listener.local_addr().expect("address");
            let _callers = [TcpStream::connect(to).expect("connect"), TcpStream::connect(to).expect("connect")];
            assert_eq!(waiting(&listener).expect("asked"), 2);
            listener.accept().expect("accept");
            assert_eq!(waiting(&listener).expect("asked"), 1);
        }
    }

    #[test]
    fn an_urgent_byte_stays_in_its_place() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (mut far, mut near) = pair(address);
            far.write_all(b"ab").expect("write");
            SockRef::from(&far).send_out_of_band(b"X").expect("urgent");
            far.write_all(b"cd").expect("write");
            drop(far);
            let mut seen = String::new();
            near.read_to_string(&mut seen).expect("read");
            assert_eq!(seen, "abXcd");
        }
    }

    #[test]
    fn what_a_peer_has_no_room_for_is_told_from_what_it_acknowledged() {
        let (mut far, near) = pair("127.0.0.1:0");
        far.set_nonblocking(true).expect("non-blocking");
        assert_eq!(outstanding(&far).expect("asked"), Outstanding::Nothing);
        while far.write(&[7; 65536]).is_ok() {}
        // The last segments may still be on their way.
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while !matches!(outstanding(&far).expect("asked"), Outstanding::NoRoom(..)) {
            assert!(std::time::Instant::now() < until, "{:?}", outstanding(&far));
        }
        assert!(unacknowledged(&far).expect("asked"));
        drop(near);
    }

    #[test]
    fn patience_is_the_time_to_the_last_probe_and_its_answer() {
        let keepalive = Keepalive { idle: Duration::from_secs(5), interval: Duration::from_secs(3), count: 3 };
        assert_eq!(keepalive.patience(), Duration::from_secs(14));
    }
}

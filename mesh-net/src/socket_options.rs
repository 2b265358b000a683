//! What is asked of connected TCP sockets, and what the kernel says of them.

use std::io;
use std::mem::MaybeUninit;
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

/// linux/tcp.h; the libc crate does not have it. The message that tells the count bears the same number.
const TCP_INQ: libc::c_int = 36;

/// Has [`receive`] told how much is left unread. TCP_INQ: Linux 4.18.
pub fn count_unread(fd: &impl AsFd) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, TCP_INQ, 1)
}

/// Sets an option whose value is an int, which no crate that is used here knows.
pub(crate) fn set_option(
    fd: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    const SIZE: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open (borrowed for the call); `value` is valid for reads of `SIZE` bytes for the whole call.
    let rc = unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), SIZE) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether there is more to read behind what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// The kernel says that there is nothing: whatever comes is announced.
    Nothing,
    /// Bytes, or the end of data, or nobody knows ([`count_unread`] was not asked for).
    Perhaps,
}

/// Reads into the free room of `buffer`; 0 is the end of data. A read that is short says nothing about what is behind: the kernel also stops
/// before an urgent byte that stays in its place.
pub fn receive(fd: &impl AsFd, buffer: &mut Vec<u8>) -> io::Result<(usize, Behind)> {
    let room = buffer.spare_capacity_mut();
    let mut part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // One message with an int is 24 bytes; as words, it is aligned for a `cmsghdr`.
    let mut control = [0_u64; 4];
    // SAFETY: all bytes zero are a `msghdr` (null pointers and numbers; there is padding on some systems, so it has no literal).
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control) as _);
    let bytes = loop {
        // SAFETY: the descriptor is open (borrowed for the call). `message` leads to one part, which is the vector's free room and not used
        // otherwise until the last use of `part`, and to `control`; both are valid for writes of the sizes given.
        let got = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, 0) };
        match usize::try_from(got) {
            Ok(bytes) => break bytes,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    // SAFETY: the kernel has written that many bytes into the free room, from its start, and no more than there is room for.
    unsafe { buffer.set_len(buffer.len() + bytes) };
    // SAFETY: `message` is as the kernel left it: `msg_control` still leads to `control`, of which `msg_controllen` bytes are its own. The header
    // is null or whole inside of them; its int is read only when the header says that it is one of ours, which has one.
    let unread = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let of_ours = !header.is_null()
            && (*header).cmsg_level == libc::SOL_TCP
            && (*header).cmsg_type == TCP_INQ
            && (*header).cmsg_len as usize >= libc::CMSG_LEN(size_of::<libc::c_int>() as u32) as usize;
        of_ours.then(|| libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned())
    };
    Ok((bytes, if unread == Some(0) { Behind::Nothing } else { Behind::Perhaps }))
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
    fn a_read_tells_whether_more_is_behind_it_also_before_an_urgent_byte() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (mut far, near) = pair(address);
            count_unread(&near).expect("asked for");
            far.write_all(b"ab").expect("write");
            SockRef::from(&far).send_out_of_band(b"X").expect("urgent");
            far.write_all(b"cd").expect("write");
            let mut seen = Vec::with_capacity(100);
            assert_eq!(receive(&near, &mut seen).expect("read"), (2, Behind::Perhaps));
            assert_eq!(receive(&near, &mut seen).expect("read"), (3, Behind::Nothing));
            far.write_all(&[7; 200]).expect("write");
            assert_eq!(receive(&near, &mut seen).expect("read"), (95, Behind::Perhaps));
            assert_eq!((&seen[..5], seen.len()), (b"abXcd".as_slice(), 100));
            seen.clear();
            near.set_nonblocking(true).expect("non-blocking");
            while seen.len() < 105 {
                let _ = receive(&near, &mut seen);
                seen.reserve(100);
            }
            assert_eq!(receive(&near, &mut seen).map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
            // An end of data is something to read.
            far.write_all(b"e").expect("write");
            drop(far);
            let until = std::time::Instant::now() + Duration::from_secs(5);
            let last = loop {
                assert!(std::time::Instant::now() < until);
                if let Ok(last) = receive(&near, &mut seen) {
                    break last;
                }
            };
            assert_eq!(last, (1, Behind::Perhaps));
            assert_eq!(receive(&near, &mut seen).expect("read").0, 0);
        }
    }

    #[test]
    fn without_being_asked_a_read_does_not_say_that_nothing_is_behind() {
        let (mut far, near) = pair("127.0.0.1:0");
        far.write_all(b"ab").expect("write");
        assert_eq!(receive(&near, &mut Vec::with_capacity(9)).expect("read"), (2, Behind::Perhaps));
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

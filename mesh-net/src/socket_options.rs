//! What is asked of connected TCP sockets, and what the kernel says of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

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

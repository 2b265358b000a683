//! What a packet socket says of itself (packet(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Packets since the last time it was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// That passed its filter, dropped ones among them.
    pub packets: u32,
    /// That it had no room for.
    pub drops: u32,
}

/// PACKET_STATISTICS; the kernel starts counting anew with each call.
pub fn statistics(socket: impl AsFd) -> io::Result<Statistics> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed and open; `stats` is a plain struct of exactly `length` bytes that outlives the call.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Statistics { packets: stats.tp_packets, drops: stats.tp_drops })
}

//! TCP MD5 signatures (RFC 2385), which no proxy can pass on: here so that tests can show what becomes of them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _};

/// `struct tcp_md5sig` of `linux/tcp.h`.
#[repr(C)]
struct Signature {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix: u8,
    key_length: u16,
    interface: i32,
    key: [u8; 80],
}

/// Has the kernel sign and check every segment from and to this peer, whatever its port.
pub fn sign(socket: impl AsFd, peer: IpAddr, key: &[u8]) -> io::Result<()> {
    // SAFETY: `sockaddr_storage` and the rest are plain numbers, for which zero is a value.
    let mut signature: Signature = unsafe { std::mem::zeroed() };
    let held = signature.key.get_mut(..key.len()).ok_or(io::ErrorKind::InvalidInput)?;
    held.copy_from_slice(key);
    signature.key_length = key.len() as u16;
    let address = socket2::SockAddr::from(SocketAddr::new(peer, 0));
    // SAFETY: both are at least as long as the address, which is a plain struct without pointers.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            (&raw mut signature.address).cast::<u8>(),
            address.len() as usize,
        );
    }
    // SAFETY: the descriptor is borrowed and open; the value is a plain struct of exactly the given length that outlives the call.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MD5SIG,
            (&raw const signature).cast(),
            size_of::<Signature>() as libc::socklen_t,
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

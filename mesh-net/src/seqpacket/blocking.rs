//! The calls themselves; a deadline bounds each that waits.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};

/// Largest packet that is read; twice what the links allow to be sent.
pub const MAX_PACKET: usize = 128 * 1024;
/// Most descriptors on one packet (unix(7), SCM_MAX_FD). Space for all is always reserved: "one too many" must not look like a full
/// descriptor table.
pub const MAX_FDS: usize = 253;

const CONTROL_SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

thread_local! {
    /// Packets are read here and copied out at their own size: most are 32 bytes, and the keeper takes thousands a second.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_PACKET]);
}

/// Who is at the other end, as the kernel says (taken when it connected or listened).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process; 0 when it lives in a pid namespace that we cannot see.
    pub pid: i32,
}

/// One message.
#[derive(Debug)]
pub struct Packet {
    /// The bytes; never empty.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// A listening socket; its file goes away with it.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path` with the given file mode. A file left by a listener that is gone is replaced; one with somebody behind it
    /// is `AddrInUse`.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        let fd = socket(SocketFlags::empty())?;
        // Linux gives the file the mode of the socket's own inode, less the umask: set first, so that it is never more open than
        // asked. The chmod after only restores what the umask took.
        rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(mode))?;
        let address = SocketAddrUnix::new(path)?;
        match rustix::net::bind(&fd, &address) {
            Err(rustix::io::Errno::ADDRINUSE) if is_stale(path)? => {
                std::fs::remove_file(path)?;
                rustix::net::bind(&fd, &address)?;
            }
            other => other?,
        }
        let listener = Self { fd, path: path.to_owned(), file: inode(path) };
        rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode))?;
        rustix::net::listen(&listener.fd, 128)?;
        Ok(listener)
    }

    /// The next connection; blocks.
    pub fn accept(&self) -> io::Result<Conn> {
        Ok(Conn { fd: retry(|| rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC))? })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file there is still this socket's: a listener whose file was removed or replaced hears nobody any more.
    pub fn is_in_place(&self) -> bool {
        self.file.is_some() && inode(&self.path) == self.file
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A later listener may have replaced the file; then it is not ours to remove.
        if self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub struct Conn {
    fd: OwnedFd,
}

impl Conn {
    /// Connects to the listener at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::connect_with(path, SocketFlags::empty())
    }

    fn connect_with(path: &Path, flags: SocketFlags) -> io::Result<Self> {
        let fd = socket(flags)?;
        let address = SocketAddrUnix::new(path)?;
        retry(|| rustix::net::connect(&fd, &address))?;
        Ok(Self { fd })
    }

    /// Two ends of one connection.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    /// From a descriptor that was inherited or passed.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<Credentials> {
        // Not through rustix: its `Pid` cannot be zero, and the kernel says zero for a peer outside our pid namespace.
        let mut answer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let mut size = libc::socklen_t::try_from(std::mem::size_of::<libc::ucred>()).expect("12 fits");
        // SAFETY: the descriptor is open (owned by self); `answer` is valid for writes of `size` bytes and plain old data.
        let rc = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut answer).cast(),
                &raw mut size,
            )
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Credentials { uid: answer.uid, gid: answer.gid, pid: answer.pid })
    }

    /// Deadline for every later blocking `send` and `recv`; they then fail with `WouldBlock`.
    pub fn set_deadline(&self, deadline: Duration) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, Some(deadline))?;
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Send, Some(deadline))?;
        Ok(())
    }

    /// Sends one message whole.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_with(bytes, fds, SendFlags::empty())
    }

    /// Takes the next message; `None` when the other end has closed.
    pub fn recv(&self) -> io::Result<Option<Packet>> {
        self.recv_with(RecvFlags::empty())
    }

    pub(crate) fn send_with(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
        if bytes.is_empty() || bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "packet is empty, too large or carries too many descriptors",
            ));
        }
        let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
        }
        let sent = retry(|| {
            rustix::net::sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL)
        })?;
        // unix(7): a SEQPACKET message is sent whole or not at all.
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    pub(crate) fn recv_with(&self, flags: RecvFlags) -> io::Result<Option<Packet>> {
        BUFFER.with_borrow_mut(|buffer| self.recv_into(buffer, flags))
    }

    fn recv_into(&self, buffer: &mut [u8], flags: RecvFlags) -> io::Result<Option<Packet>> {
        let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = retry(|| {
            rustix::net::recvmsg(
                &self.fd,
                &mut [IoSliceMut::new(buffer)],
                &mut control,
                flags | RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                fds.extend(passed);
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "descriptors of the message were lost: this process has no room for more descriptors",
            ));
        }
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message is longer than any of ours"));
        }
        if got.bytes == 0 {
            return Ok(None);
        }
        Ok(Some(Packet { bytes: buffer[..got.bytes].to_vec(), fds }))
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Conn {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Conn> for OwnedFd {
    fn from(conn: Conn) -> Self {
        conn.fd
    }
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags | SocketFlags::CLOEXEC, None)?)
}

fn retry<T>(call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    Ok(rustix::io::retry_on_intr(call)?)
}

/// Whether the socket file has nobody behind it.
fn is_stale(path: &Path) -> io::Result<bool> {
    // Without waiting: a listener that accepts nothing would keep whoever asks for as long as it lives (unix(7): EAGAIN instead).
    match Conn::connect_with(path, SocketFlags::NONBLOCK) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        // A listener of another type, a full backlog or anything else: somebody is there.
        _ => Ok(false),
    }
}

/// The file's identity.
fn inode(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn inode_of(fd: impl AsFd) -> u64 {
        rustix::fs::fstat(fd).expect("open").st_ino
    }

    #[test]
    fn descriptors_arrive_in_order_on_their_own_message() {
        let (a, b) = Conn::pair().expect("pair");
        let files: Vec<File> =
            ["/proc/self/status", "/etc/hostname", "/dev/null"].map(|p| File::open(p).expect(p)).into();
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        a.send(b"none", &[]).expect("send");
        a.send(b"three", &borrowed).expect("send");
        a.send(b"one", &borrowed[1..2]).expect("send");
        let counts: Vec<(Vec<u8>, Vec<u64>)> = (0..3)
            .map(|_| b.recv().expect("recv").expect("open"))
            .map(|packet| (packet.bytes, packet.fds.iter().map(inode_of).collect()))
            .collect();
        let expected: Vec<u64> = files.iter().map(inode_of).collect();
        assert_eq!(counts[0], (b"none".to_vec(), vec![]));
        assert_eq!(counts[1], (b"three".to_vec(), expected.clone()));
        assert_eq!(counts[2], (b"one".to_vec(), expected[1..2].to_vec()));
    }

    #[test]
    fn the_most_descriptors_that_the_kernel_takes_all_arrive() {
        let (a, b) = Conn::pair().expect("pair");
        let null = File::open("/dev/null").expect("null");
        a.send(b"x", &vec![null.as_fd(); MAX_FDS]).expect("send");
        assert_eq!(b.recv().expect("recv").expect("open").fds.len(), MAX_FDS);
        assert!(a.send(b"x", &vec![null.as_fd(); MAX_FDS + 1]).is_err());
    }

    #[test]
    fn a_message_that_is_too_long_is_an_error_and_not_a_shorter_message() {
        let (a, b) = Conn::pair().expect("pair");
        assert_eq!(a.send(&vec![1; MAX_PACKET + 1], &[]).map_err(|e| e.kind()), Err(io::ErrorKind::InvalidInput));
        let long = vec![1; MAX_PACKET + 1];
        sockopt::set_socket_send_buffer_size(&a.fd, 4 * MAX_PACKET).expect("sndbuf");
        rustix::net::send(&a.fd, &long, SendFlags::empty()).expect("raw send");
        assert_eq!(b.recv().map(|_| ()).map_err(|e| e.kind()), Err(io::ErrorKind::InvalidData));
        a.send(b"next", &[]).expect("send");
        assert_eq!(b.recv().expect("recv").expect("open").bytes, b"next");
    }

    #[test]
    fn the_end_is_none_and_an_empty_message_cannot_be_sent() {
        let (a, b) = Conn::pair().expect("pair");
        assert!(a.send(b"", &[]).is_err());
        drop(a);
        assert!(b.recv().expect("end").is_none());
    }

    #[test]
    fn the_file_has_the_asked_mode_and_goes_with_the_listener() {
        let dir = tempfile::tempdir().expect("dir");
        for mode in [0o600, 0o660] {
            let path = dir.path().join(format!("s{mode:o}"));
            let listener = Listener::bind(&path, mode).expect("bind");
            assert_eq!(std::fs::metadata(&path).expect("file").permissions().mode() & 0o777, mode);
            assert!(listener.is_in_place());
            drop(listener);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_listener_whose_file_was_removed_or_replaced_knows_it() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let first = Listener::bind(&path, 0o600).expect("bind");
        std::fs::remove_file(&path).expect("removed");
        assert!(!first.is_in_place());
        let second = Listener::bind(&path, 0o600).expect("the place is free");
        assert!(second.is_in_place() && !first.is_in_place());
        drop(first);
        assert!(path.exists(), "the file of the second went with the first");
    }

    #[test]
    fn a_file_left_behind_is_replaced_and_a_live_listener_is_not() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let first = Listener::bind(&path, 0o600).expect("bind");
        assert_eq!(Listener::bind(&path, 0o600).map(|_| ()).map_err(|e| e.kind()), Err(io::ErrorKind::AddrInUse));
        // As after kill -9: the descriptor is closed and the file stays.
        let before = std::fs::metadata(&path).expect("file").ino();
        let copy = first.fd.try_clone().expect("fd");
        std::mem::forget(first);
        rustix::net::shutdown(&copy, rustix::net::Shutdown::Both).expect("as if closed");
        drop(copy);
        let second = Listener::bind(&path, 0o600).expect("stale file is replaced");
        assert_ne!(std::fs::metadata(&path).expect("file").ino(), before);
        drop(second);
    }

    #[test]
    fn a_live_listener_that_accepts_nothing_keeps_nobody_who_binds_at_its_place() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("s");
        let _first = Listener::bind(&path, 0o600).expect("bind");
        let (tried, answers) = std::sync::mpsc::channel();
        // One that is kept ends with the test's process.
        std::thread::spawn(move || {
            // More than its backlog has room for.
            for _ in 0..150 {
                let again = Listener::bind(&path, 0o600).map(|_| ()).map_err(|error| error.kind());
                tried.send(again).expect("the test waits");
            }
        });
        for number in 0..150 {
            let again = answers.recv_timeout(Duration::from_secs(10));
            assert_eq!(again, Ok(Err(io::ErrorKind::AddrInUse)), "number {number}");
        }
    }

    #[test]
    fn both_ends_see_who_the_other_is() {
        let dir = tempfile::tempdir().expect("dir");
        let listener = Listener::bind(&dir.path().join("s"), 0o600).expect("bind");
        let near = Conn::connect(listener.path()).expect("connect");
        let far = listener.accept().expect("accept");
        let me = Credentials {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
        };
        assert_eq!((near.peer().expect("peer"), far.peer().expect("peer")), (me, me));
    }

    #[test]
    fn a_deadline_ends_a_wait() {
        let (_a, b) = Conn::pair().expect("pair");
        b.set_deadline(Duration::from_millis(20)).expect("set");
        assert_eq!(b.recv().map(|_| ()).map_err(|e| e.kind()), Err(io::ErrorKind::WouldBlock));
    }
}

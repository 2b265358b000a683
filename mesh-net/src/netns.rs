//! Network namespaces: a handle, its identity, and running a closure inside.
//!
//! A switch is treated like a lock (build notes, "netns closure without a guard"): a guard brings the thread back, also when the
//! closure panics, and a thread that cannot come back ends the process, since it would do its next work in somebody's pod.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The *thread's* namespace: `/proc/self` would be the main thread's.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// A namespace cannot be opened or entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The file does not open.
    #[error("open network namespace {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The descriptor is of something else.
    #[error("descriptor is not of a network namespace")]
    NotNetns,
    /// The kernel refuses to let us in.
    #[error("enter network namespace {id}")]
    Enter {
        /// Which.
        id: NetnsId,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a namespace is called by: two handles are of the same namespace exactly when these are equal (as long as one is open).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// Device of the nsfs inode.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

impl NetnsId {
    /// Of the file at `path` (for example `/proc/PID/ns/net`), without opening it.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path)?;
        Ok(Self { dev: meta.dev(), ino: meta.ino() })
    }
}

/// An open network namespace. It lives at least as long as the handle.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    id: NetnsId,
}

impl Netns {
    /// Takes a descriptor that came from elsewhere; it must be of a network namespace.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetnsError> {
        // SAFETY: NS_GET_NSTYPE takes no argument and answers by value; the descriptor is open, as it is borrowed from an `OwnedFd`.
        let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(NetnsError::NotNetns);
        }
        let stat = rustix::fs::fstat(&fd).map_err(|_| NetnsError::NotNetns)?;
        Ok(Self { fd, id: NetnsId { dev: stat.st_dev, ino: stat.st_ino } })
    }

    /// Opens a file such as `/run/netns/x` or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
        Self::from_fd(file.into())
    }

    /// The namespace that the calling thread is in.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new(CURRENT))
    }

    /// A namespace of its own with `lo` down, without moving the calling thread there. It ends with the last handle.
    pub fn create() -> Result<Self, NetnsError> {
        // On a thread of its own: unshare cannot be undone there, and the thread is thrown away.
        let made = std::thread::spawn(|| {
            // SAFETY: CLONE_NEWNET touches no file descriptor table and no memory; it moves only this thread, which ends here.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .map_err(|errno| NetnsError::Open { path: PathBuf::from("(new)"), source: io::Error::from(errno) })?;
            Self::current()
        });
        made.join().unwrap_or_else(|_| {
            Err(NetnsError::Open { path: PathBuf::from("(new)"), source: io::Error::other("thread panicked") })
        })
    }

    /// Its identity.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Another handle of the same namespace.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, id: self.id })
    }

    /// Gives up the handle for its descriptor.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Runs `work` with the calling thread inside this namespace. Sockets made there stay there. `work` must not await, spawn
    /// threads that expect to be outside, or keep the thread long.
    ///
    /// The process aborts if the thread cannot come back: every later socket of this thread would land in the wrong pod.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let home = Self::current()?;
        if home.id == self.id {
            return Ok(work());
        }
        enter(&self.fd).map_err(|source| NetnsError::Enter { id: self.id, source })?;
        let guard = Guard { home };
        let answer = work();
        drop(guard);
        Ok(answer)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Brings the thread home when dropped, in a panic as well.
struct Guard {
    home: Netns,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.home.fd) {
            tracing::error!(%error, "thread cannot return to its network namespace; ending the process");
            std::process::abort();
        }
    }
}

fn enter(fd: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> NetnsId {
        Netns::current().expect("root test").id()
    }

    #[test]
    fn a_closure_runs_inside_and_the_thread_comes_back() {
        let home = here();
        let pod = Netns::create().expect("needs root");
        assert_ne!(pod.id(), home);
        assert_eq!(pod.run(here).expect("entered"), pod.id());
        assert_eq!(here(), home);
    }

    #[test]
    fn a_panic_inside_does_not_leave_the_thread_in_the_pod() {
        let home = here();
        let pod = Netns::create().expect("needs root");
        let ended = std::panic::catch_unwind(|| pod.run(|| panic!("on purpose")));
        assert!(ended.is_err());
        assert_eq!(here(), home);
    }

    #[test]
    fn a_nested_switch_comes_back_to_the_middle_one() {
        let (outer, inner) = (Netns::create().expect("needs root"), Netns::create().expect("needs root"));
        let seen = outer.run(|| (inner.run(here).expect("entered"), here())).expect("entered");
        assert_eq!(seen, (inner.id(), outer.id()));
    }

    #[test]
    fn a_descriptor_of_anything_else_is_refused() {
        let file = File::open("/proc/self/status").expect("proc");
        assert!(matches!(Netns::from_fd(file.into()), Err(NetnsError::NotNetns)));
        let mount = File::open("/proc/self/ns/mnt").expect("proc");
        assert!(matches!(Netns::from_fd(mount.into()), Err(NetnsError::NotNetns)));
    }

    #[test]
    fn a_clone_is_of_the_same_namespace() {
        let pod = Netns::create().expect("needs root");
        assert_eq!(pod.try_clone().expect("fd").id(), pod.id());
    }
}

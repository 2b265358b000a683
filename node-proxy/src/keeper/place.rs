//! Where the worker dials: a socket that belongs to the worker's group, in a directory that only root may change.
//!
//! A worker that has been taken over may call unlink and rename. Were the directory its own, it would take the socket away and end, and
//! no worker of this node would find the keeper again. So the directory is closed before anybody is served, and a socket that is gone
//! from its place all the same (by root's hand) is opened anew.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use mesh_net::seqpacket::{AsyncConn, AsyncListener};
use tokio::time::Instant;

/// The worker's group is the directory's (setgid), since the keeper may not change owners (no CHOWN).
const SOCKET_MODE: u32 = 0o660;
/// Of the directory: root changes it, the worker's group finds what is in it, nobody else gets in.
const DIRECTORY_MODE: u32 = 0o2750;
/// Who else may not write there: group and others.
const WRITABLE: u32 = 0o022;
/// How often the place is looked at while no worker is served: what a worker waits longer than usual when root has tidied up. It is
/// also what bounds the attempts when the place cannot be had.
const LOOK: Duration = Duration::from_secs(1);

/// Takes the right to change the socket's directory from everybody but root. kubelet makes an emptyDir with mode 0777 and, for
/// `fsGroup`, setgid to that group, of which this process then is as well.
pub fn close_directory(socket: &Path) -> anyhow::Result<()> {
    let dir =
        socket.parent().filter(|dir| !dir.as_os_str().is_empty()).context("the worker's socket has no directory")?;
    let found = std::fs::metadata(dir).with_context(|| format!("look at {}", dir.display()))?;
    anyhow::ensure!(
        found.uid() == 0,
        "{} belongs to uid {}: it has to be root's, or whoever owns it takes the socket away",
        dir.display(),
        found.uid()
    );
    if found.mode() & WRITABLE == 0 {
        return Ok(());
    }
    // Without FSETID the kernel takes setgid from a directory of a group that is not ours, and with it the worker's way in.
    let ours = rustix::process::getgroups().context("read our groups")?;
    let ours = ours.into_iter().chain([rustix::process::getegid()]).any(|group| group.as_raw() == found.gid());
    anyhow::ensure!(
        ours,
        "{} may be written to by others than root, and cannot be closed by a process outside of its group {}: set its mode to {:o}",
        dir.display(),
        found.gid(),
        DIRECTORY_MODE
    );
    std::fs::set_permissions(dir, PermissionsExt::from_mode(DIRECTORY_MODE))
        .with_context(|| format!("take the right to write to {} from all but root", dir.display()))?;
    tracing::info!(dir = %dir.display(), found = format!("{:o}", found.mode() & 0o7777), "directory closed to all but root");
    Ok(())
}

/// The listening socket, in its place.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    listener: AsyncListener,
    look: Instant,
    /// Why it could not be had again, to say it once.
    failed: Option<io::ErrorKind>,
}

impl Place {
    /// Listens at this path.
    pub fn take(path: &Path) -> io::Result<Self> {
        let listener = AsyncListener::bind(path, SOCKET_MODE)?;
        Ok(Self { path: path.to_owned(), listener, look: Instant::now() + LOOK, failed: None })
    }

    /// The next connection; meanwhile the place is looked after. Cancel-safe: both awaits are, and nothing is awaited after one.
    pub async fn accept(&mut self) -> io::Result<AsyncConn> {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => return accepted,
                () = tokio::time::sleep_until(self.look) => self.look_after(),
            }
        }
    }

    /// Once a second at most. Somebody else's live socket at the path is left alone: another keeper may be meant to have it.
    fn look_after(&mut self) {
        self.look = Instant::now() + LOOK;
        if self.listener.is_in_place() {
            return;
        }
        match AsyncListener::bind(&self.path, SOCKET_MODE) {
            Ok(listener) => {
                tracing::warn!(socket = %self.path.display(), "the socket was taken from its place; opened anew");
                self.listener = listener;
                self.failed = None;
            }
            Err(error) => {
                if self.failed.replace(error.kind()) != Some(error.kind()) {
                    tracing::error!(socket = %self.path.display(), %error, "the socket was taken from its place and cannot be had again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_was_removed_or_replaced_is_there_again_within_two_looks() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("keeper.sock");
        let mut place = Place::take(&path).expect("listens");
        let what_happens: [fn(&Path); 3] = [
            |path| std::fs::remove_file(path).expect("removed"),
            // Left by a process that is gone: nobody is behind it.
            |path| {
                std::fs::remove_file(path).expect("removed");
                let stranger = mesh_net::seqpacket::Listener::bind(path, 0o600).expect("bound");
                let _ = std::fs::rename(path, path.with_extension("kept"));
                drop(stranger);
                std::fs::rename(path.with_extension("kept"), path).expect("back");
            },
            |path| std::fs::rename(path, path.with_extension("aside")).expect("moved"),
        ];
        for happens in what_happens {
            happens(&path);
            // Nobody dials: only time passes.
            assert!(tokio::time::timeout(2 * LOOK, place.accept()).await.is_err());
            let near = AsyncConn::connect(&path).expect("somebody listens again");
            place.accept().await.expect("and hears");
            drop(near);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_live_socket_of_somebody_else_is_left_alone_and_the_place_taken_when_it_has_gone() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("keeper.sock");
        let mut place = Place::take(&path).expect("listens");
        std::fs::remove_file(&path).expect("removed");
        let other = mesh_net::seqpacket::Listener::bind(&path, 0o600).expect("bound");
        assert!(tokio::time::timeout(3 * LOOK, place.accept()).await.is_err());
        assert!(other.is_in_place());
        drop(other);
        assert!(tokio::time::timeout(2 * LOOK, place.accept()).await.is_err());
        let _near = AsyncConn::connect(&path).expect("ours again");
        place.accept().await.expect("and heard");
    }

    #[test]
    fn only_root_may_change_the_directory_afterwards_and_its_group_stays() {
        let dir = tempfile::tempdir().expect("dir");
        let mode = |mode: u32| std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).expect("chmod");
        let socket = dir.path().join("keeper.sock");
        for before in [0o2777, 0o2770, 0o3777] {
            mode(before);
            close_directory(&socket).expect("closed");
            let after = std::fs::metadata(dir.path()).expect("there").mode() & 0o7777;
            assert_eq!(after, DIRECTORY_MODE, "from {before:o}");
        }
        // Closed already: left as it is.
        mode(0o700);
        close_directory(&socket).expect("closed");
        assert_eq!(std::fs::metadata(dir.path()).expect("there").mode() & 0o7777, 0o700);
        std::os::unix::fs::chown(dir.path(), Some(65532), None).expect("needs root");
        assert!(close_directory(&socket).is_err(), "its owner would open it again");
    }
}

//! Entering namespaces: always on a thread of its own that ends with the work, so that no other code of the lab can ever
//! run in the wrong one. Namespaces are named by the `/proc/PID/ns/*` (or bind-mounted) file of the machine's own procfs.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// Moves the calling thread into the namespace at `path`.
pub(crate) fn enter(path: &Path, kind: LinkNameSpaceType) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open namespace {}", path.display()))?;
    move_into_link_name_space(file.as_fd(), Some(kind)).with_context(|| format!("enter namespace {}", path.display()))
}

/// Gives the calling thread new namespaces.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // rustix marks this unsafe-to-be for the sake of CLONE_FILES alone, which is never asked for here.
    #[expect(deprecated, reason = "the unsafe form is for CLONE_FILES; unsafe code lives in mesh-net only")]
    let result = rustix::thread::unshare(flags);
    result.map_err(Into::into)
}

/// Runs `work` on a fresh thread and hands its result back.
pub(crate) fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("lab-ns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a namespace thread panicked")))
    })
}

/// Runs `work` in the network namespace at `path`.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_thread(|| {
        enter(path, LinkNameSpaceType::Network)?;
        work()
    })
}

/// Starts a command whose process is in the pid namespace at `path` (the mount namespace stays the caller's).
pub(crate) fn spawn_in_pidns(path: &Path, command: &mut Command) -> Result<Child> {
    on_thread(|| {
        enter(path, LinkNameSpaceType::ProcessID)?;
        command.spawn().with_context(|| format!("start {:?}", command.get_program()))
    })
}

/// Starts a command as pid 1 of new network, mount, uts, ipc and pid namespaces.
pub(crate) fn spawn_isolated(command: &mut Command) -> Result<Child> {
    on_thread(|| {
        let all = UnshareFlags::NEWNET
            | UnshareFlags::NEWNS
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWPID;
        unshare(all).context("make namespaces (this needs root)")?;
        command.spawn().with_context(|| format!("start {:?}", command.get_program()))
    })
}

/// Runs `ip -batch -` with `lines` in the network namespace at `path`.
pub(crate) fn ip_batch(path: &Path, lines: &str) -> Result<()> {
    use std::io::Write;
    use std::process::Stdio;
    in_netns(path, || {
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip (Debian package iproute2)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        anyhow::ensure!(
            output.status.success(),
            "ip -batch: {}\n{lines}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    })
}

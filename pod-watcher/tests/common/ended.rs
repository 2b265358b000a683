//! Programs that a test starts and waits for: each has a deadline, and a test that waits in vain says for what.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

/// Longer than any program of the machine takes that is called here.
const SOON: Duration = Duration::from_secs(30);
/// What a build of one small package with all that it needs takes on two busy cores, several times over.
const BUILD: Duration = Duration::from_secs(600);

/// What a program said until it ended; one that does not end in time is killed, and the test fails.
pub fn ended(child: Child, what: &str, limit: Duration) -> Output {
    let pid = rustix::process::Pid::from_child(&child);
    let (tell, told) = mpsc::channel();
    // Reads while it waits: what a program cannot get rid of keeps it from ending.
    let waiting = std::thread::spawn(move || drop(tell.send(child.wait_with_output())));
    let Ok(output) = told.recv_timeout(limit) else {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let _ = waiting.join();
        panic!("{what}: has not ended within {limit:?}");
    };
    output.expect("waited for")
}

/// A program of the machine, in the netns of the calling thread.
pub fn run(program: &str, args: &[&str]) {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = ended(command.spawn().expect("program is installed"), &format!("{program} {args:?}"), SOON);
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// culvert-cni: where CULVERT_BINARIES says, as `cargo xtask test` does. Without it, it is built, since another package's binary is not
/// built for this test; that takes a while when it has never been built by itself, and cargo says nothing while another cargo holds the
/// build directory. The tests that need it first then stand still, and not for a reason of theirs.
pub fn plugin() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(built) = std::env::var_os("CULVERT_BINARIES") {
            let plugin = PathBuf::from(built).join("culvert-cni");
            assert!(plugin.exists(), "CULVERT_BINARIES: there is no {}", plugin.display());
            return plugin;
        }
        let mut command = Command::new(env!("CARGO"));
        command.args(["build", "--package", "cni-plugin"]).stdin(Stdio::null());
        let what = "cargo build --package cni-plugin (does another cargo hold the build directory?)";
        let built = ended(command.spawn().expect("cargo runs"), what, BUILD);
        assert!(built.status.success(), "cargo build --package cni-plugin");
        Path::new(env!("CARGO_BIN_EXE_pod-watcher")).with_file_name("culvert-cni")
    })
}

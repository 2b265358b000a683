//! `culvert-pause`: pid 1 of a pod. Holds its namespaces, reaps what is left of other containers in a shared pid namespace, ends when
//! told to. Knows nothing and needs nothing, for every pod has one.

use rustix::process::{WaitOptions, waitpid};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let (mut int, mut term, mut children) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::child())?);
    loop {
        tokio::select! {
            _ = int.recv() => return Ok(()),
            _ = term.recv() => return Ok(()),
            _ = children.recv() => while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {},
        }
    }
}

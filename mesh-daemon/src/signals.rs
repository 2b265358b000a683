//! How a process is asked to stop.

use tokio::signal::unix::{SignalKind, signal};

/// Resolves on SIGTERM (kubelet) or SIGINT (a person). Errors only when the runtime has no signal driver.
pub async fn stop() -> std::io::Result<&'static str> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Both branches may be dropped half-way: a signal that was not received yet stays pending for the next receiver.
    tokio::select! {
        _ = term.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

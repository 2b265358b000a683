//! How a process is asked to stop, or to open its files again.

use tokio::signal::unix::{Signal, SignalKind, signal};

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

/// SIGHUP, again and again: a rotation has moved a log file away. From the first listener on it does not end the process any more.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Errors only when the runtime has no signal driver.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// The next one. Safe to drop half-way: a signal stays pending for the next call.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}

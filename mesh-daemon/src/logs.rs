//! Logs on standard error ([`stderr`]: what nobody takes is lost and counted): text for people, JSON for machines. The level comes from `CULVERT_LOG` and can be changed while running.

use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

pub use crate::log_format::Format;
use crate::stderr;

/// The environment variable with the filter, in `tracing_subscriber`'s syntax: `info`, `warn,node_proxy=debug`.
pub const FILTER_VARIABLE: &str = "CULVERT_LOG";

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging for this process, panics included. A second call does nothing. A filter that cannot be parsed is reported and `info`
/// used.
pub fn init(component: &'static str, format: Format) {
    let wanted = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| "info".to_owned());
    let (filter, problem) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(stderr::Lossy);
    let started = match format {
        Format::Text => Registry::default().with(filter).with(lines.with_ansi(false).with_target(false)).try_init(),
        Format::Json => Registry::default().with(filter).with(lines.json().flatten_event(true)).try_init(),
    };
    if started.is_ok() {
        let _ = FILTER.set(handle);
        stderr::looks_like(format);
        // The default hook writes to standard error itself, and waits for a reader that has stopped.
        std::panic::set_hook(Box::new(move |panic| tracing::error!(component, "{panic}")));
    }
    if let Some(error) = problem {
        tracing::warn!(component, filter = wanted, %error, "{FILTER_VARIABLE} cannot be parsed; using info");
    }
}

/// The last word of a process that fails: a line of its log, which nobody can hold up; on standard error as it is where there is no log.
pub fn failed(component: &str, error: &dyn std::fmt::Display) {
    match FILTER.get() {
        Some(_) => tracing::error!("{error:#}"),
        None => eprintln!("{component}: {error:#}"),
    }
}

/// Why the level stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// Not a filter.
    #[error("log filter {0:?} cannot be parsed: {1}")]
    Malformed(String, String),
    /// Logging was never started, or its subscriber is gone.
    #[error("this process has no log filter to change")]
    NotStarted,
}

/// The filter of the running process, in the syntax of [`FILTER_VARIABLE`].
pub fn level() -> Result<String, LevelError> {
    let filter = FILTER.get().ok_or(LevelError::NotStarted)?;
    filter.with_current(ToString::to_string).map_err(|_| LevelError::NotStarted)
}

/// Replaces the filter of the running process.
pub fn set_level(filter: &str) -> Result<(), LevelError> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|error| LevelError::Malformed(filter.chars().take(120).collect(), error.to_string()))?;
    FILTER.get().ok_or(LevelError::NotStarted)?.reload(parsed).map_err(|_| LevelError::NotStarted)
}

//! Ctrl-C in the middle of anything: the lab is taken down from its records while the main thread is wherever it is.

use std::io::Write as _;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use anyhow::{Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

use crate::state::Dir;

/// Set when this process takes its lab down.
static STOPPING: RwLock<bool> = RwLock::new(false);

/// Held while something is made that only `down` takes away again, so that nothing is made behind its back.
pub(crate) fn making() -> Result<RwLockReadGuard<'static, bool>> {
    let stopping = STOPPING.read().unwrap_or_else(PoisonError::into_inner);
    ensure!(!*stopping, "the lab is being taken down");
    Ok(stopping)
}

/// Exit code of a program ended by SIGINT, as shells write it.
const INTERRUPTED: i32 = 130;

/// From now on SIGINT, SIGTERM and SIGHUP take the lab in `dir` down and end this process.
pub fn take_down_on_signal(dir: &Dir) -> Result<()> {
    take_all_down_on_signal(vec![dir.clone()])
}

/// The same for several labs that one process makes.
pub fn take_all_down_on_signal(dirs: Vec<Dir>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let (mut int, mut term, mut hup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    drop(guard);
    std::thread::Builder::new().name("lab-signals".into()).spawn(move || {
        runtime.block_on(async {
            // Any of them; the others stay unread for ever, the process ends below.
            tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
        });
        *STOPPING.write().unwrap_or_else(PoisonError::into_inner) = true;
        for dir in dirs.iter().filter(|dir| dir.exists()) {
            // Nobody may be reading: the lab is taken down all the same.
            let _ = writeln!(std::io::stderr(), "\nculvert-lab: taking lab {} down", dir.name());
            if let Err(error) = dir.down() {
                let (name, mut err) = (dir.name(), std::io::stderr());
                let _ = writeln!(err, "culvert-lab: not everything went: {error:#} (culvert-lab down {name})");
            }
        }
        std::process::exit(INTERRUPTED)
    })?;
    Ok(())
}

/// To be called before the main thread ends: while a signal's clean-up runs, it must not cut it off by returning.
pub fn wait_if_stopping() {
    while *STOPPING.read().unwrap_or_else(PoisonError::into_inner) {
        std::thread::park();
    }
}

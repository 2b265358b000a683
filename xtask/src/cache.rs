//! Where downloads and test tools live: outside the checkout, keyed by version, safe to delete.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

/// `$CULVERT_CACHE`, else `$XDG_CACHE_HOME/culvert`, else `~/.cache/culvert`.
pub fn root() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os("CULVERT_CACHE") {
        return Ok(given.into());
    }
    if let Some(xdg) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(xdg).join("culvert"));
    }
    let home = std::env::var_os("HOME").context("neither CULVERT_CACHE, XDG_CACHE_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/culvert"))
}

/// The directory of one tool in one version. It is complete when `made` has run: `make` works in a temporary directory that is
/// renamed into place, so that an interrupted download is never taken for the tool.
pub fn tool(name: &str, version: &str, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let root = root()?;
    let place = root.join(format!("{name}-{version}"));
    if place.is_dir() {
        return Ok(place);
    }
    std::fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    let _only_me = lock(&root, name)?;
    if place.is_dir() {
        return Ok(place); // another run made it meanwhile
    }
    let draft = root.join(format!(".{name}-{version}"));
    // Of a run that was killed: whoever makes this tool holds the lock, and that is us.
    let _ = std::fs::remove_dir_all(&draft);
    std::fs::create_dir(&draft).with_context(|| format!("create {}", draft.display()))?;
    let made = make(&draft);
    if made.is_ok() {
        std::fs::rename(&draft, &place).with_context(|| format!("move {} into place", place.display()))?;
    } else {
        let _ = std::fs::remove_dir_all(&draft);
    }
    made.map(|()| place)
}

/// One run at a time makes a tool; the others wait for it. The kernel lets go of the lock when its holder ends, however it ends.
fn lock(root: &Path, name: &str) -> anyhow::Result<File> {
    let path = root.join(format!(".{name}.lock"));
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if file.try_lock().is_err() {
        crate::phase::say(&format!("waiting: another run is making {name}"));
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

/// Prints the place.
pub fn show() -> anyhow::Result<ExitCode> {
    crate::phase::say(&format!("cache: {}", root()?.display()));
    Ok(ExitCode::SUCCESS)
}

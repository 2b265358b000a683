//! Where downloads and test tools live: outside the checkout, keyed by version, safe to delete.

use std::path::PathBuf;
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
pub fn tool(
    name: &str,
    version: &str,
    make: impl FnOnce(&std::path::Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let root = root()?;
    let place = root.join(format!("{name}-{version}"));
    if place.is_dir() {
        return Ok(place);
    }
    let draft = root.join(format!(".{name}-{version}.{}", std::process::id()));
    std::fs::create_dir_all(&draft).with_context(|| format!("create {}", draft.display()))?;
    let made = make(&draft);
    if made.is_ok() {
        match std::fs::rename(&draft, &place) {
            Ok(()) => return Ok(place),
            // Another run was faster; its result is as good.
            Err(_) if place.is_dir() => {}
            Err(error) => return Err(error).with_context(|| format!("move {} into place", place.display())),
        }
    }
    let _ = std::fs::remove_dir_all(&draft);
    made.map(|()| place)
}

/// Prints the place.
pub fn show() -> anyhow::Result<ExitCode> {
    crate::phase::say(&format!("cache: {}", root()?.display()));
    Ok(ExitCode::SUCCESS)
}

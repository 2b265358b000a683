//! Our side of `stateDir`: the namespaces file, written whole and renamed into place, and the markers that the plugin leaves.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mesh_api::link::state_dir::{LastGoodCounter, MAX_FILE, Marker, Namespaces};

/// Makes the directory and `pending/` in it.
pub fn prepare(state_dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(Marker::dir(state_dir))
}

/// Nobody asks any more: what is kept here and shared with the plugin goes, and the directory too unless it is a mount.
pub fn remove(state_dir: &Path) -> io::Result<()> {
    let counter = LastGoodCounter::path(state_dir);
    for result in [
        std::fs::remove_file(Namespaces::path(state_dir)),
        std::fs::remove_file(counter),
        std::fs::remove_dir_all(Marker::dir(state_dir)),
    ] {
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let _ = std::fs::remove_dir(state_dir); // busy where it is a mount; empty then
    Ok(())
}

/// The same for what lives under `/run`: sockets, the lock, what was observed. A directory that is a mount stays, empty.
pub fn remove_run(files: &[PathBuf], status_dir: &Path) -> io::Result<()> {
    let gone = files.iter().map(std::fs::remove_file).chain([std::fs::remove_dir_all(status_dir)]);
    gone.filter(|result| !matches!(result, Err(error) if error.kind() == io::ErrorKind::NotFound)).collect()
}

/// Writes a file that is either the old or the new one, also after a power cut.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("tmp");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Writes the namespaces file, unless it says the same already.
pub fn write_namespaces(state_dir: &Path, namespaces: &Namespaces) -> io::Result<()> {
    let path = Namespaces::path(state_dir);
    let bytes = mesh_api::link::encode(namespaces);
    if std::fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    write_atomically(&path, &bytes)
}

/// Markers that are there. One that cannot be read is removed and named: it would be met again for ever, and the scan of processes
/// finds what it was about.
pub fn markers(state_dir: &Path) -> io::Result<Vec<(PathBuf, Marker)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Marker::dir(state_dir))? {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        let read = std::fs::metadata(&path).and_then(|meta| {
            if meta.len() > MAX_FILE as u64 { Err(io::ErrorKind::FileTooLarge.into()) } else { std::fs::read(&path) }
        });
        match read
            .map_err(|error| error.to_string())
            .and_then(|bytes| Marker::decode(&bytes).map_err(|error| error.to_string()))
        {
            Ok(marker) => found.push((path, marker)),
            Err(error) => {
                tracing::warn!(marker = %path.display(), error, "marker of the CNI plugin cannot be read; removed");
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::link::state_dir::{Standing, VERSION};

    #[test]
    fn what_is_written_is_read_back_by_the_plugins_decoder() {
        let dir = tempfile::tempdir().expect("temporary directory");
        prepare(dir.path()).expect("prepared");
        let namespaces = Namespaces { version: VERSION, namespaces: [("shop".to_owned(), Standing::Enrolled)].into() };
        write_namespaces(dir.path(), &namespaces).expect("written");
        let read = Namespaces::decode(&std::fs::read(Namespaces::path(dir.path())).expect("read")).expect("decodes");
        assert_eq!(read, namespaces);
    }

    #[test]
    fn a_marker_that_cannot_be_read_does_not_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        prepare(dir.path()).expect("prepared");
        std::fs::write(Marker::dir(dir.path()).join("x.json"), "half").expect("written");
        std::fs::write(Marker::dir(dir.path()).join("y.tmp"), "unfinished").expect("written");
        assert_eq!(markers(dir.path()).expect("listed"), []);
        assert_eq!(std::fs::read_dir(Marker::dir(dir.path())).expect("listed").count(), 1);
    }
}

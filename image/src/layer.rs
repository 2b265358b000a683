//! The one layer of an image: a tar in a fixed order, without times or names of users, so that the same files give the same digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use tar::{EntryType, Header};

/// Something at a path of the image.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Without the leading slash.
    pub(crate) target: PathBuf,
    pub(crate) content: Content,
}

/// What is there.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// A file of this machine.
    File { source: PathBuf, mode: u32 },
    /// A program of this machine, without what only a debugger reads.
    Program { source: PathBuf },
    /// A file with this content.
    Text { content: String, mode: u32 },
    /// A symbolic link.
    Link(PathBuf),
    /// A directory.
    Dir { mode: u32 },
}

/// The layer's bytes, not compressed: it is read on the machine that wrote it.
pub(crate) fn bytes(entries: &[Entry]) -> anyhow::Result<Vec<u8>> {
    let mut all: BTreeMap<&Path, Content> = BTreeMap::new();
    for entry in entries {
        for parent in entry.target.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()) {
            all.entry(parent).or_insert(Content::Dir { mode: 0o755 });
        }
    }
    // After the parents, so that a directory given with a mode keeps it.
    all.extend(entries.iter().map(|entry| (entry.target.as_path(), entry.content.clone())));
    let mut tar = tar::Builder::new(Vec::new());
    // A directory sorts before what is in it.
    for (target, content) in all {
        append(&mut tar, target, &content).with_context(|| format!("put {} into the layer", target.display()))?;
    }
    Ok(tar.into_inner()?)
}

fn append(tar: &mut tar::Builder<Vec<u8>>, target: &Path, content: &Content) -> anyhow::Result<()> {
    match content {
        Content::File { source, mode } => {
            let data = std::fs::read(source).with_context(|| format!("read {}", source.display()))?;
            tar.append_data(&mut header(EntryType::Regular, *mode, data.len()), target, data.as_slice())?;
        }
        Content::Program { source } => {
            let data = stripped(source)?;
            tar.append_data(&mut header(EntryType::Regular, 0o755, data.len()), target, data.as_slice())?;
        }
        Content::Text { content, mode } => {
            tar.append_data(&mut header(EntryType::Regular, *mode, content.len()), target, content.as_bytes())?;
        }
        Content::Link(to) => tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), target, to)?,
        Content::Dir { mode } => {
            tar.append_data(&mut header(EntryType::Directory, *mode, 0), target, std::io::empty())?;
        }
    }
    Ok(())
}

/// A program with the names of its functions and without lines and types: two thirds of a build with them. Every machine that links
/// programs has `strip`.
fn stripped(source: &Path) -> anyhow::Result<Vec<u8>> {
    let dir = tempfile::tempdir().context("make a directory")?;
    let to = dir.path().join("program");
    let output = Command::new("strip").arg("--strip-debug").arg("-o").arg(&to).arg(source).output();
    let output = output.context("start strip (Debian has it in binutils)")?;
    ensure!(output.status.success(), "strip: {}", String::from_utf8_lossy(&output.stderr).trim());
    std::fs::read(&to).with_context(|| format!("read {}", source.display()))
}

/// Owned by root, at the beginning of time.
pub(crate) fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(target: &str, content: Content) -> Entry {
        Entry { target: target.into(), content }
    }

    fn listed(bytes: &[u8]) -> Vec<(String, u32)> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().expect("a tar");
        entries
            .map(|entry| {
                let entry = entry.expect("an entry");
                (entry.path().expect("a path").display().to_string(), entry.header().mode().expect("a mode"))
            })
            .collect()
    }

    #[test]
    fn parents_come_first_and_a_directory_given_keeps_its_mode() {
        let text = Content::Text { content: "x".into(), mode: 0o600 };
        let made = bytes(&[
            entry("tmp/deep/file", text.clone()),
            entry("tmp", Content::Dir { mode: 0o1777 }),
            entry("bin/sh", Content::Link("busybox".into())),
        ])
        .expect("a layer");
        assert_eq!(
            listed(&made),
            [("bin", 0o755), ("bin/sh", 0o777), ("tmp", 0o1777), ("tmp/deep", 0o755), ("tmp/deep/file", 0o600)]
                .map(|(path, mode)| (path.to_owned(), mode))
        );
    }

    #[test]
    fn a_program_comes_without_what_a_debugger_reads_and_what_is_none_is_refused() {
        let own = std::env::current_exe().expect("this test");
        let whole = std::fs::metadata(&own).expect("its file").len();
        let made = bytes(&[entry("program", Content::Program { source: own })]).expect("a layer");
        assert_eq!(listed(&made), [("program".to_owned(), 0o755)]);
        assert!(made.len() > 100_000 && (made.len() as u64) < whole * 9 / 10, "{} of {whole}", made.len());
        let source = PathBuf::from("/etc/hostname");
        let error = bytes(&[entry("program", Content::Program { source })]).expect_err("no program");
        assert!(format!("{error:#}").contains("/etc/hostname"), "{error:#}");
    }

    #[test]
    fn the_order_in_which_files_are_given_does_not_matter() {
        let a = entry("a", Content::Text { content: "1".into(), mode: 0o644 });
        let b = entry("b", Content::Text { content: "2".into(), mode: 0o644 });
        let (one, other) = (bytes(&[a.clone(), b.clone()]), bytes(&[b, a]));
        assert_eq!(one.expect("a layer"), other.expect("a layer"));
    }
}

//! The one layer of an image: a tar in a fixed order, without times or names of users, so that the same files give the same digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
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
    fn the_order_in_which_files_are_given_does_not_matter() {
        let a = entry("a", Content::Text { content: "1".into(), mode: 0o644 });
        let b = entry("b", Content::Text { content: "2".into(), mode: 0o644 });
        let (one, other) = (bytes(&[a.clone(), b.clone()]), bytes(&[b, a]));
        assert_eq!(one.expect("a layer"), other.expect("a layer"));
    }
}

//! The mesh's own images: static binaries and nothing else.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::Image;

/// Name and tag of each image without its repository, in the order in which they are written.
const NAMES: [&str; 3] = ["control-plane", "node-proxy", "pod-watcher"];
/// The unprivileged user of worker and control plane; what runs as root says so in its pod.
const USER: u32 = 65532;
/// How names are resolved: without it a C library would look for modules that are not there.
const NSSWITCH: &str = "hosts: files dns\n";

/// Where an image has the list of what is in it.
const LIST: &str = "/sbom.cdx.json";

/// Describes them, from binaries in a directory: REPOSITORY/NAME:TAG. `lists` has NAME.cdx.json, what is in each (CycloneDX).
pub fn images(binaries: &Path, repository: &str, tag: &str, lists: Option<&Path>) -> Vec<Image> {
    let one = |name: &str| {
        let image = Image::new(&format!("{repository}/{name}:{tag}"))
            .program(binaries.join(name), &format!("/{name}"))
            .text(NSSWITCH, "/etc/nsswitch.conf", 0o644)
            .entrypoint(&[&format!("/{name}")])
            .user(USER);
        let image = match lists {
            Some(lists) => image.file(lists.join(format!("{name}.cdx.json")), LIST, 0o644),
            None => image,
        };
        // The plugin travels with the daemon that puts it on the node.
        if name == "pod-watcher" { image.program(binaries.join("culvert-cni"), "/culvert-cni") } else { image }
    };
    NAMES.map(one).into()
}

/// Writes them into a directory, NAME.tar each; the files, in the order of [`images`].
pub fn write(
    binaries: &Path,
    repository: &str,
    tag: &str,
    lists: Option<&Path>,
    to: &Path,
) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let images = images(binaries, repository, tag, lists);
    let named = images.iter().zip(NAMES).map(|(image, name)| {
        let file = to.join(format!("{name}.tar"));
        image.write(&file).with_context(|| format!("write image {}", image.name()))?;
        Ok(file)
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_for_each_pod_of_the_mesh_and_the_plugin_travels_with_pod_watcher() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["control-plane", "node-proxy", "pod-watcher", "culvert-cni"] {
            std::fs::copy("/bin/true", dir.path().join(name)).expect("copied");
        }
        let files = write(dir.path(), "localhost/culvert", "1", None, &dir.path().join("out")).expect("written");
        assert_eq!(files.len(), 3);
        let text = |n: usize| String::from_utf8_lossy(&std::fs::read(&files[n]).expect("read")).into_owned();
        assert!(text(1).contains("localhost/culvert/node-proxy:1") && !text(1).contains("culvert-cni"));
        assert!(text(2).contains("culvert-cni"));
        std::fs::write(dir.path().join("node-proxy.cdx.json"), "list").expect("written");
        let listed = images(dir.path(), "x", "1", Some(dir.path()));
        listed[1].write(&dir.path().join("listed.tar")).expect("written");
        let listed = std::fs::read(dir.path().join("listed.tar")).expect("read");
        assert!(String::from_utf8_lossy(&listed).contains("sbom.cdx.json"));
        std::fs::remove_file(dir.path().join("node-proxy")).expect("removed");
        let error = write(dir.path(), "localhost/culvert", "1", None, dir.path()).expect_err("a binary is missing");
        assert!(format!("{error:#}").contains("node-proxy"), "{error:#}");
    }
}

//! A small shop to look at: three services and a PostgreSQL on two nodes, in the mesh, and what each may reach.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use image::Image;

use crate::{Cluster, images};

/// Where it is.
pub const NAMESPACE: &str = "demo";
/// PostgreSQL's server and `psql`, with busybox's shell, web server and tools.
pub const POSTGRESQL: &str = "localhost/culvert/postgresql:demo";
const OBJECTS: &str = include_str!("../demo.yaml");
/// Its pods, in the order in which each needs those before it.
pub const PODS: [&str; 4] = ["db", "stock", "cart", "front"];
/// A database is made in 3 s on idle cores.
const DEADLINE: &str = "--timeout=120s";
/// Neither root, as which the server does not run, nor anybody's on a node.
const USER: u32 = 65533;

/// PostgreSQL's files.
#[derive(Clone, Debug)]
pub struct Demo {
    root: PathBuf,
}

impl Demo {
    /// As `CULVERT_POSTGRESQL` says.
    pub fn find() -> Result<Demo> {
        let root = std::env::var_os("CULVERT_POSTGRESQL").map(PathBuf::from);
        let root = root.context(
            "CULVERT_POSTGRESQL is not set: run this through cargo xtask, which unpacks PostgreSQL and sets it",
        )?;
        ensure!(root.is_dir(), "{} is not there: cargo xtask makes it", root.display());
        Ok(Demo { root })
    }

    /// Every file below the directory, programs also in `/bin`.
    fn image(&self) -> Result<Image> {
        let mut image = images::with_busybox(Image::new(POSTGRESQL))?.user(USER);
        // The server asks who it is, and which time zones there are.
        image = image.dir("/usr/share/zoneinfo", 0o755);
        image = image.text(&format!("shop:x:{USER}:{USER}::/tmp:/bin/sh\n"), "/etc/passwd", 0o644);
        let mut next = vec![self.root.clone()];
        while let Some(dir) = next.pop() {
            for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    next.push(path);
                } else {
                    image = with_file(image, &self.root, &path)?;
                }
            }
        }
        Ok(image)
    }
}

fn with_file(image: Image, root: &Path, path: &Path) -> Result<Image> {
    let target = format!("/{}", path.strip_prefix(root).context("below the root")?.display());
    let is_program = path.parent().is_some_and(|dir| dir.ends_with("bin"));
    let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
    // The loader is executed too, and libraries are mapped to be.
    let image = image.file(path, &target, 0o755);
    Ok(if is_program { image.link(&format!("..{target}"), &format!("/bin/{name}")) } else { image })
}

impl Cluster {
    /// Starts the shop; returns when its pods are Ready. Needs the mesh. `told` is called after each step.
    pub fn demo(&self, demo: &Demo, told: impl Fn(&str)) -> Result<()> {
        let begun = Instant::now();
        let step = |what: &str| told(&format!("{:5.1} s  {what}", begun.elapsed().as_secs_f64()));
        let archive = self.lab().dir().join("postgresql.tar");
        demo.image()?.write(&archive)?;
        let loaded = self.load(&archive);
        let _ = std::fs::remove_file(&archive); // it goes with the cluster at the latest
        loaded?;
        step("PostgreSQL's image on every node");
        self.wait_for_names()?;
        self.apply(OBJECTS)?;
        let pods = PODS.map(|name| format!("pod/{name}"));
        let mut wait = vec!["wait", "-n", NAMESPACE, "--for=condition=Ready", DEADLINE];
        wait.extend(pods.iter().map(String::as_str));
        self.kubectl(&wait).with_context(|| {
            self.kubectl(&["get", "pods,events", "-n", NAMESPACE, "-o", "wide"]).unwrap_or_default()
        })?;
        step("three services and a database Ready");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_name_every_pod_and_the_image_that_is_written() {
        for name in PODS {
            assert!(
                OBJECTS.contains(&format!("kind: Pod\nmetadata: {{name: {name}, namespace: {NAMESPACE},")),
                "{name}"
            );
        }
        assert_eq!(OBJECTS.matches(&format!("image: {POSTGRESQL}\n")).count(), PODS.len());
    }

    #[test]
    fn programs_are_found_by_their_bare_name() {
        let root = tempfile::tempdir().expect("a directory");
        let bin = root.path().join("usr/lib/postgresql/15/bin");
        std::fs::create_dir_all(&bin).expect("made");
        std::fs::write(bin.join("psql"), "psql").expect("written");
        let image = Demo { root: root.path().to_owned() }.image().expect("described");
        let archive = root.path().join("x.tar");
        image.write(&archive).expect("written");
        let bytes = std::fs::read(archive).expect("read");
        let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(has(b"../usr/lib/postgresql/15/bin/psql") && has(b"bin/psql"));
    }
}

//! Container images FROM scratch: no daemon, no registry, no Dockerfile, and the same bytes for the same files.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! image::Image::new("localhost/culvert/node-proxy:0.1.0")
//!     .program("target/node-proxy", "/node-proxy")
//!     .entrypoint(&["/node-proxy"])
//!     .user(65532)
//!     .write("node-proxy.tar".as_ref())?;
//! # Ok(()) }
//! ```
//!
//! One file serves every tool: it is an OCI image layout (`ctr images import`, `skopeo copy oci-archive:`) and a Docker archive
//! (`docker load`, `kind load image-archive`) at once, as `docker save` itself writes it since version 25.

mod archive;
mod layer;
pub mod mesh;

use std::path::{Path, PathBuf};

/// An image that is being described: one layer, one program.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    entries: Vec<layer::Entry>,
    entrypoint: Vec<String>,
    user: Option<u32>,
}

impl Image {
    /// An empty image under a full name with its tag, as in `localhost/pause:1`.
    pub fn new(name: &str) -> Image {
        Image { name: name.to_owned(), entries: Vec::new(), entrypoint: Vec::new(), user: None }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// With a file of this machine. Parents of `target` are made, owned by root, mode 0755.
    pub fn file(self, source: impl AsRef<Path>, target: &str, mode: u32) -> Image {
        let source = source.as_ref().to_owned();
        self.entry(target, layer::Content::File { source, mode })
    }

    /// With a program of this machine, mode 0755, without what only a debugger reads.
    pub fn program(self, source: impl AsRef<Path>, target: &str) -> Image {
        let source = source.as_ref().to_owned();
        self.entry(target, layer::Content::Program { source })
    }

    /// With a file of this content.
    pub fn text(self, content: &str, target: &str, mode: u32) -> Image {
        self.entry(target, layer::Content::Text { content: content.to_owned(), mode })
    }

    /// With a symbolic link to `to`.
    pub fn link(self, to: &str, target: &str) -> Image {
        self.entry(target, layer::Content::Link(PathBuf::from(to)))
    }

    /// With an empty directory.
    pub fn dir(self, target: &str, mode: u32) -> Image {
        self.entry(target, layer::Content::Dir { mode })
    }

    fn entry(mut self, target: &str, content: layer::Content) -> Image {
        self.entries.push(layer::Entry { target: PathBuf::from(target.trim_start_matches('/')), content });
        self
    }

    /// Runs this program.
    pub fn entrypoint(mut self, argv: &[&str]) -> Image {
        self.entrypoint = argv.iter().map(|arg| (*arg).to_owned()).collect();
        self
    }

    /// As this uid and the gid of the same number, unless the pod says otherwise.
    pub fn user(mut self, uid: u32) -> Image {
        self.user = Some(uid);
        self
    }

    /// Writes the archive; put in place by rename.
    pub fn write(&self, to: &Path) -> anyhow::Result<()> {
        archive::write(self, to)
    }
}

//! `cargo xtask image`: the mesh's images as files that every container tool reads.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

const EXAMPLES: &str = "Examples:
  cargo xtask image                          debug builds, quick to make
  cargo xtask image --release                as they are to be installed
  docker load -i target/images/node-proxy.tar
  ctr -n k8s.io images import target/images/node-proxy.tar
  kind load image-archive target/images/node-proxy.tar";

/// Writes the mesh's container images: FROM scratch, static binaries, OCI layout and Docker archive in one file each.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask image", version, after_help = EXAMPLES)]
struct Args {
    /// The built binaries (`cargo xtask image` gives it).
    #[arg(long, env = "CULVERT_BINARIES")]
    binaries: PathBuf,
    /// Where the archives go: control-plane.tar, node-proxy.tar, pod-watcher.tar.
    #[arg(long, default_value = "target/images")]
    out: PathBuf,
    /// Where NAME.cdx.json are, what is in each image (CycloneDX); put into the images as /sbom.cdx.json.
    #[arg(long)]
    lists: Option<PathBuf>,
    /// First part of the images' names.
    #[arg(long, default_value = "localhost/culvert")]
    repository: String,
    /// Their tag.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match write(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "image: {error:#}"); // nobody is left to tell
            ExitCode::FAILURE
        }
    }
}

fn write(args: &Args) -> anyhow::Result<()> {
    let images = image::mesh::images(&args.binaries, &args.repository, &args.tag, args.lists.as_deref());
    let files = image::mesh::write(&args.binaries, &args.repository, &args.tag, args.lists.as_deref(), &args.out)?;
    for (image, file) in images.iter().zip(files) {
        let size = std::fs::metadata(&file).with_context(|| format!("look at {}", file.display()))?.len();
        writeln!(std::io::stdout(), "{}  {:.1} MB  {}", file.display(), size as f64 / 1e6, image.name())?;
    }
    Ok(())
}

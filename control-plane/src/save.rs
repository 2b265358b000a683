//! `control-plane compile`: the manifests, compiled once into a node proxy's last good configuration.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use mesh_api::manifests::{Objects, load_dir};
use mesh_api::xds::saved::Saved;
use mesh_kube::Place;

use crate::args::CompileArgs;
use crate::compile::Compiler;
use crate::snapshot::Snapshot;

/// Compiles and writes. Complaints go to the log; they are an error only if `strict` asks for it.
pub fn run(args: CompileArgs) -> anyhow::Result<()> {
    let CompileArgs { mesh, node, out, strict } = args;
    let (source, config) = mesh.config()?;
    let Place::Dir(source) = source else { anyhow::bail!("compile reads a directory: --source DIR") };
    anyhow::ensure!(source.is_dir(), "{} (--source) is not a directory", source.display());
    let (objects, rejected) = load_dir(&source, &Objects::default());
    let mut compiler = Compiler::default();
    let changes = compiler.compile(&objects, &rejected, &config);
    for document in &rejected {
        tracing::error!("document refused: {document}");
    }
    for problem in compiler.problems() {
        tracing::warn!("{problem}");
    }
    let complaints = rejected.len() + compiler.problems().count();
    anyhow::ensure!(!strict || complaints == 0, "{complaints} complaints, and --strict: nothing is written");
    let snapshot = Snapshot::default().after(&changes);
    let saved = Saved {
        node,
        cluster: config.cluster_id,
        written_at: SystemTime::now(),
        resources: snapshot.resources().cloned().collect(),
        // Whoever runs a node without a control plane puts the file there by hand: no worker counts then.
        counter: 0,
    };
    write(&out, &saved.encode()).with_context(|| format!("write {} (--out)", out.display()))?;
    tracing::info!(
        out = %out.display(),
        addresses = snapshot.addresses.len(),
        policies = snapshot.policies.len(),
        complaints,
        "compiled"
    );
    Ok(())
}

/// Beside, synced, renamed: a reader sees the old file or the new one.
fn write(out: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = out.file_name().ok_or_else(|| io::Error::other("not a file name"))?;
    let temporary: PathBuf = dir.join(format!(".{}.new", name.to_string_lossy()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, out)?;
    File::open(dir)?.sync_all()
}

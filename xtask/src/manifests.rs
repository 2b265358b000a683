//! `cargo xtask manifests`: what the chart renders with its defaults, in one file for those who do not use helm.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};

use crate::{cargo, phase, tools};

/// Where it is installed unless somebody says otherwise.
const NAMESPACE: &str = "culvert-system";
/// What stands above it.
const HEAD: &str = "\
# Culvert for `kubectl apply --server-side -f`, after crds.yaml: what the chart beside this file renders with its defaults, with the
# namespace that helm would make. Made by `cargo xtask manifests`; change the chart, not this file.
apiVersion: v1
kind: Namespace
metadata:
  name: culvert-system
  labels:
    app.kubernetes.io/part-of: culvert
    # pod-watcher is in the node's own namespaces, and node-proxy's keeper enters those of pods.
    pod-security.kubernetes.io/enforce: privileged
";

/// Renders the chart into `manifests/culvert.yaml`, or says whether that is what it renders.
pub fn run(check: bool) -> anyhow::Result<ExitCode> {
    let manifests = cargo::workspace().join("manifests");
    for (name, rendered) in
        [("crds.yaml", crds(&manifests.join("chart/crds"))?), ("culvert.yaml", render(&cargo::workspace(), &[])?)]
    {
        let file = manifests.join(name);
        match check {
            true => compare(&file, &rendered)?,
            false => {
                std::fs::write(&file, rendered).with_context(|| format!("write {}", file.display()))?;
                phase::say(&format!("written: {}", file.display()));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(file: &Path, rendered: &str) -> anyhow::Result<()> {
    let found = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let line = found.lines().zip(rendered.lines()).position(|(a, b)| a != b);
    ensure!(
        found == rendered,
        "{} is not what the chart renders, from line {}: run `cargo xtask manifests` and commit it",
        file.display(),
        line.unwrap_or_else(|| found.lines().count().min(rendered.lines().count())) + 1
    );
    Ok(())
}

/// The definitions in one file: apart from the rest, since they may be somebody else's, and since whoever deletes one deletes every
/// object of its kind. helm does the same with a chart's `crds`.
fn crds(dir: &Path) -> anyhow::Result<String> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    let texts = files.iter().map(std::fs::read_to_string).collect::<std::io::Result<Vec<_>>>()?;
    Ok(texts.join("---\n"))
}

/// Renders them for the cluster of `cargo xtask cluster`; the file.
pub fn for_cluster() -> anyhow::Result<PathBuf> {
    let file = cargo::target()?.join("manifests-cluster.yaml");
    write_for_cluster(&cargo::workspace(), &file)?;
    Ok(file)
}

/// The same of any checkout.
pub fn write_for_cluster(checkout: &Path, file: &Path) -> anyhow::Result<()> {
    let values = checkout.join("cluster/mesh-values.yaml");
    let rendered = render(checkout, &["--values".as_ref(), values.as_ref()])?;
    std::fs::write(file, rendered).with_context(|| format!("write {}", file.display()))
}

/// The namespace and the chart, without its definitions.
fn render(checkout: &Path, more: &[&OsStr]) -> anyhow::Result<String> {
    let chart = checkout.join("manifests/chart");
    let mut helm = Command::new(tools::helm()?);
    helm.args(["template", "culvert"]).arg(chart).args(["--namespace", NAMESPACE]).args(more);
    let output = helm.output().with_context(|| format!("start {helm:?}"))?;
    ensure!(output.status.success(), "helm template: {}", String::from_utf8_lossy(&output.stderr));
    Ok(format!("{HEAD}{}", String::from_utf8(output.stdout).context("what helm renders is not text")?))
}

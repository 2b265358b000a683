//! Debian packages that the lab and the tests use. None is needed by the mesh itself.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::phase;

/// A package and a file that shows it is there.
struct Package {
    name: &'static str,
    shows: &'static str,
    why: &'static str,
    /// A systemd unit that it would start, also at each boot, and that nobody asked for.
    unit: Option<&'static str>,
}

impl Package {
    const fn new(name: &'static str, shows: &'static str, why: &'static str) -> Self {
        Self { name, shows, why, unit: None }
    }
}

const PACKAGES: &[Package] = &[
    Package::new("iproute2", "/usr/sbin/ip", "the lab's links and namespaces"),
    Package::new("util-linux", "/usr/bin/nsenter", "programs run inside a node or pod"),
    Package::new("containernetworking-plugins", "/usr/lib/cni/bridge", "the reference CNI chain before our plugin"),
    Package::new("nftables", "/usr/sbin/nft", "an independent reader and disturber of our rules"),
    Package::new(
        "conntrack",
        "/usr/sbin/conntrack",
        "flushes what the kernel remembers, as administrators and kube-proxy do",
    ),
    Package::new("curl", "/usr/bin/curl", "a client that is not ours"),
    Package::new("busybox-static", "/bin/busybox", "a shell in images made from scratch"),
    Package::new("ca-certificates", "/etc/ssl/certs/ca-certificates.crt", "downloads of test tools"),
    Package {
        name: "prometheus",
        shows: "/usr/bin/promtool",
        why: "scrapes the mesh in a lab, and checks its metrics' names",
        unit: Some("prometheus.service"),
    },
];

/// What a real Kubernetes on this machine needs besides.
const CLUSTER: &[Package] = &[
    Package { name: "etcd-server", shows: "/usr/bin/etcd", why: "the API server's store", unit: Some("etcd.service") },
    Package {
        name: "containerd",
        shows: "/usr/bin/containerd",
        why: "the nodes' container runtime",
        unit: Some("containerd.service"),
    },
    Package::new("runc", "/usr/sbin/runc", "what containerd starts containers with"),
    Package::new("binutils", "/usr/bin/strip", "images without what only a debugger reads"),
];

/// deb-systemd-invoke(1), invoke-rc.d(8): asked before a package's service is started; 101 says no.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing, and says which and why.
pub fn ensure() -> anyhow::Result<()> {
    ensure_all(PACKAGES)
}

/// The same for what only a cluster needs.
pub fn ensure_cluster() -> anyhow::Result<()> {
    ensure_all(CLUSTER)
}

fn ensure_all(packages: &[Package]) -> anyhow::Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !Path::new(package.shows).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        phase::say(&format!("Debian package {} is missing: {}", package.name, package.why));
    }
    root("installing Debian packages")?;
    missing.iter().filter_map(|package| package.unit).try_for_each(mask)?;
    install(&missing.iter().map(|package| package.name).collect::<Vec<_>>())
}

/// Keeps a unit from being started, now and at each boot, until somebody unmasks it.
fn mask(unit: &str) -> anyhow::Result<()> {
    let mask = Path::new("/etc/systemd/system").join(unit);
    if let Some(dir) = mask.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    match symlink("/dev/null", &mask) {
        Ok(()) => phase::say(&format!("{unit} is masked: only its programs are wanted")),
        // Masked before, or somebody's own unit.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| format!("mask {unit}")),
    }
    Ok(())
}

/// Installs Debian packages by name.
pub fn install(names: &[&str]) -> anyhow::Result<()> {
    root("installing Debian packages")?;
    let _quiet = no_services()?;
    phase::run(&format!("apt-get install {}", names.join(" ")), || {
        // An old package list names versions that are gone; a failed update may still leave a usable one.
        let updated = apt(&["update"]);
        apt(&[&["install", "--yes", "--no-install-recommends"], names].concat()).or_else(|error| {
            updated?;
            Err(error)
        })
    })
}

/// As long as this lives no package starts a service: the machine's own etcd and containerd would only be in the way. A policy that
/// the machine has already is left as it is.
fn no_services() -> anyhow::Result<Option<Policy>> {
    if Path::new(POLICY).exists() {
        return Ok(None);
    }
    fs::write(POLICY, "#!/bin/sh\n# Put here by cargo xtask while it installs packages.\nexit 101\n")
        .with_context(|| format!("write {POLICY}"))?;
    let policy = Policy;
    fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).with_context(|| format!("chmod {POLICY}"))?;
    Ok(Some(policy))
}

struct Policy;

impl Drop for Policy {
    fn drop(&mut self) {
        let _ = fs::remove_file(POLICY); // what is left only keeps services from starting
    }
}

/// Fetches the lists of packages anew.
pub fn update() -> anyhow::Result<()> {
    root("fetching lists of Debian packages")?;
    phase::run("apt-get update", || apt(&["update"]))
}

fn apt(args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("-q")
        .args(args)
        .output()
        .context("start apt-get (is this Debian?)")?;
    if !output.status.success() {
        bail!("apt-get {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Fails unless this is root.
pub fn root(what: &str) -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective =
        status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1));
    if effective != Some("0") {
        bail!("{what} needs root (network namespaces, nf_tables, cgroups): run it as root, for example with sudo");
    }
    Ok(())
}

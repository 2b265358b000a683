//! Debian packages that the lab and the tests use. None is needed by the mesh itself.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
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
    Package::new("curl", "/usr/bin/curl", "a client that is not ours"),
    Package::new("ca-certificates", "/etc/ssl/certs/ca-certificates.crt", "downloads of test tools"),
    Package {
        name: "prometheus",
        shows: "/usr/bin/promtool",
        why: "scrapes the mesh in a lab, and checks its metrics' names",
        unit: Some("prometheus.service"),
    },
];

/// deb-systemd-invoke(1), invoke-rc.d(8): asked before a package's service is started; 101 says no.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs what is missing, and says which and why.
pub fn ensure() -> anyhow::Result<()> {
    let missing: Vec<&Package> = PACKAGES.iter().filter(|package| !Path::new(package.shows).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        phase::say(&format!("Debian package {} is missing: {}", package.name, package.why));
    }
    let units: Vec<&str> = missing.iter().filter_map(|package| package.unit).collect();
    let _quiet = if units.is_empty() { None } else { Some(Quiet::keep(&units)?) };
    install(&missing.iter().map(|package| package.name).collect::<Vec<_>>())
}

/// While it lives no package starts a service; and the units are masked, now and at each boot, until somebody unmasks them.
struct Quiet {
    /// Whether the policy is ours to take away again.
    ours: bool,
}

impl Quiet {
    fn keep(units: &[&str]) -> anyhow::Result<Self> {
        root("installing Debian packages")?;
        for unit in units {
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
        }
        let ours = !Path::new(POLICY).exists();
        if ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {POLICY}"))?;
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("chmod {POLICY}"))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            phase::say(&format!("{POLICY} could not be taken away again: {error}"));
        }
    }
}

/// Installs Debian packages by name.
pub fn install(names: &[&str]) -> anyhow::Result<()> {
    root("installing Debian packages")?;
    phase::run(&format!("apt-get install {}", names.join(" ")), || {
        // An old package list names versions that are gone; a failed update may still leave a usable one.
        let updated = apt(&["update"]);
        apt(&[&["install", "--yes", "--no-install-recommends"], names].concat()).or_else(|error| {
            updated?;
            Err(error)
        })
    })
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
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective =
        status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1));
    if effective != Some("0") {
        bail!("{what} needs root (network namespaces, nf_tables, cgroups): run it as root, for example with sudo");
    }
    Ok(())
}

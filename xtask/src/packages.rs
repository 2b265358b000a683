//! Debian packages that the lab and the tests use. None is needed by the mesh itself.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::phase;

/// A package and a file that shows it is there.
struct Package {
    name: &'static str,
    shows: &'static str,
    why: &'static str,
}

const PACKAGES: &[Package] = &[
    Package { name: "iproute2", shows: "/usr/sbin/ip", why: "the lab's links and namespaces" },
    Package { name: "util-linux", shows: "/usr/bin/nsenter", why: "programs run inside a node or pod" },
    Package {
        name: "containernetworking-plugins",
        shows: "/usr/lib/cni/bridge",
        why: "the reference CNI chain before our plugin",
    },
    Package { name: "nftables", shows: "/usr/sbin/nft", why: "an independent reader and disturber of our rules" },
    Package { name: "curl", shows: "/usr/bin/curl", why: "a client that is not ours" },
    Package { name: "ca-certificates", shows: "/etc/ssl/certs/ca-certificates.crt", why: "downloads of test tools" },
];

/// Installs what is missing, and says which and why.
pub fn ensure() -> anyhow::Result<()> {
    let missing: Vec<&Package> = PACKAGES.iter().filter(|package| !Path::new(package.shows).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        phase::say(&format!("Debian package {} is missing: {}", package.name, package.why));
    }
    install(&missing.iter().map(|package| package.name).collect::<Vec<_>>())
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
